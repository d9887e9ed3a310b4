"""Embeddings in the store, opened by pandas, polars and DuckDB where our package is not there."""

import json
import re
import subprocess
import sys

import pytest

from mm_assets.resources.store import ArtefactRef, ArtefactStore
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.resources.writers import MADE, embeddings

WITHOUT_US = """
import json, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mm_assets":
            raise ImportError("not here")

sys.meta_path.insert(0, Refused())
try:
    import mm_assets
    raise SystemExit("mm_assets could be imported")
except ImportError:
    pass
"""

REPORT = """
assert not [name for name in sys.modules if name.startswith("mm_assets")]
print(json.dumps({
    "pandas": [[*row.embedding.tolist(), row.x, row.y, row.size0] for row in frame.itertuples()],
    "polars": [[*row["embedding"], row["x"], row["y"], row["size0"]] for row in tiles.to_dicts()],
    "duckdb": found,
    "types": [str(frame["embedding"][0].dtype), str(tiles.schema["embedding"])],
}))
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What the README's lines read from a file that the store wrote."""
    folder = tmp_path_factory.mktemp("elsewhere")
    readme = (REPOSITORY / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    root, cohort, asset, file = re.findall(r'"(\S+)/(\w+)/(\w+)/(\w+)\.arrow"', lines)[0]
    ref = ArtefactRef(cohort, asset, file, "arrow")
    ArtefactStore(uri=str(folder / root)).write_arrow(ref, embeddings(), MADE)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_US + lines + REPORT],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("reader", ["pandas", "polars"])
def test_every_value_is_read(read: dict[str, list], reader: str) -> None:
    columns = embeddings().to_pydict()
    rows = zip(*columns.values(), strict=True)
    assert read[reader] == [[*map(float, vector), *rest] for vector, *rest in rows]


def test_the_types_are_kept(read: dict[str, list]) -> None:
    assert read["types"] == ["float16", "Array(Float16, shape=(8,))"]


def test_duckdb_queries_the_vectors(read: dict[str, list]) -> None:
    columns = embeddings().to_pydict()
    first = sorted(zip(columns["embedding"], columns["x"], strict=True), key=lambda r: -r[0][0])
    assert [row[2] for row in read["duckdb"]] == [float(vector[0]) for vector, _ in first]
    assert read["duckdb"][0][0] == first[0][1]

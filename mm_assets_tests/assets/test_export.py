"""Slides from pixels to exported files, compared with what the store holds."""

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mm_assets.assets.partitions import SlideRun
from mm_assets.assets.slides import slide_stage, tissue_stage
from mm_assets.assets.stage import Workspace
from mm_assets.assets.tiles import TILES, embedding_stage
from mm_assets.cli import app
from mm_assets.cohort.loading import load_config
from mm_assets.resources.store import ArtefactRef, ArtefactStore
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.cohorts import make_cohort, slide_name, truncate

GOOD, ALSO_GOOD, TRUNCATED, UNTRIED = "P000-S1", "P001-S1", "P002-S1", "P003-S1"
FEATURES = "20x_256px_0px_overlap/features_resnet50"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two embedded slides, one that cannot be read and one that nobody has tried yet."""
    folder = tmp_path_factory.mktemp("export")
    yaml = make_cohort(folder / "cohorts" / "tiny", 4)
    truncate(yaml.parent / "slides" / slide_name("P002"))
    store = ArtefactStore(uri=str(folder / "mm" / "store"))
    space = Workspace(load_config(yaml), store, Tracking(), logging.getLogger())
    for make in (slide_stage, tissue_stage, embedding_stage):
        stage = make(space.config)
        SlideRun(stage, space, stage.outputs, "").outcomes([GOOD, ALSO_GOOD, TRUNCATED])
    return space


@pytest.fixture
def cohort(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of the cohort's YAML, with the store in its place."""
    folder = Path(made.store.uri).parent
    monkeypatch.setenv("MM_HOME", str(folder))
    monkeypatch.delenv("MM_STORE", raising=False)
    return str(folder.parent / "cohorts" / "tiny" / "defs.yaml")


def export(*arguments: str, expect: int = 0) -> str:
    done = CliRunner().invoke(app, ["export", *arguments])
    assert done.exit_code == expect, done.output
    return done.stdout


def test_trident_holds_what_the_store_holds(cohort: str, made: Workspace, tmp_path: Path) -> None:
    rows = json.loads(export(cohort, "--format", "trident", "--out", str(tmp_path), "--json"))
    assert [row["slide"] for row in rows] == [GOOD, ALSO_GOOD, TRUNCATED, UNTRIED]
    for row in rows[:2]:
        table = made.store.read_arrow(ArtefactRef("tiny", TILES, row["slide"], "arrow"))
        assert (row["tiles"], row["skipped"]) == (table.num_rows, "")
        with h5py.File(tmp_path / FEATURES / f"{row['slide']}.h5") as h5:
            expected = np.array(table["embedding"].to_pylist(), np.float32)
            np.testing.assert_array_equal(h5["features"][:], expected)
            corners = np.array([table["x"].to_pylist(), table["y"].to_pylist()]).T
            np.testing.assert_array_equal(h5["coords"][:], corners)
            assert h5["coords"].attrs["patch_size_level0"] == table["size0"][0].as_py()
            assert h5["features"].attrs["weights"] == "random:0"
        tissue = made.store.read_bytes(ArtefactRef("tiny", "tissue", row["slide"], "geojson"))
        assert (tmp_path / "contours_geojson" / f"{row['slide']}.geojson").read_bytes() == tissue


def test_skipped_slides_say_why(cohort: str, tmp_path: Path) -> None:
    rows = json.loads(export(cohort, "--format", "stamp", "--out", str(tmp_path), "--json"))
    reasons = {row["slide"]: row["skipped"] for row in rows if not row["tiles"]}
    assert set(reasons) == {TRUNCATED, UNTRIED}
    assert "truncated" in reasons[TRUNCATED]
    assert reasons[UNTRIED] == "slide has not been made: run `mm materialize`"
    assert sorted(path.name for path in tmp_path.rglob("*.h5")) == [f"{GOOD}.h5", f"{ALSO_GOOD}.h5"]


def test_chosen_slides_replace_their_files_only(cohort: str, tmp_path: Path) -> None:
    export(cohort, "--format", "clam", "--out", str(tmp_path))
    for name in (GOOD, ALSO_GOOD):
        (tmp_path / "pt_files" / f"{name}.pt").write_bytes(b"old")
    export(cohort, "--format", "clam", "--out", str(tmp_path), "--slides", GOOD)
    assert (tmp_path / "pt_files" / f"{GOOD}.pt").stat().st_size > 1000
    assert (tmp_path / "pt_files" / f"{ALSO_GOOD}.pt").read_bytes() == b"old"


def test_nothing_to_export_is_a_failure(cohort: str, tmp_path: Path) -> None:
    shown = export(
        *(cohort, "--format", "parquet", "--out", str(tmp_path), "--slides", TRUNCATED), expect=1
    )
    assert TRUNCATED in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "zarr"), "no format is named 'zarr'; there are trident, clam, stamp"),
        (("--format", "clam", "--slides", "P9"), "unknown slides: P9"),
        (("--format", "clam", "--out", "s3://bucket/x"), "exports go to a local folder"),
    ],
)
def test_wrong_arguments_are_named(
    cohort: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = CliRunner().invoke(app, ["export", cohort, "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_embeddings_of_an_older_tissue_are_not_exported(
    cohort: str, made: Workspace, tmp_path: Path
) -> None:
    receipt = made.receipts.read("tiny", "tissue", GOOD)
    assert receipt is not None
    made.receipts.write(type(receipt)(**{**vars(receipt), "outputs": {"geojson": "sha256:other"}}))
    try:
        rows = json.loads(export(cohort, "--format", "clam", "--out", str(tmp_path), "--json"))
    finally:
        made.receipts.write(receipt)
    assert rows[0]["skipped"] == "tile_embeddings is older than tissue: run `mm materialize`"
    assert rows[1]["tiles"] > 0


def test_damaged_embeddings_are_skipped(cohort: str, made: Workspace, tmp_path: Path) -> None:
    ref = ArtefactRef("tiny", TILES, GOOD, "arrow")
    whole = made.store.read_bytes(ref)
    made.store.put(ref.key, whole[:-20])
    try:
        rows = json.loads(export(cohort, "--format", "clam", "--out", str(tmp_path), "--json"))
    finally:
        made.store.put(ref.key, whole)
    assert "damaged" in rows[0]["skipped"]
    assert rows[1]["tiles"] > 0


def test_a_folder_that_cannot_be_written_is_said_so(cohort: str, tmp_path: Path) -> None:
    (tmp_path / "patches").write_text("a file where a folder should be")
    done = CliRunner().invoke(app, ["export", cohort, "--format", "clam", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert f"{GOOD}: cannot write into the export folder: File exists" in str(done.exception)
    assert str(tmp_path) not in str(done.exception)

"""What `mm materialize --plan` says, from receipts and the cohort's prices."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm_assets_tests.cohorts import make_cohort, slide_name, truncate


def test_plan(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm_assets.cli import app, walk, workspace

    yaml = make_cohort(
        tmp_path / "tiny",
        patients=12,
        slides=3,
        omics=None,
        compute={"tile_embeddings": {"launcher": "sagemaker"}},
        prices={"ml.g5.xlarge": 3600.0},
    )
    truncate(yaml.parent / "slides" / slide_name("P001"))
    select = ["--select", "slide", "--select", "tissue", "--select", "tile_embeddings"]

    def planned() -> dict[str, dict[str, object]]:
        command = ["materialize", str(yaml), "--plan", "--json", *select]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return {row["stage"]: row for row in json.loads(result.output)}

    before = planned()
    assert {stage: row["slides"] for stage, row in before.items()} == {
        "slide": 3,
        "tissue": 3,
        "tile_embeddings": 3,
    }
    assert before["tissue"]["where"] == "here"
    assert before["tile_embeddings"]["where"] == "ml.g5.xlarge"
    assert before["tile_embeddings"]["hours"] is None
    space = workspace(str(yaml))
    assert not space.receipts.read_all("tiny", "slide")

    assert walk(space, ["slide"]) == {}
    after = planned()
    assert [after[stage]["slides"] for stage in after] == [0, 2, 2]
    _receipt_of_embeddings(space, seconds=36.0)
    row = planned()["tile_embeddings"]
    assert (row["hours"], row["cost"]) == (0.02, 72.0)
    select[:] = ["--select", "extremum_vectors_*"]
    assert {stage: row["slides"] for stage, row in planned().items()} == {
        "extremum_vectors_subtype": 2,
        "extremum_vectors_survival": 2,
    }


def _receipt_of_embeddings(space: object, seconds: float) -> None:
    """As an earlier cohort slide would have left it."""
    from mm_assets.resources.receipts import Receipt
    from mm_assets.resources.store import Provenance

    made = Provenance("tile_embeddings", "P999-S1", "2", {}, {})
    space.receipts.write(  # type: ignore[attr-defined]
        Receipt("tiny", "tile_embeddings", "P999-S1", "done", made, seconds=seconds)
    )

"""kill -9 in the middle of a run: nothing lost, nothing half-written, nothing done twice."""

from pathlib import Path

import pytest

from mm_assets_tests.cohorts import Cohort, make_cohort

SLIDES = 12
ASSET = "tile_embeddings"


def test_resume_after_kill(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mm_assets.cli import workspace

    yaml = make_cohort(tmp_path / "cohorts" / "tiny", SLIDES, omics=None)
    monkeypatch.setenv("MM_COHORTS", str(yaml.parent.parent))
    space = workspace(str(yaml))

    def finished() -> dict[str, str]:
        receipts = space.receipts.read_all("tiny", ASSET)
        return {slide: f"{r.created} {r.seconds}" for slide, r in receipts.items()}

    cohort, assets, killed_at = Cohort(yaml, home), ("slide", "tissue", ASSET), []
    for wanted in (2, 5):
        cohort.killed_materialize(*assets, when=lambda n=wanted: len(finished()) >= n)
        killed_at.append(finished())
        _assert_whole(space)
    assert 2 <= len(killed_at[0]) < len(killed_at[1]) < SLIDES

    cohort.mm("materialize", "tiny", *(part for name in assets for part in ("--select", name)))
    end = finished()
    assert len(end) == SLIDES
    assert {slide: end[slide] for slide in killed_at[1]} == killed_at[1]
    _assert_whole(space)

    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        import dagster as dg

        from mm_assets.assets.repair import repair_events

        repair_events(space, instance)
        made = instance.get_materialized_partitions(dg.AssetKey(["tiny", ASSET]))
        assert made == set(end)


def _assert_whole(space: object) -> None:
    """Every visible embedding file is complete, and every receipt has its file."""
    store = space.store  # type: ignore[attr-defined]
    for ref in store.list("tiny", ASSET):
        if ref.extension == "arrow":
            table = store.read_arrow(ref)
            assert table.num_rows == len(table.column("x")) > 0
    for slide, receipt in space.receipts.read_all("tiny", ASSET).items():  # type: ignore[attr-defined]
        assert receipt.state == "done", (slide, receipt.reason)
        assert space.receipts.valid("tiny", ASSET, slide, receipt.fingerprint)  # type: ignore[attr-defined]

"""New slides and the scheduled refresh, through the real daemon and without a click."""

from pathlib import Path

import pytest

from mm_assets_tests.cohorts import (
    make_cohort,
    paint_slide,
    patient_ids,
    quarantine_list,
    slide_name,
    truncate,
)
from mm_assets_tests.daemon import running_daemon, wait_for

TASK = {"name": "subtype", "kind": "classification", "column": "subtype", "classes": ["IDC", "ILC"]}
PER_SLIDE = ["slide", "tissue", "tile_embeddings", "region_embeddings"]
MODEL = "tiny.subtype.heec"


def test_a_new_slide_reaches_a_new_model_version(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import workspace
    from mm_assets.resources.home import dagster_instance

    cohorts = tmp_path / "cohorts"
    yaml = make_cohort(
        cohorts / "tiny",
        patients=16,
        slides=6,
        omics=None,
        tasks=[TASK],
        refresh={"cron": "* * * * *", "sensor": True, "sensor_seconds": 5},
    )
    monkeypatch.setenv("MM_COHORTS", str(cohorts))
    folder = cohorts / "tiny" / "slides"
    good, corrupt = patient_ids(8)[6:]
    space = workspace(str(yaml))

    def version_with(patients: list[str]) -> int | None:
        """The newest version, if it was made with the slides of these patients."""
        try:
            newest = space.tracking.version(MODEL, "challenger")
        except LookupError:
            try:
                newest = space.tracking.version(MODEL)
            except LookupError:
                return None
        lineage = str(space.tracking.lineage(newest))
        return newest.version if all(f"{p}-S1" in lineage for p in patients) else None

    with dagster_instance() as instance, running_daemon(home, cohorts) as log:
        # The clock may start a refresh before all slides are embedded: its model does not count.
        before = wait_for("a model", lambda: version_with(patient_ids(6)), 300, log)
        wait_for("the first report", lambda: _done(space, "cohort_report", "cohort"), 120, log)
        first = _receipts(space)
        assert set(first) == {f"{p}-S1" for p in patient_ids(6)}

        paint_slide(folder / slide_name(good), seed=99)
        draft = tmp_path / "draft.tiff"
        paint_slide(draft, seed=100)
        truncate(draft)
        draft.rename(folder / slide_name(corrupt))

        wait_for("the embedding", lambda: _done(space, PER_SLIDE[-1], f"{good}-S1"), 200, log)
        reason = wait_for(
            "the quarantine", lambda: quarantine_list(instance).get(f"{corrupt}-S1"), 60, log
        )
        assert "truncated" in reason or "end" in reason
        after = wait_for("the next model", lambda: version_with([good]), 200, log)

        later = _receipts(space)
        assert {slide: later[slide] for slide in first} == first
        assert set(later) - set(first) == {f"{good}-S1"}
        assert f"{corrupt}-S1" not in instance.get_dynamic_partitions("tiny_slides")
    assert after > before
    assert f"{good}-S1" not in str(space.tracking.lineage(space.tracking.version(MODEL, before)))


def _done(space: object, asset: str, name: str) -> bool:
    receipt = space.receipts.read("tiny", asset, name)  # type: ignore[attr-defined]
    return receipt is not None and receipt.state == "done"


def _receipts(space: object) -> dict[str, tuple[str, ...]]:
    """Slide -> moments at which each per-slide asset was made."""
    made: dict[str, tuple[str, ...]] = {}
    for asset in PER_SLIDE:
        receipts = space.receipts.read_all("tiny", asset)  # type: ignore[attr-defined]
        for slide, receipt in receipts.items():
            if receipt.state == "done":
                made[slide] = (*made.get(slide, ()), f"{receipt.created} {receipt.seconds}")
    return made

"""A backfill through the real daemon, with corrupt slides among good ones."""

import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.dagster_run import DagsterRunStatus

from mm_assets_tests.cohorts import make_cohort, patient_ids, slide_name, spoil_corner
from mm_assets_tests.daemon import running_daemon, wait_for

SLIDES = 40
CHAIN = ["slide", "tissue", "tile_embeddings", "region_embeddings", "extremum_vectors_subtype"]


def test_corrupt_slides_do_not_stop_the_others(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.assets.intake import take_in
    from mm_assets.assets.stage import asset_key
    from mm_assets.cli import workspace
    from mm_assets.component import CohortComponent
    from mm_assets.resources.home import dagster_instance, default_resources

    cohorts = tmp_path / "cohorts"
    yaml = make_cohort(
        cohorts / "tiny",
        SLIDES,
        omics=None,
        # A selection is learned from the whole cohort; a backfill of slides does not wait for it.
        selection={"method": "none"},
        tasks=[
            {
                "name": "subtype",
                "kind": "classification",
                "column": "subtype",
                "classes": ["IDC", "ILC"],
            }
        ],
    )
    monkeypatch.setenv("MM_COHORTS", str(cohorts))
    corrupt = {f"{patient}-S1" for patient in patient_ids(SLIDES)[10:30:12]}
    for slide in corrupt:
        spoil_corner(cohorts / "tiny" / "slides" / slide_name(slide.removesuffix("-S1")))
    space = workspace(str(yaml))
    with dagster_instance() as instance:
        taken = take_in(space, instance)
        assert len(taken.added) == SLIDES
        cohort = CohortComponent(space.config).definitions()
        resources = dg.Definitions(resources=default_resources())
        graph = dg.Definitions.merge(cohort, resources).resolve_asset_graph()
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id="corrupt",
            asset_graph=graph,
            partition_names=sorted(taken.added),
            asset_selection=[asset_key("tiny", asset) for asset in CHAIN],
            backfill_timestamp=time.time(),
            tags={},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
        instance.add_backfill(backfill)
        with running_daemon(home, cohorts) as log:
            ended = wait_for("the end of the backfill", lambda: _ended(instance), 420, log)
        good = set(taken.added) - corrupt
        assert len(good) == 38
        assert ended.status == BulkActionStatus.COMPLETED_FAILED
        made = {a: instance.get_materialized_partitions(asset_key("tiny", a)) for a in CHAIN}
        assert made["slide"] == made["tissue"] == set(taken.added)
        for asset in CHAIN[2:]:
            assert made[asset] == good, asset
        assert _checks(instance) == {**dict.fromkeys(good, True), **dict.fromkeys(corrupt, False)}
        active = instance.get_runs(dg.RunsFilter(statuses=[DagsterRunStatus.STARTED]))
        assert not active
    reasons = space.receipts.read_many("tiny", "tile_embeddings", corrupt)
    assert set(reasons) == corrupt
    assert all("cannot be decoded near x=0, y=0" in r.reason for r in reasons.values())


def _ended(instance: dg.DagsterInstance) -> PartitionBackfill | None:
    backfill = instance.get_backfill("corrupt")
    running = (BulkActionStatus.REQUESTED, BulkActionStatus.FAILING, BulkActionStatus.CANCELING)
    return None if backfill is None or backfill.status in running else backfill


def _checks(instance: dg.DagsterInstance) -> dict[str, bool]:
    """Slide -> last outcome of the check of its tile embeddings."""
    from mm_assets.assets.stage import asset_key

    check = dg.AssetCheckKey(asset_key("tiny", CHAIN[2]), "slide_ok")
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=10_000)
    outcome: dict[str, bool] = {}
    for record in sorted(history, key=lambda record: record.id):
        event = record.event.dagster_event if record.event else None
        # Records of planned evaluations have no outcome.
        if event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            assert evaluation.partition is not None
            outcome[evaluation.partition] = evaluation.passed
    return outcome

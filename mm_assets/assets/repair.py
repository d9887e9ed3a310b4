"""Re-emit Dagster's events from receipts, which are the truth."""

from collections.abc import Mapping, Sequence

import dagster as dg

from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.intake import quarantine_event, take_in
from mm_assets.assets.slide_events import version_tags
from mm_assets.assets.stage import (
    CohortStage,
    SlideStage,
    Workspace,
    asset_key,
    slide_partitions,
)
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT


def repair_events(space: Workspace, instance: dg.DagsterInstance) -> int:
    """Write a runless event for every receipt whose data version Dagster does not know.

    Returns
    -------
    int
        Number of materializations written.
    """
    slides: list[str] = []
    if space.config.slides:
        found = take_in(space, instance)
        instance.report_runless_asset_event(quarantine_event(space.config, found.quarantined))
        partitions = slide_partitions(space.config.cohort)
        slides = list(instance.get_dynamic_partitions(partitions.name or ""))
    return sum(
        repair_stage(stage, space, instance, slides, compare_versions=True)
        for stage in cohort_stages(space.config)
    )


def repair_stage(
    stage: SlideStage | CohortStage,
    space: Workspace,
    instance: dg.DagsterInstance,
    slides: Sequence[str],
    *,
    compare_versions: bool,
) -> int:
    """Report what one stage has made and Dagster has not heard of; returns how many.

    Parameters
    ----------
    compare_versions
        Also look for outdated data versions, at one query an artefact; otherwise only for slides
        without any materialization, at one query an asset.
    """
    names = slides if isinstance(stage, SlideStage) else [COHORT]
    written = 0
    for asset in stage.outputs:
        receipts = space.receipts.read_many(space.config.cohort, asset, names)
        recorded = _recorded(instance, stage, asset, receipts, compare_versions)
        for name, receipt in receipts.items():
            if receipt.state == "done" and name not in recorded:
                _report(instance, asset, stage.code_version, receipt)
                written += 1
    return written


def _recorded(
    instance: dg.DagsterInstance,
    stage: SlideStage | CohortStage,
    asset: str,
    receipts: Mapping[str, Receipt],
    compare_versions: bool,
) -> set[str]:
    """Names whose present version, or at least some version, Dagster knows."""
    if compare_versions or isinstance(stage, CohortStage):
        return {name for name, receipt in receipts.items() if _known(instance, asset, receipt)}
    cohort = next((receipt.cohort for receipt in receipts.values()), "")
    return set(instance.get_materialized_partitions(asset_key(cohort, asset))) if cohort else set()


def _known(instance: dg.DagsterInstance, asset: str, receipt: Receipt) -> bool:
    partition = None if receipt.name == COHORT else receipt.name
    record = instance.get_latest_data_version_record(
        asset_key(receipt.cohort, asset), partition_key=partition
    )
    if record is None or record.asset_materialization is None:
        return False
    tags = record.asset_materialization.tags or {}
    return tags.get("dagster/data_version") == receipt.digest


def _report(instance: dg.DagsterInstance, asset: str, code_version: str, receipt: Receipt) -> None:
    partition = None if receipt.name == COHORT else receipt.name
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            asset_key(receipt.cohort, asset),
            partition=partition,
            metadata={**receipt.metadata, "made": receipt.created, "repaired": True},
            tags=version_tags(receipt, code_version),
        )
    )

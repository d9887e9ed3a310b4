"""A per-slide stage as a Dagster asset."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from mm_assets.assets.partitions import SlideRun
from mm_assets.assets.slide_events import SLIDE_OK, range_events, single_slide_events
from mm_assets.assets.stage import (
    SlideStage,
    Workspace,
    asset_key,
    asset_spec,
    slide_partitions,
)
from mm_assets.cohort.config import CohortConfig
from mm_assets.resources.engine import final_failures, retry_policy
from mm_assets.resources.home import keep_connections
from mm_assets.resources.launcher import launcher_for
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking


def slide_asset(
    config: CohortConfig,
    stage: SlideStage,
    ordinal: int,
    automation: dg.AutomationCondition[Any] | None,
) -> dg.AssetsDefinition:
    """Dagster asset (or subsettable multi-asset) of a per-slide stage.

    Parameters
    ----------
    ordinal
        Added to the chunk so that no two stages share a backfill policy: the backfill daemon
        joins neighbouring assets with equal policies into one run, in which the second would be
        skipped when one slide of the first fails.
    """
    keys = {asset_key(config.cohort, asset): asset for asset in stage.outputs}
    compute = stage.compute_for(config)

    @dg.multi_asset(
        name=f"{config.cohort}__{stage.name}",
        specs=[asset_spec(config.cohort, stage, asset, automation) for asset in stage.outputs],
        check_specs=[
            dg.AssetCheckSpec(SLIDE_OK, asset=key, description="The slide was processed.")
            for key in keys
        ],
        partitions_def=slide_partitions(config.cohort),
        # Also for a single asset: it makes outputs optional, which range runs do without.
        can_subset=True,
        backfill_policy=dg.BackfillPolicy.multi_run(compute.chunk + ordinal),
        pool=compute.pool,
        op_tags=compute.op_tags(),
        retry_policy=retry_policy(),
    )
    def _asset(
        context: dg.AssetExecutionContext, store: ArtefactStore, tracking: Tracking
    ) -> Iterator[Any]:
        keep_connections(context.instance)
        workspace = Workspace(config, store, tracking, context.log)
        wanted = [asset for key, asset in keys.items() if key in context.selected_asset_keys]
        run = SlideRun(stage, workspace, wanted, context.run_id)
        with final_failures():
            outcomes = run.outcomes(context.partition_keys, launcher_for(compute, context))
        if len(outcomes) == 1:
            yield from single_slide_events(config.cohort, wanted, outcomes[0])
        else:
            yield from range_events(config.cohort, stage, wanted, outcomes, context.log)

    return _asset

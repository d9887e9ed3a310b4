"""What a run of a per-slide stage tells Dagster: materializations, checks and failures."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.log import Log
from mm_assets.assets.stage import SlideStage, asset_key
from mm_assets.resources.receipts import Receipt

if TYPE_CHECKING:
    from mm_assets.assets.partitions import SlideOutcome

SLIDE_OK = "slide_ok"


def single_slide_events(
    cohort: str, assets: Sequence[str], outcome: "SlideOutcome"
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Events of a run of one slide: proper outputs, so that a chain of assets flows in one run."""
    if outcome.state not in ("done", "reused"):
        raise dg.Failure(f"{outcome.slide}: {outcome.reason}", allow_retries=False)
    for asset in assets:
        key = asset_key(cohort, asset)
        yield dg.MaterializeResult(
            asset_key=key,
            data_version=dg.DataVersion(outcome.receipts[asset].digest),
            metadata=_slide_metadata(outcome, asset),
            check_results=[dg.AssetCheckResult(asset_key=key, check_name=SLIDE_OK, passed=True)],
        )


def range_events(
    cohort: str,
    stage: SlideStage,
    assets: Sequence[str],
    outcomes: "Sequence[SlideOutcome]",
    log: Log,
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """Events of a run of a range of slides; the failure, if any, comes last."""
    for outcome in outcomes:
        if outcome.state == "waiting":
            log.info(f"{outcome.slide} is left out: {outcome.reason}")
            continue
        yield from _slide_events(cohort, stage.code_version, assets, outcome)
    bad = [o for o in outcomes if o.state in ("quarantined", "failed")]
    if bad:
        listing = "\n".join(f"{o.slide}: {o.reason}" for o in bad)
        left_out = sum(o.state == "waiting" for o in outcomes)
        others = f"{left_out} left out, the others are done" if left_out else "the others are done"
        raise dg.Failure(
            f"{len(bad)} of {len(outcomes)} slides could not be processed; {others}.\n{listing}",
            metadata={"slides": [o.slide for o in bad]},
            allow_retries=False,
        )


def _slide_events(
    cohort: str, code_version: str, assets: Sequence[str], outcome: "SlideOutcome"
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """Materialization, when there is one, and check of one slide of a range."""
    good = outcome.state in ("done", "reused")
    for asset in assets:
        key = asset_key(cohort, asset)
        if good:
            yield dg.AssetMaterialization(
                key,
                partition=outcome.slide,
                metadata=_slide_metadata(outcome, asset),
                tags=version_tags(outcome.receipts[asset], code_version),
            )
        yield dg.AssetCheckEvaluation(
            asset_key=key,
            check_name=SLIDE_OK,
            passed=good,
            partition=outcome.slide,
            metadata={} if good else {"reason": outcome.reason},
            blocking=False,
        )


def version_tags(receipt: Receipt, code_version: str) -> dict[str, str]:
    """Tags that make the receipt's digest Dagster's data version."""
    return {
        "dagster/data_version": receipt.digest,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": code_version,
    }


def _slide_metadata(outcome: "SlideOutcome", asset: str) -> dict[str, Any]:
    """Metadata for the UI: rich values when the slide was just made, else the receipt's."""
    produced = outcome.produced.get(asset)
    receipt = outcome.receipts[asset]
    return {
        **(produced.metadata if produced else receipt.metadata),
        "seconds": round(receipt.seconds, 3),
        "made": receipt.created,
        **({"reused": True} if produced is None else {}),
    }

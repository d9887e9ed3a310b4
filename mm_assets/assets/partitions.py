"""Streaming per-slide execution: the one loop behind every per-slide asset.

One run handles a chunk of slides. A slide that fails is recorded with its reason and never stops
the others. Receipts, written last, say what is done; Dagster's events are emitted in one burst at
the end of the run, in key order, so that a half-written range is never seen by a scheduler.
"""

import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Literal

import dagster as dg

from mm_assets.assets.ahead import one_ahead
from mm_assets.assets.compute import gpu_lease
from mm_assets.assets.progress import Progress
from mm_assets.assets.stage import (
    Job,
    Log,
    Produced,
    SlideStage,
    SlideWorker,
    TwoSteps,
    Workspace,
    asset_key,
    asset_spec,
    plain,
    slide_partitions,
)
from mm_assets.cohort.config import CohortConfig
from mm_assets.resources.home import keep_connections
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking
from mm_assets.wsi.errors import SlideError

SLIDE_OK = "slide_ok"
State = Literal["done", "reused", "quarantined", "failed", "waiting"]
_Prepared = AbstractContextManager[Callable[[], Mapping[str, Produced]]]


@dataclass(frozen=True)
class SlideOutcome:
    """What became of one slide in one stage.

    Attributes
    ----------
    state
        ``done`` (computed), ``reused`` (a valid receipt existed), ``quarantined`` (the slide
        itself is at fault: it is not tried again until the file changes), ``failed`` (anything
        else: tried again next time), ``waiting`` (something upstream is not there).
    """

    slide: str
    state: State
    receipts: Mapping[str, Receipt]
    produced: Mapping[str, Produced]
    reason: str = ""


class SlideRun:
    """One stage over a chunk of slides."""

    def __init__(
        self, stage: SlideStage, workspace: Workspace, assets: Sequence[str], run_id: str
    ) -> None:
        self.stage, self.workspace, self.assets, self.run_id = stage, workspace, assets, run_id
        self.receipts = workspace.receipts
        self.cohort = workspace.config.cohort
        self.upstream = {a: self.receipts.read_all(self.cohort, a) for a in stage.upstream}
        self.sources = stage.sources(workspace.config) if stage.sources else {}
        self._stack = ExitStack()
        self._worker: SlideWorker | None = None
        self._lock = Lock()

    def outcomes(self, slides: Sequence[str]) -> list[SlideOutcome]:
        """Process `slides`; results are in the order of `slides`."""
        progress = Progress(f"{self.cohort}/{self.stage.name}", len(slides), self.workspace.log)
        settled = self._settled(slides)
        outcomes = {}
        jobs = []
        for slide in slides:
            known = self._known(slide, settled.get(slide, {}))
            if known:
                outcomes[slide] = known
                progress.advance()
            else:
                jobs.append(self._job(slide, settled.get(slide, {})))
        with self._stack, closing(self._computed(jobs, settled)) as computed:
            for outcome in computed:
                outcomes[outcome.slide] = outcome
                progress.advance()
        return [outcomes[slide] for slide in slides]

    def pending(self, slides: Sequence[str]) -> list[str]:
        """Those of `slides` that would be computed now: inputs there, no valid receipt."""
        settled = self._settled(slides)
        return [
            slide
            for slide in slides
            if not self._blocked(slide) and len(settled.get(slide, {})) < len(self.assets)
        ]

    def _settled(self, slides: Sequence[str]) -> dict[str, dict[str, Receipt]]:
        """Slide -> asset -> receipt that makes computing unnecessary.

        Either the work is done, or the slide is known to be at fault and has not changed.
        """
        ready = [slide for slide in slides if not self._blocked(slide)]
        settled: dict[str, dict[str, Receipt]] = {}
        for asset in self.assets:
            wanted = {slide: self._provenance(asset, slide).fingerprint() for slide in ready}
            known = {
                slide: receipt
                for slide, receipt in self.receipts.read_many(self.cohort, asset, wanted).items()
                if is_quarantine(receipt) and receipt.fingerprint == wanted[slide]
            }
            known |= self.receipts.valid_many(self.cohort, asset, wanted)
            for slide, receipt in known.items():
                settled.setdefault(slide, {})[asset] = receipt
        return settled

    def _known(self, slide: str, settled: Mapping[str, Receipt]) -> SlideOutcome | None:
        """What can be said of a slide without computing."""
        blocked = self._blocked(slide)
        if blocked:
            return SlideOutcome(slide, "waiting", {}, {}, blocked)
        bad = next((r for r in settled.values() if r.state == "failed"), None)
        if bad:
            return SlideOutcome(slide, "quarantined", settled, {}, bad.reason)
        if settled.keys() >= set(self.assets):
            return SlideOutcome(slide, "reused", settled, {})
        return None

    def _job(self, slide: str, settled: Mapping[str, Receipt]) -> Job:
        missing = {a: self._provenance(a, slide) for a in self.assets if a not in settled}
        upstream = {a: {slide: r[slide]} for a, r in self.upstream.items()}
        return Job(self.workspace, slide, missing, upstream, self.run_id)

    def _computed(
        self, jobs: Sequence[Job], settled: Mapping[str, Mapping[str, Receipt]]
    ) -> Generator[SlideOutcome]:
        """Outcomes in the order of `jobs`: some slides at once, or the next prepared meanwhile."""

        def compute(job: Job, prepared: _Prepared) -> SlideOutcome:
            return self._compute(job, prepared, settled.get(job.name, {}))

        if self.stage.slides_at_once > 1:
            with ThreadPoolExecutor(self.stage.slides_at_once) as pool:
                yield from pool.map(compute, jobs, map(self._prepared, jobs))
        else:
            with closing(one_ahead(self._prepared, jobs)) as ahead:
                for job, prepared in ahead:
                    yield compute(job, prepared)

    @contextmanager
    def _prepared(self, job: Job) -> Iterator[Callable[[], Mapping[str, Produced]]]:
        worker = self._open_worker()
        if isinstance(worker, TwoSteps):
            with worker.prepare(job) as compute:
                yield compute
        else:
            yield partial(worker, job)

    def _compute(
        self, job: Job, prepared: _Prepared, reused: Mapping[str, Receipt]
    ) -> SlideOutcome:
        slide, missing = job.name, job.provenance
        started = time.monotonic()
        try:
            with prepared as compute:
                produced = compute()
            seconds = time.monotonic() - started
            made = {
                asset: self._write(asset, slide, missing[asset], seconds, produced=result)
                for asset, result in produced.items()
            }
            return SlideOutcome(slide, "done", {**reused, **made}, produced)
        except Exception as error:
            seconds = time.monotonic() - started
            own_fault = isinstance(error, SlideError)
            reason = str(error) if own_fault else f"{type(error).__name__}: {error}"
            if not own_fault:
                self.workspace.log.warning(f"{slide}: {traceback.format_exc()}")
            for asset, provenance in missing.items():
                self._write(asset, slide, provenance, seconds, reason=reason, own_fault=own_fault)
            return SlideOutcome(slide, "quarantined" if own_fault else "failed", {}, {}, reason)

    def _blocked(self, slide: str) -> str:
        for asset, receipts in self.upstream.items():
            receipt = receipts.get(slide)
            if receipt is None:
                return f"{asset} has not been made"
            if receipt.state != "done":
                return f"{asset}: {receipt.reason}"
        return ""

    def _provenance(self, asset: str, slide: str) -> Provenance:
        inputs = {a: {slide: r[slide].digest} for a, r in self.upstream.items()}
        if self.stage.sources:
            inputs["source"] = dict(self.sources.get(slide, {}))
        parameters = {**self.stage.parameters, **self.stage.own_parameters.get(asset, {})}
        return Provenance(asset, slide, self.stage.code_version, parameters, inputs)

    def _open_worker(self) -> SlideWorker:
        with self._lock:
            if self._worker is None:
                self._stack.enter_context(gpu_lease(self.stage.compute))
                self._worker = self._stack.enter_context(self.stage.worker(self.workspace))
            return self._worker

    def _write(
        self,
        asset: str,
        slide: str,
        provenance: Provenance,
        seconds: float,
        *,
        produced: Produced | None = None,
        reason: str = "",
        own_fault: bool = False,
    ) -> Receipt:
        receipt = Receipt(
            cohort=self.cohort,
            asset=asset,
            name=slide,
            state="done" if produced else "failed",
            provenance=provenance,
            outputs=dict(produced.outputs) if produced else {},
            reason=reason,
            metadata=plain(produced.metadata) if produced else {"quarantined": own_fault},
            seconds=seconds,
        )
        self.receipts.write(receipt)
        return receipt


def is_quarantine(receipt: Receipt) -> bool:
    """Whether the receipt says that the slide itself is at fault."""
    return receipt.state == "failed" and bool(receipt.metadata.get("quarantined"))


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
    compute = stage.compute.overridden(config.compute.get(stage.name))

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
    )
    def _asset(
        context: dg.AssetExecutionContext, store: ArtefactStore, tracking: Tracking
    ) -> Iterator[Any]:
        keep_connections(context.instance)
        workspace = Workspace(config, store, tracking, context.log)
        wanted = [asset for key, asset in keys.items() if key in context.selected_asset_keys]
        run = SlideRun(stage, workspace, wanted, context.run_id)
        outcomes = run.outcomes(context.partition_keys)
        if len(outcomes) == 1:
            yield from _single_slide_events(config.cohort, wanted, outcomes[0])
        else:
            yield from _range_events(config.cohort, stage, wanted, outcomes, context.log)

    return _asset


def _single_slide_events(
    cohort: str, assets: Sequence[str], outcome: SlideOutcome
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Events of a run of one slide: proper outputs, so that a chain of assets flows in one run."""
    if outcome.state not in ("done", "reused"):
        raise dg.Failure(f"{outcome.slide}: {outcome.reason}", allow_retries=False)
    for asset in assets:
        yield dg.MaterializeResult(
            asset_key=asset_key(cohort, asset),
            data_version=dg.DataVersion(outcome.receipts[asset].digest),
            metadata=_slide_metadata(outcome, asset),
            check_results=[dg.AssetCheckResult(check_name=SLIDE_OK, passed=True)],
        )


def _range_events(
    cohort: str,
    stage: SlideStage,
    assets: Sequence[str],
    outcomes: Sequence[SlideOutcome],
    log: Log,
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    for outcome in outcomes:
        if outcome.state == "waiting":
            log.info(f"{outcome.slide} is left out: {outcome.reason}")
            continue
        yield from _slide_events(cohort, stage.code_version, assets, outcome)
    bad = [o for o in outcomes if o.state in ("quarantined", "failed")]
    if bad:
        listing = "\n".join(f"{o.slide}: {o.reason}" for o in bad)
        raise dg.Failure(
            f"{len(bad)} of {len(outcomes)} slides could not be processed; the others are done.\n"
            + listing,
            metadata={"slides": [o.slide for o in bad]},
            allow_retries=False,
        )


def _slide_events(
    cohort: str, code_version: str, assets: Sequence[str], outcome: SlideOutcome
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


def _slide_metadata(outcome: SlideOutcome, asset: str) -> dict[str, Any]:
    """Metadata for the UI: rich values when the slide was just made, else the receipt's."""
    produced = outcome.produced.get(asset)
    receipt = outcome.receipts[asset]
    return {
        **(produced.metadata if produced else receipt.metadata),
        "seconds": round(receipt.seconds, 3),
        "made": receipt.created,
        **({"reused": True} if produced is None else {}),
    }

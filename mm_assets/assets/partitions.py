"""Streaming per-slide execution: the one loop behind every per-slide asset.

One run handles a chunk of slides. A slide that fails is recorded with its reason and never stops
the others. Receipts, written last, say what is done; Dagster's events are emitted in one burst at
the end of the run, in key order, so that a half-written range is never seen by a scheduler.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Literal

from mm_assets.assets.ahead import one_ahead
from mm_assets.assets.compute import gpu_lease
from mm_assets.assets.isolation import Loss, Report
from mm_assets.assets.progress import Progress
from mm_assets.assets.slides import patient_slides
from mm_assets.assets.stage import (
    Job,
    Produced,
    SlideStage,
    SlideWorker,
    TwoSteps,
    Workspace,
    plain,
)
from mm_assets.assets.weights_identity import weights_identities
from mm_assets.resources.estimate import spent
from mm_assets.resources.launcher import Launcher, LocalLauncher, Task
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT, Provenance, StoreError, StoreFullError
from mm_assets.wsi.errors import SlideError

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
        self.sources = stage.sources(workspace) if stage.sources else {}
        self.weights = {a: weights_identities(stage.weights.get(a, {})) for a in assets}
        self.siblings = patient_slides(workspace.config) if stage.patient_upstream else {}
        self._stack = ExitStack()
        self._worker: SlideWorker | None = None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What a child process needs: nothing that is open."""
        own = ("receipts", "_stack", "_worker", "_lock")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _stack=ExitStack(), _worker=None, _lock=Lock())
        self.receipts = self.workspace.receipts

    def outcomes(
        self,
        slides: Sequence[str],
        launcher: Launcher | None = None,
        tell: Callable[[SlideOutcome], None] = lambda outcome: None,
    ) -> list[SlideOutcome]:
        """Process `slides`; results are in the order of `slides`.

        Parameters
        ----------
        launcher
            Where the work is done; here by default.
        tell
            Called with each outcome as it comes.
        """
        progress = Progress(f"{self.cohort}/{self.stage.name}", len(slides), self.workspace.log)
        settled = self._settled(slides)
        outcomes: dict[str, SlideOutcome] = {}
        shares: dict[str, float] = {}

        def finished(slide: str, outcome: SlideOutcome) -> None:
            with self._lock:
                outcomes[slide] = outcome
                progress.advance()
            tell(outcome)

        def billed(slides: Sequence[str], seconds: float) -> None:
            shares.update(_shares([outcomes[slide] for slide in slides], seconds))

        for slide in slides:
            known = self._without_work(slide, settled.get(slide, {}))
            if known:
                finished(slide, known)
        todo = {s: settled.get(s, {}) for s in slides if s not in outcomes}
        try:
            task = self._task(todo, billed)
            lost = (launcher or LocalLauncher()).run(task, finished, self.workspace.log)
            for slide, loss in lost.items():
                finished(slide, self._lost(slide, todo[slide], loss))
        except StoreError as error:
            # Whatever else is tried would not be kept either: what is done is still reported.
            untried = [slide for slide in todo if slide not in outcomes]
            finished(untried[0], SlideOutcome(untried[0], "failed", {}, {}, str(error)))
            for slide in untried[1:]:
                finished(slide, SlideOutcome(slide, "waiting", {}, {}, "the store failed"))
        at_once = min(self.stage.slides_at_once, len(todo))
        return [self._with_costs(outcomes[s], shares.get(s), at_once) for s in slides]

    def _with_costs(
        self, outcome: SlideOutcome, billed: float | None, at_once: int
    ) -> SlideOutcome:
        """With the time of machines that the slide took and its cost, where that says something.

        Added up over slides and assets they are those of the machines: slides side by side share
        one, and so do assets that are made in one go.
        """
        if not outcome.produced:
            return outcome
        config, made = self.workspace.config, outcome.produced
        seconds = _took(outcome) / at_once if billed is None else billed
        costs = spent(self.stage.compute_for(config), config.prices, seconds / len(made))
        produced = {
            asset: replace(each, metadata={**each.metadata, **costs})
            for asset, each in made.items()
        }
        return replace(outcome, produced=produced)

    def _task(
        self,
        todo: Mapping[str, Mapping[str, Receipt]],
        billed: Callable[[Sequence[str], float], None],
    ) -> Task:
        workspace = self.workspace
        return Task(
            config=workspace.config,
            store=workspace.store,
            tracking=workspace.tracking,
            stage=self.stage.name,
            assets=self.assets,
            slides=list(todo),
            compute=self.stage.compute_for(workspace.config),
            work=partial(self._compute_all, todo),
            isolated=self.stage.isolated,
            at_once=self.stage.slides_at_once,
            recorded=self._recorded,
            billed=billed,
        )

    def _recorded(self, slide: str, shown: Mapping[str, Mapping[str, Any]]) -> SlideOutcome | None:
        """The outcome of a slide that was processed elsewhere, from its receipts."""
        receipts = {a: self.receipts.read(self.cohort, a, slide) for a in self.assets}
        made = {
            asset: receipt
            for asset, receipt in receipts.items()
            if receipt and receipt.fingerprint == self._provenance(asset, slide).fingerprint()
        }
        if len(made) < len(self.assets):
            return None
        bad = next((r for r in made.values() if r.state == "failed"), None)
        if bad:
            state: State = "quarantined" if is_quarantine(bad) else "failed"
            return SlideOutcome(slide, state, {}, {}, bad.reason)
        produced = {
            asset: Produced(r.outputs, {**r.metadata, **shown.get(asset, {})})
            for asset, r in made.items()
        }
        return SlideOutcome(slide, "done", made, produced)

    def _compute_all(
        self,
        settled: Mapping[str, Mapping[str, Receipt]],
        slides: Sequence[str],
        report: Report,
    ) -> None:
        """Compute `slides`, some at once or the next prepared meanwhile.

        In a child process where the stage is isolated.
        """
        self.workspace = replace(self.workspace, log=report)
        jobs = [self._job(slide, settled[slide]) for slide in slides]
        prepare = partial(self._prepared, report=report)

        def compute(job: Job, prepared: _Prepared) -> None:
            report.finished(job.name, self._compute(job, prepared, settled[job.name]))

        with self._stack:
            if self.stage.slides_at_once > 1:
                with ThreadPoolExecutor(self.stage.slides_at_once) as pool:
                    list(pool.map(compute, jobs, map(prepare, jobs)))
                return
            with closing(one_ahead(prepare, jobs)) as ahead:
                for job, prepared in ahead:
                    compute(job, prepared)

    def pending(self, slides: Sequence[str]) -> list[str]:
        """Those of `slides` that would be computed now: inputs there, no valid receipt."""
        settled = self._settled(slides)
        return [
            slide
            for slide in slides
            if not self._blocked(slide) and len(settled.get(slide, {})) < len(self.assets)
        ]

    def unfinished(self, slides: Sequence[str]) -> set[str]:
        """Those of `slides` without a valid receipt, whether or not what is upstream is there."""
        settled = self._settled(slides)
        return {slide for slide in slides if len(settled.get(slide, {})) < len(self.assets)}

    def quarantined_upstream(self) -> set[str]:
        """Slides that what the stage reads directly cannot be made of."""
        return {
            slide
            for receipts in self.upstream.values()
            for slide, receipt in receipts.items()
            if is_quarantine(receipt)
        }

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

    def _without_work(self, slide: str, settled: Mapping[str, Receipt]) -> SlideOutcome | None:
        """The outcome of a slide that needs no computing."""
        blocked = self._blocked(slide)
        if blocked:
            return SlideOutcome(slide, "waiting", {}, {}, blocked)
        bad = next((r for r in settled.values() if r.state == "failed"), None)
        if bad:
            return SlideOutcome(slide, "quarantined", settled, {}, bad.reason)
        if all(asset in settled for asset in self.assets):
            return SlideOutcome(slide, "reused", settled, {})
        return None

    def _job(self, slide: str, settled: Mapping[str, Receipt]) -> Job:
        upstream = {asset: self._read(asset, slide) for asset in self.upstream}
        return Job(self.workspace, slide, self._missing(slide, settled), upstream, self.run_id)

    @contextmanager
    def _prepared(self, job: Job, report: Report) -> Iterator[Callable[[], Mapping[str, Produced]]]:
        worker = self._open_worker()
        report.started(job.name)
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
        except StoreFullError:
            raise
        except Exception as error:
            own_fault = isinstance(error, SlideError)
            reason = str(error) if own_fault else f"{type(error).__name__}: {error}"
            if not own_fault:
                self.workspace.log.warning(f"{slide}: {traceback.format_exc()}")
            return self._failure(slide, missing, time.monotonic() - started, reason, own_fault)

    def _lost(self, slide: str, reused: Mapping[str, Receipt], loss: Loss) -> SlideOutcome:
        """The outcome of a slide that ended its process."""
        missing = self._missing(slide, reused)
        return self._failure(slide, missing, 0.0, loss.reason, loss.own_fault)

    def _failure(
        self,
        slide: str,
        missing: Mapping[str, Provenance],
        seconds: float,
        reason: str,
        own_fault: bool,
    ) -> SlideOutcome:
        for asset, provenance in missing.items():
            self._write(asset, slide, provenance, seconds, reason=reason, own_fault=own_fault)
        return SlideOutcome(slide, "quarantined" if own_fault else "failed", {}, {}, reason)

    def _missing(self, slide: str, reused: Mapping[str, Receipt]) -> dict[str, Provenance]:
        return {a: self._provenance(a, slide) for a in self.assets if a not in reused}

    def _blocked(self, slide: str) -> str:
        for asset, receipts in self.upstream.items():
            receipt = receipts.get(slide, receipts.get(COHORT))
            if receipt is None:
                return f"{asset} has not been made"
            if receipt.state != "done":
                return f"{asset}: {receipt.reason}"
        return ""

    def _read(self, asset: str, slide: str) -> dict[str, Receipt]:
        """Finished receipts of an upstream asset that work on the slide reads."""
        receipts = self.upstream[asset]
        names = self.siblings[slide] if asset in self.stage.patient_upstream else (slide,)
        found = {name: receipts.get(name) for name in (COHORT, *names)}
        return {name: r for name, r in found.items() if r and r.state == "done"}

    def _provenance(self, asset: str, slide: str) -> Provenance:
        inputs = {
            upstream: {
                name: receipt.digest for name, receipt in self._read(upstream, slide).items()
            }
            for upstream in self.upstream
        }
        if self.stage.sources or self.weights[asset]:
            inputs["source"] = {**self.sources.get(slide, {}), **self.weights[asset]}
        parameters = {**self.stage.parameters, **self.stage.own_parameters.get(asset, {})}
        return Provenance(asset, slide, self.stage.code_version, parameters, inputs)

    def _open_worker(self) -> SlideWorker:
        with self._lock:
            if self._worker is None:
                self._stack.enter_context(gpu_lease(self.stage.compute_for(self.workspace.config)))
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


def _shares(outcomes: Sequence[SlideOutcome], seconds: float) -> dict[str, float]:
    """What a job is billed, by finished slide, in proportion to the time each took in it."""
    took = {outcome.slide: _took(outcome) for outcome in outcomes if outcome.produced}
    total = sum(took.values()) or 1.0
    return {slide: seconds * each / total for slide, each in took.items()}


def _took(outcome: SlideOutcome) -> float:
    """Time of work on the slide, the same for all that was made in one go."""
    return max(outcome.receipts[asset].seconds for asset in outcome.produced)


def is_quarantine(receipt: Receipt) -> bool:
    """Whether the receipt says that the slide itself is at fault."""
    return receipt.state == "failed" and bool(receipt.metadata.get("quarantined"))

"""Where a stage's work on slides is done: on this machine, or as a job of SageMaker.

Stages do not know. The job does what this machine would do, against the same store, so that
artefacts and receipts are the same; receipts say what has become of each slide.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from mm_assets.assets.compute import Compute
from mm_assets.assets.isolation import Loss, Work, run_here, run_isolated
from mm_assets.assets.log import Log
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.sources import is_remote
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.estimate import Estimate, estimate, seconds_a_slide
from mm_assets.resources.receipts import Receipts
from mm_assets.resources.sagemaker import Context, PipesSageMakerClient, SageMakerError
from mm_assets.resources.sagemaker_request import SageMakerSettings, job_name
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking

MANIFEST = "slides.csv"
Finished = Callable[[str, Any], None]


@dataclass(frozen=True)
class Task:
    """Work of one stage on slides.

    Attributes
    ----------
    work, isolated
        How it is done on this machine, and whether in a child process.
    at_once
        Slides that are processed side by side.
    recorded
        Outcome of a slide as its receipts have it; None where there are none of this work.
    """

    config: CohortConfig
    store: ArtefactStore
    tracking: Tracking
    stage: str
    assets: Sequence[str]
    slides: Sequence[str]
    compute: Compute
    work: Work
    isolated: bool
    at_once: int
    recorded: Callable[[str], Any]


class Launcher(Protocol):
    """Does a task somewhere."""

    def run(self, task: Task, finished: Finished, log: Log) -> dict[str, Loss]:
        """Do the work, call `finished` with each slide and its outcome; the slides without one."""


class LocalLauncher:
    """Work in this process or in a child of it."""

    def run(self, task: Task, finished: Finished, log: Log) -> dict[str, Loss]:
        """Do the work here."""
        if task.isolated:
            memory = task.compute.memory_gib
            return run_isolated(task.work, task.slides, finished, log, memory)
        run_here(task.work, task.slides, finished, log)
        return {}


class SageMakerLauncher:
    """Work in a processing job, one for each task."""

    def __init__(self, settings: SageMakerSettings, context: Context) -> None:
        self.settings, self.context = settings, context

    def run(self, task: Task, finished: Finished, log: Log) -> dict[str, Loss]:
        """Take over the jobs that an earlier, killed run left; do the rest in one of our own.

        Raises
        ------
        ValueError
            When a job could not read the slides or write to the store.
        """
        _refuse_local(task)
        root = f"{task.store.uri.rstrip('/')}/{task.config.cohort}/_jobs/{task.stage}"
        client = PipesSageMakerClient(self.settings, root)
        waiting = _Waiting(task, finished)
        follow = partial(
            client.run, context=self.context, compute=task.compute, on_message=waiting.hear
        )
        for name, order in client.known().items():
            if waiting.reasons.keys() & set(order["slides"]):
                try:
                    follow(names=(name,), order=order)
                except SageMakerError as error:
                    log.warning(f"{error}; what it has not done is done anew")
                waiting.take_finished()
        if not waiting.reasons:
            return {}
        log.info(str(_estimate(task, len(waiting.reasons))))
        order, files = _order(replace(task, slides=tuple(waiting.reasons)))
        digest = bytes_digest(canonical_json(order)).removeprefix("sha256:")[:12]
        names = (
            job_name("mm", task.config.cohort, task.stage, digest=digest, attempt=attempt)
            for attempt in count(1)
        )
        reason = (
            "the job made something else: its image holds another version of mm_assets, or it "
            f"does not reach MLflow at {task.tracking.uri}"
        )
        try:
            follow(names=names, order=order, files=files)
        except SageMakerError as error:
            reason = str(error)
        waiting.take_finished()
        return {slide: Loss(told or reason, False) for slide, told in waiting.reasons.items()}


class _Waiting:
    """Slides without an outcome, and why if the job has said."""

    def __init__(self, task: Task, finished: Finished) -> None:
        self.task, self.finished = task, finished
        self.reasons = dict.fromkeys(task.slides, "")

    def hear(self, message: Mapping[str, str]) -> None:
        """A job says that it is through with a slide."""
        slide = message["slide"]
        if slide in self.reasons:
            self.reasons[slide] = message["reason"]
            self._take(slide, self.task.recorded(slide))

    def take_finished(self) -> None:
        """Slides that a job finished without being able to say so."""
        for slide in tuple(self.reasons):
            outcome = self.task.recorded(slide)
            if outcome is not None and outcome.state == "done":
                self._take(slide, outcome)

    def _take(self, slide: str, outcome: Any) -> None:
        if outcome is not None:
            del self.reasons[slide]
            self.finished(slide, outcome)


def launcher_for(compute: Compute, context: Context) -> Launcher:
    """The launcher that the stage's needs name."""
    if compute.launcher == "local":
        return LocalLauncher()
    return SageMakerLauncher(SageMakerSettings.from_environment(), context)


def _estimate(task: Task, slides: int) -> Estimate:
    config = task.config
    seconds = seconds_a_slide(Receipts(task.store), config.cohort, task.stage)
    return estimate(slides, task.compute, config.prices, seconds, task.at_once)


def _order(task: Task) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the job is told, and the files beside it."""
    config, files = task.config.model_dump(mode="json"), {}
    manifest = config["slides"]["manifest"]
    if manifest and not is_remote(manifest):
        files[MANIFEST] = Path(manifest).read_bytes()
        config["slides"]["manifest"] = MANIFEST
    order = {
        "config": config,
        "store": task.store.model_dump(),
        "tracking": {**task.tracking.model_dump(), "tracking_uri": task.tracking.uri},
        "stage": task.stage,
        "assets": list(task.assets),
        "slides": list(task.slides),
    }
    return order, files


def _refuse_local(task: Task) -> None:
    slides = task.config.slides
    for what, address in {
        "the store (MM_STORE)": task.store.uri,
        "slides.root": slides.root if slides else "",
    }.items():
        if not is_remote(address):
            raise ValueError(
                f"{task.stage}: launcher sagemaker needs {what} at s3://, not {address}"
            )

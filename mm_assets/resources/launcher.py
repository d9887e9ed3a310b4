"""Where a stage's work is done: on this machine, or as a job of SageMaker.

Stages do not know. The job does what this machine would do, against the same store, so that
artefacts and receipts are the same; receipts say what has become of each slide.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from mm_assets.assets.compute import Compute, gpu_lease
from mm_assets.assets.isolation import Loss, Work, run_here, run_isolated
from mm_assets.assets.log import Log
from mm_assets.assets.made import Made, unpack
from mm_assets.assets.stage import CohortStage, Stage, Workspace
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.sources import is_remote
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.estimate import estimate, seconds_before
from mm_assets.resources.job_folder import jobs_root
from mm_assets.resources.receipts import Receipt, Receipts
from mm_assets.resources.sagemaker import Context, Jobs, PipesSageMakerClient, SageMakerError
from mm_assets.resources.sagemaker_request import (
    ENTRYPOINT,
    PROCESSING,
    TRAINING,
    JobKind,
    SageMakerSettings,
    job_name,
)
from mm_assets.resources.store import COHORT, ArtefactStore
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
        Outcome of a slide as its receipts have it, with further metadata by asset; None where there
        are none of this work.
    billed
        Told the slides that a job has brought to an outcome, and the seconds that its service
        bills.
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
    recorded: Callable[[str, Mapping[str, Mapping[str, Any]]], Any]
    billed: Callable[[Sequence[str], float], None]


@dataclass(frozen=True)
class CohortTask:
    """Work of one stage on a whole cohort.

    Attributes
    ----------
    trains
        Whether it is a training, which can go on after it was ended.
    reads_slides
        Whether it opens the slides' files.
    fingerprint
        Of what is to be made.
    work
        How it is done on this machine; it leaves the receipt.
    """

    config: CohortConfig
    store: ArtefactStore
    tracking: Tracking
    stage: str
    compute: Compute
    trains: bool
    reads_slides: bool
    fingerprint: str
    work: Callable[[], Made]


class Launcher(Protocol):
    """Does a task somewhere."""

    def run(self, task: Task, finished: Finished, log: Log) -> dict[str, Loss]:
        """Do the work, call `finished` with each slide and its outcome; the slides without one."""

    def run_whole(self, task: CohortTask, log: Log) -> Made:
        """Do the work on the whole cohort."""


class LocalLauncher:
    """Work in this process or in a child of it."""

    def run(self, task: Task, finished: Finished, log: Log) -> dict[str, Loss]:
        """Do the work here."""
        if task.slides:
            _announce(task, log, len(task.slides), task.at_once)
        if task.isolated:
            memory = task.compute.memory_gib
            return run_isolated(task.work, task.slides, finished, log, memory)
        run_here(task.work, task.slides, finished, log)
        return {}

    def run_whole(self, task: CohortTask, log: Log) -> Made:
        """Do the work here."""
        _announce(task, log)
        with gpu_lease(task.compute):
            return task.work()


class SageMakerLauncher:
    """Work in a job, one for each task: a training job for trainings, else a processing job."""

    def __init__(self, settings: SageMakerSettings, context: Context) -> None:
        self.settings, self.context = settings, context

    def run(self, task: Task, finished: Finished, log: Log) -> dict[str, Loss]:
        """Take over the jobs that an earlier, killed run left; do the rest in one of our own.

        Raises
        ------
        ValueError
            When a job could not read the slides or write to the store.
        """
        _refuse_local(task, reads_slides=True)
        client = self._client(task)
        waiting = _Waiting(task, finished)
        follow = partial(
            client.run,
            context=self.context,
            compute=task.compute,
            on_message=waiting.hear,
            on_billed=waiting.charge,
            command=(*ENTRYPOINT, task.stage),
        )
        for name, order in client.known().items():
            if waiting.reasons.keys() & set(order["slides"]):
                try:
                    follow(names=(name,), order=order)
                except SageMakerError as error:
                    log.warning(f"{error}; what it has not done is done anew")
                waiting.close()
            else:
                client.tidy(name, PROCESSING)
        if not waiting.reasons:
            return {}
        log.info(_expected(task, len(waiting.reasons), task.at_once))
        order, files = job_order(task.config, task.store, task.tracking)
        order |= {"assets": list(task.assets), "slides": list(waiting.reasons)}
        names = _names(task, canonical_json(order))
        reason = _made_other(task)
        try:
            follow(names=names, order=order, files=files)
        except SageMakerError as error:
            reason = str(error)
        waiting.close()
        return {slide: Loss(told or reason, False) for slide, told in waiting.reasons.items()}

    def run_whole(self, task: CohortTask, log: Log) -> Made:
        """Take over the job that an earlier, killed run left, or do the work in one of our own.

        Raises
        ------
        ValueError
            When a job could not read the inputs or write to the store.
        SageMakerError
            When the job does not succeed, or makes something else.
        """
        _refuse_local(task, task.reads_slides)
        client, told, billed = self._client(task), list[Any](), list[float]()
        kind = TRAINING if task.trains else PROCESSING
        follow = partial(
            client.run,
            context=self.context,
            compute=task.compute,
            kind=kind,
            on_message=told.append,
            on_billed=billed.append,
            command=(*ENTRYPOINT, task.stage),
        )
        if not _adopt(task, client, kind, follow, log):
            log.info(_expected(task, None))
            order, files = job_order(task.config, task.store, task.tracking)
            order |= {"fingerprint": task.fingerprint}
            # By what is made alone: a job with a longer limit goes on where the last was ended.
            aim = canonical_json([task.store.uri, task.config.cohort, task.fingerprint])
            follow(names=_names(task, aim), order=order, files=files)
        made = _made(task, told)
        _mirror(task.tracking, made.receipt)
        return made._replace(billed=sum(billed))

    def _client(self, task: Task | CohortTask) -> PipesSageMakerClient:
        root = jobs_root(task.store.uri, task.config.cohort, task.stage)
        return PipesSageMakerClient(self.settings, root)


class _Waiting:
    """Slides without an outcome, and why if the job has said."""

    def __init__(self, task: Task, finished: Finished) -> None:
        self.task, self.finished = task, finished
        self.reasons = dict.fromkeys(task.slides, "")
        self._taken, self._seconds = list[str](), 0.0

    def hear(self, message: Mapping[str, Any]) -> None:
        """A job says that it is through with a slide."""
        slide = message["slide"]
        if slide in self.reasons:
            self.reasons[slide] = message["reason"]
            shown = {asset: unpack(told) for asset, told in message["shown"].items()}
            self._take(slide, self.task.recorded(slide, shown))

    def charge(self, seconds: float) -> None:
        """The service bills so much for a job."""
        self._seconds += seconds

    def close(self) -> None:
        """The job is over: take what it could not tell any more, and hand its bill on."""
        for slide in tuple(self.reasons):
            outcome = self.task.recorded(slide, {})
            # Slides of such receipts were not asked for: these are new. Failures may be old.
            if outcome is not None and outcome.state in ("done", "quarantined"):
                self._take(slide, outcome)
        self.task.billed(self._taken, self._seconds)
        self._taken, self._seconds = [], 0.0

    def _take(self, slide: str, outcome: Any) -> None:
        if outcome is not None:
            del self.reasons[slide]
            self._taken.append(slide)
            self.finished(slide, outcome)


def launcher_for(compute: Compute, context: Context) -> Launcher:
    """The launcher that the stage's needs name."""
    if compute.launcher == "local":
        return LocalLauncher()
    return SageMakerLauncher(SageMakerSettings.from_environment(), context)


def tidy_jobs(stage: Stage, workspace: Workspace) -> None:
    """See to what killed runs left of a stage's jobs, where there is nothing more for it to do."""
    kind = stage.elsewhere if isinstance(stage, CohortStage) else "processing"
    remote = stage.compute_for(workspace.config).launcher != "local"
    if not kind or not remote or not is_remote(workspace.store.uri):
        return
    cohort = workspace.config.cohort
    jobs = Jobs(jobs_root(workspace.store.uri, cohort, stage.name))
    known = jobs.known()
    for name in known:
        jobs.tidy(name, TRAINING if kind == "training" else PROCESSING)
    made = workspace.receipts.read(cohort, stage.name, COHORT) if known else None
    if made:
        _mirror(workspace.tracking, made)


def _mirror(tracking: Tracking, made: Receipt) -> None:
    """Have SageMaker's model packages follow what a job has registered: jobs do not see to it."""
    if model := made.metadata.get("registered_model"):
        tracking.mirror(str(model))


def _adopt(
    task: CohortTask,
    client: PipesSageMakerClient,
    kind: JobKind,
    follow: Callable[..., Any],
    log: Log,
) -> bool:
    """Whether a job that was left has done the work; jobs of other inputs are stopped."""
    for name, order in client.known().items():
        if order["fingerprint"] != task.fingerprint:
            # It would write over what is made now.
            client.discard(name, kind, log)
            continue
        try:
            follow(names=(name,), order=order)
        except SageMakerError as error:
            log.warning(f"{error}; it is done anew")
        else:
            return True
    return False


def _made(task: CohortTask, told: Sequence[Mapping[str, Any]]) -> Made:
    """What a job says that it made."""
    made = Made.from_message(told[-1])
    if made.receipt.fingerprint != task.fingerprint:
        raise SageMakerError(f"{task.stage}: {_made_other(task)}")
    return made


def _made_other(task: Task | CohortTask) -> str:
    return (
        "the job made something else: its image holds another version of mm_assets, or it does "
        f"not reach MLflow at {task.tracking.uri}"
    )


def _announce(
    task: Task | CohortTask, log: Log, slides: int | None = None, at_once: int = 1
) -> None:
    """Say what the work will take on this machine; in a job it was said before the launch."""
    if task.compute.launcher == "local":
        log.info(_expected(task, slides, at_once))


def _expected(task: Task | CohortTask, slides: int | None, at_once: int = 1) -> str:
    config = task.config
    seconds = seconds_before(Receipts(task.store), config.cohort, task.stage)
    return str(estimate(slides, task.compute, config.prices, seconds, at_once))


def _names(task: Task | CohortTask, aim: bytes) -> Iterator[str]:
    """Names of the attempts at a job that is told apart from others by `aim`."""
    digest = bytes_digest(aim).removeprefix("sha256:")[:12]
    for attempt in count(1):
        yield job_name("mm", task.config.cohort, task.stage, digest=digest, attempt=attempt)


def job_order(
    config: CohortConfig, store: ArtefactStore, tracking: Tracking
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What every job is told, and the files beside it."""
    told, files = config.model_dump(mode="json"), {}
    manifest = told["slides"] and told["slides"]["manifest"]
    if manifest and not is_remote(manifest):
        files[MANIFEST] = Path(manifest).read_bytes()
        told["slides"]["manifest"] = MANIFEST
    order = {
        "config": told,
        "store": store.model_dump(),
        "tracking": {**tracking.model_dump(), "tracking_uri": tracking.uri},
    }
    return order, files


def _refuse_local(task: Task | CohortTask, reads_slides: bool) -> None:
    needed = {"the store (MM_STORE)": task.store.uri}
    if reads_slides and task.config.slides:
        needed["slides.root"] = task.config.slides.root
    for what, address in needed.items():
        if not is_remote(address):
            raise ValueError(
                f"{task.stage}: launcher sagemaker needs {what} at s3://, not {address}"
            )

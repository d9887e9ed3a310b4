"""SageMaker's hyper-parameter tuning jobs: searches by a service, adopted after a kill.

A tuning job's children run the image's ``train``; the service lets nothing else be said. They read
which search they belong to among their hyper-parameters.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.s3 import s3_client
from mm_assets.cohort.sources import is_remote
from mm_assets.models.tuning import Range
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.estimate import Estimate, estimate_trials, trial_seconds_before
from mm_assets.resources.job_folder import ORDER, JobFolder, job_folders, jobs_root
from mm_assets.resources.sagemaker import (
    CAPACITY_ATTEMPTS,
    CapacityError,
    Jobs,
    SageMakerError,
    aws_client,
)
from mm_assets.resources.sagemaker_request import Place, SageMakerSettings, job_name

OBJECTIVE = "gain"
OBJECTIVE_LINE = OBJECTIVE + "={!r};"
_NAME_CHARACTERS = 32
_AT_ONCE = 8  # tuning jobs; the service's default quota allows more
_OVER = ("Completed", "Failed", "Stopped")
_STOP_SECONDS = 300.0  # trials have 120 between SIGTERM and SIGKILL, then leave their files
_FAULTS = 3  # of the service, after each of which a trial begins again
_KEY = TypeVar("_KEY")


@dataclass(frozen=True)
class TuningSearch:
    """One search.

    Attributes
    ----------
    told
        Hyper-parameters of every trial alike: which search it is.
    space
        Values that the others can take.
    """

    told: Mapping[str, str]
    space: Mapping[str, Range]


@dataclass(frozen=True)
class Trial:
    """A finished trial: its settings, its objective, and the seconds it took."""

    settings: dict[str, float]
    gain: float
    seconds: float


class TuningJobs:
    """Runs searches as tuning jobs of SageMaker, several at once.

    Parameters
    ----------
    stage
        Whose searches they are.
    compute
        What one trial needs; `Compute.hours` limits it.
    trials, parallel
        Trials of a search, and how many of them at once.

    Attributes
    ----------
    seconds
        Time of the machines of all trials of the searches that are over, finished trials or not.
    """

    def __init__(
        self, workspace: Workspace, stage: str, compute: Compute, trials: int, parallel: int
    ) -> None:
        if not is_remote(workspace.store.uri):
            raise ValueError(
                f"{stage}: tuning by sagemaker needs the store (MM_STORE) at s3://, not "
                f"{workspace.store.uri}"
            )
        self.workspace, self.stage, self.compute = workspace, stage, compute
        self.trials, self.parallel = trials, min(parallel, trials)
        self.jobs = Jobs(jobs_root(workspace.store.uri, workspace.config.cohort, stage))
        self.seconds = 0.0
        self.settings = SageMakerSettings.from_environment()
        self.sagemaker = aws_client("sagemaker")

    def run(
        self,
        searches: Mapping[_KEY, TuningSearch],
        order: Mapping[str, Any],
        files: Mapping[str, bytes],
        advance: Callable[[], None],
    ) -> dict[_KEY, list[Trial]]:
        """All searches to their end; those that an earlier, killed run began are adopted.

        If its inputs were others, they are stopped. Each has a folder on S3 until its outcome is
        taken.

        Parameters
        ----------
        order, files
            What trials are told, and the files beside it.
        advance
            Called when a search is over.

        Returns
        -------
        dict
            Finished trials of each search, at least one.

        Raises
        ------
        SageMakerError
            When a search ends without a single finished trial, or somebody stops it. Searches
            under way are then stopped, as they are at an interrupt.
        CapacityError
            When the account's quota allows not even one search, several times.
        """
        digest = bytes_digest(canonical_json(order)).removeprefix("sha256:")[:10]
        self._stop([name for name in self._begun() if not name.startswith(f"mm-{digest}-")])
        self.workspace.log.info(str(self._expected(len(searches) * self.trials)))
        begin = partial(self._begin, digest, {**files, ORDER: json.dumps(order).encode()})
        running: dict[_KEY, str] = {}
        try:
            return dict(self._follow(searches, running, begin, advance))
        except BaseException:
            self._stop(list(running.values()))
            raise

    def _follow(
        self,
        searches: Mapping[_KEY, TuningSearch],
        running: dict[_KEY, str],
        begin: Callable[[TuningSearch], str],
        advance: Callable[[], None],
    ) -> Iterator[tuple[_KEY, list[Trial]]]:
        """Each search and its trials as it ends; `running` holds the names of those under way."""
        waiting, room = list(searches), _Room(self.settings.capacity_seconds)
        while waiting or running:
            while waiting and len(running) < _AT_ONCE and room.is_likely():
                try:
                    running[waiting[0]] = begin(searches[waiting[0]])
                except CapacityError as error:
                    room.refuse()
                    if room.is_hopeless and not running:
                        raise
                    self.workspace.log.warning(f"{error}; it is tried again")
                else:
                    del waiting[0]
            for key, name in list(running.items()):
                if self._is_over(name):
                    self.jobs.folder(running.pop(key)).clear()
                    yield key, self._finished(name, searches[key])
                    room = _Room(self.settings.capacity_seconds)
                    advance()
            if waiting or running:
                time.sleep(self.settings.poll_seconds)

    def _begun(self) -> list[str]:
        """Names of the tuning jobs that a killed run left."""
        return list(job_folders(s3_client(), self.jobs.bucket, self.jobs.prefix))

    def _expected(self, trials: int) -> Estimate:
        config = self.workspace.config
        seconds = trial_seconds_before(self.workspace.receipts, config.cohort, self.stage)
        return estimate_trials(trials, self.compute, config.prices, seconds)

    def _begin(self, digest: str, files: Mapping[str, bytes], search: TuningSearch) -> str:
        """Create the search's job, or adopt it; its name."""
        own = bytes_digest(canonical_json(dict(search.told))).removeprefix("sha256:")[:6]
        refused = self.sagemaker.exceptions
        for attempt in count(1):
            name = job_name(
                "mm", digest=f"{digest}-{own}", attempt=attempt, characters=_NAME_CHARACTERS
            )
            folder = self.jobs.folder(name)
            for file, content in files.items():
                folder.put(file, content)
            try:
                self.sagemaker.create_hyper_parameter_tuning_job(
                    HyperParameterTuningJobName=name, **self._request(search, folder)
                )
            except refused.ResourceInUse:
                # A search that ended well is as good as one that still runs.
                if self._settled_status(name) in ("InProgress", "Completed"):
                    self.workspace.log.info(f"tuning job {name} is there already: adopted")
                    return name
                folder.clear()
            except refused.ClientError as error:
                folder.clear()
                if isinstance(error, refused.ResourceLimitExceeded):
                    raise CapacityError(f"{name}: {error}") from error
                raise
            else:
                return name
        raise AssertionError

    def _request(self, search: TuningSearch, folder: JobFolder) -> dict[str, Any]:
        settings = self.settings
        place = Place(folder.inputs, folder.outputs, "")
        seconds = max(1, round(self.compute.hours * 3600))
        pattern = re.escape(f"{OBJECTIVE}=") + "([-+0-9.e]+);"
        return {
            "HyperParameterTuningJobConfig": {
                "Strategy": "Bayesian",
                "HyperParameterTuningJobObjective": {
                    "Type": "Maximize",
                    "MetricName": OBJECTIVE,
                },
                "ResourceLimits": {
                    "MaxNumberOfTrainingJobs": self.trials,
                    "MaxParallelTrainingJobs": self.parallel,
                },
                "ParameterRanges": _ranges(search.space),
                "RandomSeed": self.workspace.config.evaluation.seed,
            },
            "TrainingJobDefinition": {
                "StaticHyperParameters": dict(search.told),
                "AlgorithmSpecification": {
                    "TrainingImage": settings.image,
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": OBJECTIVE, "Regex": pattern}],
                },
                "RoleArn": settings.role,
                "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
                "RetryStrategy": {"MaximumRetryAttempts": _FAULTS},
                "Environment": dict(settings.environment),
                **settings.training_parts(place, self.compute),
            },
        }

    def _describe(self, name: str) -> dict[str, Any]:
        facts: dict[str, Any] = self.sagemaker.describe_hyper_parameter_tuning_job(
            HyperParameterTuningJobName=name
        )
        return facts

    def _status(self, name: str) -> str:
        return str(self._describe(name)["HyperParameterTuningJobStatus"])

    def _settled_status(self, name: str) -> str:
        """Status of a job that nobody is stopping any more."""
        while (status := self._status(name)) == "Stopping":
            time.sleep(self.settings.poll_seconds)
        return status

    def _is_over(self, name: str) -> bool:
        try:
            return self._status(name) in _OVER
        except self.sagemaker.exceptions.ResourceNotFound:
            return True

    def _finished(self, name: str, search: TuningSearch) -> list[Trial]:
        facts = self._describe(name)
        status = facts["HyperParameterTuningJobStatus"]
        trials = self._trials(name, search) if status == "Completed" else []
        if not trials:
            reason = facts.get("FailureReason") or "it was stopped, or no trial finished"
            raise SageMakerError(f"SageMaker tuning job {name}: {status}: {reason}")
        return trials

    def _trials(self, name: str, search: TuningSearch) -> list[Trial]:
        pages = self.sagemaker.get_paginator(
            "list_training_jobs_for_hyper_parameter_tuning_job"
        ).paginate(HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending")
        summaries = [summary for page in pages for summary in page["TrainingJobSummaries"]]
        self.seconds += sum(map(_seconds, summaries))
        return [
            _trial(summary, search.space)
            for summary in summaries
            if summary["TrainingJobStatus"] == "Completed"
            and "FinalHyperParameterTuningJobObjectiveMetric" in summary
        ]

    def _stop(self, names: list[str]) -> None:
        """Stop tuning jobs, wait for their end, and remove what is left of them on S3."""
        for name in names:
            self.workspace.log.warning(f"SageMaker tuning job {name} is stopped")
            with suppress(self.sagemaker.exceptions.ClientError):
                self.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        deadline = time.monotonic() + _STOP_SECONDS
        while not all(map(self._is_over, names)) and time.monotonic() < deadline:
            time.sleep(self.settings.poll_seconds)
        for name in names:
            self.jobs.folder(name).clear()


class _Room:
    """Whether the account's quota is likely to allow one more search."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._refusals, self._again = seconds, 0, 0.0

    def is_likely(self) -> bool:
        """Whether it is worth a try."""
        return time.monotonic() >= self._again

    @property
    def is_hopeless(self) -> bool:
        """Whether it was tried often enough."""
        return self._refusals == CAPACITY_ATTEMPTS

    def refuse(self) -> None:
        """Take note that there was none: the next try is later each time."""
        self._refusals = min(self._refusals + 1, CAPACITY_ATTEMPTS)
        self._again = time.monotonic() + self._seconds * 2**self._refusals


def _ranges(space: Mapping[str, Range]) -> dict[str, list[dict[str, str]]]:
    """`ParameterRanges`."""
    found: dict[str, list[dict[str, str]]] = {
        "IntegerParameterRanges": [],
        "ContinuousParameterRanges": [],
    }
    for name, limits in space.items():
        kind = "IntegerParameterRanges" if limits.integer else "ContinuousParameterRanges"
        found[kind].append(
            {
                "Name": name,
                "MinValue": str(limits.low),
                "MaxValue": str(limits.high),
                "ScalingType": "Logarithmic" if limits.log else "Linear",
            }
        )
    return found


def _trial(summary: Mapping[str, Any], space: Mapping[str, Range]) -> Trial:
    tuned = summary["TunedHyperParameters"]
    return Trial(
        {name: limits.parse(tuned[name]) for name, limits in space.items()},
        float(summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]),
        _seconds(summary),
    )


def _seconds(summary: Mapping[str, Any]) -> float:
    """Time of a trial's machine, if it got one."""
    if "TrainingStartTime" not in summary:
        return 0.0
    took = summary["TrainingEndTime"] - summary["TrainingStartTime"]
    return float(took.total_seconds())

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
from itertools import count
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import Workspace
from mm_assets.cohort.s3 import s3_client
from mm_assets.cohort.sources import is_remote
from mm_assets.models.tuning import Range
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.estimate import estimate
from mm_assets.resources.job_folder import ORDER, JobFolder, job_folders
from mm_assets.resources.sagemaker import SageMakerError, aws_client
from mm_assets.resources.sagemaker_request import Place, SageMakerSettings, job_name

OBJECTIVE = "gain"
OBJECTIVE_LINE = OBJECTIVE + "={!r};"
_NAME_CHARACTERS = 32
_AT_ONCE = 8  # tuning jobs; the service's default quota allows more
_OVER = ("Completed", "Failed", "Stopped")
_BEGUN = "begun"  # below it an empty file for every tuning job, named like it
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

        If its inputs were others, they are stopped.

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
            When a search ends without a single finished trial. Searches under way are stopped, as
            they are at an interrupt.
        """
        digest = bytes_digest(canonical_json(order)).removeprefix("sha256:")[:10]
        self._discard_others(digest)
        folder = self._folder(digest)
        for name, content in files.items():
            folder.put(name, content)
        folder.put(ORDER, json.dumps(order).encode())
        self._tell_costs(len(searches) * self.trials)
        running: dict[_KEY, str] = {}
        try:
            return dict(self._follow(searches, running, folder, digest, advance))
        except BaseException:
            self._stop(list(running.values()))
            raise
        finally:
            folder.clear()

    def _follow(
        self,
        searches: Mapping[_KEY, TuningSearch],
        running: dict[_KEY, str],
        folder: JobFolder,
        digest: str,
        advance: Callable[[], None],
    ) -> Iterator[tuple[_KEY, list[Trial]]]:
        """Each search and its trials as it ends; `running` holds the names of those under way."""
        waiting = list(searches)
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                key = waiting.pop(0)
                running[key] = self._begin(searches[key], folder, digest)
            for key, name in list(running.items()):
                if self._is_over(name):
                    yield key, self._finished(name, searches[key])
                    del running[key]
                    advance()
            time.sleep(self.settings.poll_seconds if running else 0)

    def _folder(self, digest: str) -> JobFolder:
        """What lies on S3 for the trials of all searches."""
        bucket, prefix = self._place()
        return JobFolder(s3_client(), bucket, f"{prefix}/{digest}")

    def _place(self) -> tuple[str, str]:
        """Bucket and prefix of the folders of all runs of the stage."""
        address, cohort = urlsplit(self.workspace.store.uri), self.workspace.config.cohort
        place = f"{address.path}/{cohort}/_jobs/{self.stage}".strip("/")
        return address.netloc, place.replace("//", "/")

    def _discard_others(self, digest: str) -> None:
        """Stop searches that a killed run left and whose inputs have changed since."""
        for name, folder in job_folders(s3_client(), *self._place()).items():
            if name != digest:
                self._stop(folder.names(_BEGUN))
                folder.clear()

    def _tell_costs(self, trials: int) -> None:
        prices = self.workspace.config.prices
        expected = estimate(None, self.compute, prices, None)
        self.workspace.log.info(
            f"{trials} trials of {self.compute.hours:g} hours at most each; {expected}"
        )

    def _begin(self, search: TuningSearch, folder: JobFolder, digest: str) -> str:
        """Create the search's job, or adopt it; its name."""
        own = bytes_digest(canonical_json(dict(search.told))).removeprefix("sha256:")[:6]
        for attempt in count(1):
            name = job_name(
                "mm", digest=f"{digest}-{own}", attempt=attempt, characters=_NAME_CHARACTERS
            )
            folder.put(f"{_BEGUN}/{name}", b"")
            try:
                self.sagemaker.create_hyper_parameter_tuning_job(
                    HyperParameterTuningJobName=name, **self._request(search, folder)
                )
            except self.sagemaker.exceptions.ResourceInUse:
                # A search that ended well is as good as one that still runs.
                if self._status(name) in ("InProgress", "Completed", "Stopping"):
                    self.workspace.log.info(f"tuning job {name} is there already: adopted")
                    return name
                continue
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

    def _is_over(self, name: str) -> bool:
        return self._status(name) in _OVER

    def _finished(self, name: str, search: TuningSearch) -> list[Trial]:
        pages = self.sagemaker.get_paginator(
            "list_training_jobs_for_hyper_parameter_tuning_job"
        ).paginate(HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending")
        trials = [
            _trial(summary, search.space)
            for page in pages
            for summary in page["TrainingJobSummaries"]
            if summary["TrainingJobStatus"] == "Completed"
            and "FinalHyperParameterTuningJobObjectiveMetric" in summary
        ]
        if not trials:
            facts = self._describe(name)
            reason = facts.get("FailureReason") or "no trial finished"
            status = facts["HyperParameterTuningJobStatus"]
            raise SageMakerError(f"SageMaker tuning job {name}: {status}: {reason}")
        return trials

    def _stop(self, names: list[str]) -> None:
        """Stop tuning jobs; the service ends their trials."""
        for name in names:
            self.workspace.log.warning(f"SageMaker tuning job {name} is stopped")
            with suppress(self.sagemaker.exceptions.ClientError):
                self.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


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
    took = summary["TrainingEndTime"] - summary["TrainingStartTime"]
    return Trial(
        {name: limits.parse(tuned[name]) for name, limits in space.items()},
        float(summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]),
        took.total_seconds(),
    )

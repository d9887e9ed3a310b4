"""The training jobs of a tuning job: their objective, their summaries, lists of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.local.sagemaker.training import TrainingJob

_PAGE = 10
_RETRYABLE = "InternalServerError"


@dataclass(frozen=True)
class Trial:
    """A training job and the hyper-parameters that were drawn for it."""

    job: TrainingJob
    tuned: dict[str, str]
    metric: str

    @property
    def value(self) -> float | None:
        """Its objective, once it has ended well or was stopped."""
        counts = self.job.is_over and self.job.status != "Failed"
        return self.job.metrics.value(self.metric) if counts else None

    @property
    def objective(self) -> str:
        """`ObjectiveStatus`."""
        if not self.job.is_over:
            return "Pending"
        return "Failed" if self.value is None else "Succeeded"

    @property
    def counter(self) -> str:
        """Which of `TrainingJobStatusCounters` counts it."""
        if self.job.status == "Failed":
            is_retryable = self.job.failure.startswith(_RETRYABLE)
            return "RetryableError" if is_retryable else "NonRetryableError"
        return self.job.status if self.job.is_over else "InProgress"

    def summary(self, tuning_job: str) -> dict[str, Any]:
        """`HyperParameterTrainingJobSummary`."""
        facts: dict[str, Any] = {
            "TuningJobName": tuning_job,
            "TrainingJobName": self.job.name,
            "TrainingJobArn": self.job.arn,
            "TrainingJobStatus": self.job.status,
            "CreationTime": self.job.created,
            "TrainingStartTime": self.job.started,
            "TrainingEndTime": self.job.ended,
            "FailureReason": self.job.failure[:1024],
            "TunedHyperParameters": self.tuned,
            "ObjectiveStatus": self.objective,
        }
        if self.value is not None:
            metric = {"MetricName": self.metric, "Value": self.value}
            facts["FinalHyperParameterTuningJobObjectiveMetric"] = metric
        return {key: value for key, value in facts.items() if value}


def best(trials: Sequence[Trial], goal: str) -> Trial | None:
    """The trial whose objective is least (`Minimize`) or greatest."""
    valued = [(trial.value, trial) for trial in trials if trial.value is not None]
    choose = min if goal == "Minimize" else max
    return choose(valued, key=lambda pair: pair[0])[1] if valued else None


def page(trials: Sequence[Trial], tuning_job: str, request: dict[str, Any]) -> dict[str, Any]:
    """Answer to ListTrainingJobsForHyperParameterTuningJob; its tokens count trials."""
    sort = request.get("SortBy", "Name")
    wanted = request.get("StatusEquals")
    found = [
        trial
        for trial in trials
        if wanted in (None, trial.job.status)
        and (sort != "FinalObjectiveMetricValue" or trial.value is not None)
    ]
    keys = {
        "Name": lambda trial: trial.job.name,
        "CreationTime": lambda trial: trial.job.created,
        "Status": lambda trial: trial.job.status,
        "FinalObjectiveMetricValue": lambda trial: trial.value,
    }
    found.sort(key=keys[sort], reverse=request.get("SortOrder") == "Descending")
    begin = int(request.get("NextToken", 0))
    end = begin + request.get("MaxResults", _PAGE)
    more = {"NextToken": str(end)} if end < len(found) else {}
    return {
        "TrainingJobSummaries": [trial.summary(tuning_job) for trial in found[begin:end]],
        **more,
    }

"""Hyper-parameter tuning jobs: training jobs with drawn hyper-parameters, and the best of them."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from deploy.local.sagemaker import ranges
from deploy.local.sagemaker.jobs import Job
from deploy.local.sagemaker.process import TICK_SECONDS
from deploy.local.sagemaker.site import Site
from deploy.local.sagemaker.training import TrainingJob
from deploy.local.sagemaker.trials import Trial, best
from deploy.local.sagemaker.validation import known

Train = Callable[[dict[str, Any], str], TrainingJob]
_OBJECTIVE = "_tuning_objective_metric"
_NOT_DONE = {
    "": ("TrainingJobDefinitions", "WarmStartConfig", "Autotune"),
    "HyperParameterTuningJobConfig": ("StrategyConfig", "TuningJobCompletionCriteria"),
    "TrainingJobDefinition": (
        *("TuningObjective", "HyperParameterRanges", "CheckpointConfig"),
        "HyperParameterTuningResourceConfig",
    ),
}


class TuningJob(Job):
    """One tuning job.

    Parameters
    ----------
    train
        Starts a training job of a request for the tuning job of an ARN.
    """

    kind = "HyperParameterTuning"
    unknown = ("ResourceNotFound", "There is no hyperparameter tuning job named {name}")

    def __init__(self, request: dict[str, Any], arn: str, site: Site, train: Train) -> None:
        super().__init__(request, arn, site)
        self.config = request["HyperParameterTuningJobConfig"]
        self.trials: list[Trial] = []
        self._train = train
        goal = self.config["HyperParameterTuningJobObjective"]
        self._goal, self._metric = goal["Type"], goal["MetricName"]

    @classmethod
    def objections(cls, request: dict[str, Any]) -> Iterator[str]:
        """What the service refuses beyond its model, and what is not done here."""
        config = request["HyperParameterTuningJobConfig"]
        definition = request.get("TrainingJobDefinition", {})
        parts = {"": request, "HyperParameterTuningJobConfig": config}
        parts["TrainingJobDefinition"] = definition
        for part, members in _NOT_DONE.items():
            for member in members:
                if member in parts[part]:
                    yield f"{member}: not done here"
        limits = config["ResourceLimits"]
        if "MaxRuntimeInSeconds" in limits:
            yield "ResourceLimits: only MaxNumberOfTrainingJobs ends tuning jobs here"
        if config.get("TrainingJobEarlyStoppingType", "Off") != "Off":
            yield "TrainingJobEarlyStoppingType: nothing is stopped early here"
        if config["Strategy"] not in ("Random", "Bayesian"):
            yield f"strategy {config['Strategy']}: only Random and Bayesian are drawn here"
        needed = {
            "TrainingJobDefinition": definition,
            "HyperParameterTuningJobObjective": config.get("HyperParameterTuningJobObjective"),
            "MaxNumberOfTrainingJobs": limits.get("MaxNumberOfTrainingJobs"),
        }
        missing = [member for member, value in needed.items() if not value]
        if missing:
            yield f"{', '.join(missing)} must be given"
            return
        metric = config["HyperParameterTuningJobObjective"]["MetricName"]
        defined = definition["AlgorithmSpecification"].get("MetricDefinitions", ())
        if metric not in [item["Name"] for item in defined]:
            yield f"objective {metric} is none of the MetricDefinitions"
        static = definition.get("StaticHyperParameters", {})
        count = limits["MaxNumberOfTrainingJobs"]
        yield from ranges.objections(config.get("ParameterRanges", {}), static, count)
        yield from TrainingJob.objections(_request(definition, "trial", {}))

    def _work(self) -> str:
        limits = self.config["ResourceLimits"]
        drawn = ranges.draws(self.config["ParameterRanges"], Random(self.config.get("RandomSeed")))
        try:
            while not self.stopped.is_set():
                running = sum(not trial.job.is_over for trial in self.trials)
                left = limits["MaxNumberOfTrainingJobs"] - len(self.trials)
                if left and running < limits["MaxParallelTrainingJobs"]:
                    self._begin(next(drawn))
                elif left or running:
                    self.stopped.wait(TICK_SECONDS)
                else:
                    break
        finally:
            self._stop_trials()
        if self.stopped.is_set():
            return "Stopped"
        if best(self.trials, self._goal) is None:
            self.failure = (
                f"No training job succeeded after {len(self.trials)} attempts. Please take a look "
                "at the training job failures to get more details."
            )
            return "Failed"
        return "Completed"

    def _begin(self, tuned: dict[str, str]) -> None:
        definition = self.request["TrainingJobDefinition"]
        name = f"{self.name}-{len(self.trials) + 1:03d}-{uuid.uuid4().hex[:8]}"
        static = definition.get("StaticHyperParameters", {})
        values = {**static, **tuned, _OBJECTIVE: self._metric}
        job = self._train(_request(definition, name, values), self.arn)
        self.trials.append(Trial(job, tuned, self._metric))

    def _stop_trials(self) -> None:
        for trial in self.trials:
            trial.job.stop()
        for trial in self.trials:
            trial.job.join(None)

    def _facts(self) -> dict[str, Any]:
        trials = list(self.trials)
        leader = best(trials, self._goal)
        statuses = Counter(trial.counter for trial in trials)
        objectives = Counter(trial.objective for trial in trials)
        counters = ("Completed", "InProgress", "RetryableError", "NonRetryableError", "Stopped")
        return {
            "TrainingJobStatusCounters": {name: statuses[name] for name in counters},
            "ObjectiveStatusCounters": {
                name: objectives[name] for name in ("Succeeded", "Pending", "Failed")
            },
            "BestTrainingJob": leader.summary(self.name) if leader else None,
        }


def _request(definition: dict[str, Any], name: str, values: dict[str, str]) -> dict[str, Any]:
    """The request for a training job of a tuning job."""
    given = known("CreateTrainingJob", "input", definition)
    return {**given, "TrainingJobName": name, "HyperParameters": values}

"""Tuning jobs of the local SageMaker server, whose training jobs are real processes."""

import math
import re
import uuid
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError
from scipy.stats import kstest

from deploy.local.sagemaker.ranges import draws
from deploy.local.sagemaker.server import SageMaker
from deploy.local.sagemaker.site import Site
from mm_assets_tests.deploy.training_jobs import (
    WORKER,
    artefacts,
    service,
    training_request,
    wait_until,
)

RANGES = {
    "IntegerParameterRanges": [{"Name": "depth", "MinValue": "2", "MaxValue": "8"}],
    "ContinuousParameterRanges": [
        {"Name": "rate", "MinValue": "0.001", "MaxValue": "1", "ScalingType": "Logarithmic"}
    ],
    "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a", "b"]}],
}


@pytest.fixture
def sagemaker_site(s3_environment: str, tmp_path: Path) -> Site:
    """A place in whose image the tests' worker is `train`."""
    train = ("python", str(WORKER))
    return Site(tmp_path / "sagemaker", s3_environment, grace_seconds=5, train=train)


def tuning_request(name: str, jobs: int = 6, parallel: int = 3, **static: str) -> dict[str, Any]:
    """A search for the hyper-parameters of `tuned`."""
    definition = training_request(name, uuid.uuid4().hex, "tuned", **static)
    del definition["TrainingJobName"], definition["AlgorithmSpecification"]["ContainerEntrypoint"]
    definition["StaticHyperParameters"] = definition.pop("HyperParameters")
    return {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": {
            "Strategy": "Random",
            "HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"},
            "ResourceLimits": {
                "MaxNumberOfTrainingJobs": jobs,
                "MaxParallelTrainingJobs": parallel,
            },
            "ParameterRanges": RANGES,
            "RandomSeed": 7,
        },
        "TrainingJobDefinition": definition,
    }


def tuning_end(name: str) -> dict[str, Any]:
    """Description of a tuning job that is over."""
    client, arguments = service(), {"HyperParameterTuningJobName": name}

    def is_over() -> bool:
        facts = client.describe_hyper_parameter_tuning_job(**arguments)
        return facts["HyperParameterTuningJobStatus"] in ("Completed", "Failed", "Stopped")

    wait_until(is_over)
    end: dict[str, Any] = client.describe_hyper_parameter_tuning_job(**arguments)
    return end


def trials(name: str, **arguments: Any) -> list[dict[str, Any]]:
    """Summaries of its training jobs, over all pages."""
    pages = (
        service()
        .get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
        .paginate(HyperParameterTuningJobName=name, **arguments)
    )
    return [summary for page in pages for summary in page["TrainingJobSummaries"]]


def loss(tuned: dict[str, str]) -> float:
    """What the worker prints."""
    rate, depth = float(tuned["rate"]), int(tuned["depth"])
    return (rate - 0.1) ** 2 + (tuned["kind"] != "b") + depth / 1000


@pytest.mark.parametrize("goal", ["Minimize", "Maximize"])
def test_the_best_of_six(sagemaker: SageMaker, goal: str) -> None:
    request = tuning_request("six")
    request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["Type"] = goal
    arn = service().create_hyper_parameter_tuning_job(**request)["HyperParameterTuningJobArn"]
    end = tuning_end("six")
    assert end["HyperParameterTuningJobStatus"] == "Completed"
    assert end["HyperParameterTuningJobArn"] == arn
    assert end["TrainingJobStatusCounters"]["Completed"] == 6
    assert end["ObjectiveStatusCounters"] == {"Succeeded": 6, "Pending": 0, "Failed": 0}
    children = trials("six", MaxResults=4, SortBy="FinalObjectiveMetricValue")
    losses = [child["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] for child in children]
    assert len(set(losses)) == 6
    assert losses == sorted(losses)
    for child, value in zip(children, losses, strict=True):
        assert value == pytest.approx(loss(child["TunedHyperParameters"]), abs=1e-5)
        assert re.fullmatch(r"six-00[1-6]-[0-9a-f]{8}", child["TrainingJobName"])
        job = service().describe_training_job(TrainingJobName=child["TrainingJobName"])
        assert job["TuningJobArn"] == arn
        assert job["HyperParameters"] == {
            **{"behaviour": "tuned", "_tuning_objective_metric": "loss"},
            **child["TunedHyperParameters"],
        }
        assert artefacts(job) == {}
    times = [(child["CreationTime"], child["TrainingEndTime"]) for child in children]
    at_once = [sum(begin <= moment < end for begin, end in times) for moment, _ in times]
    assert max(at_once) == 3
    leader = end["BestTrainingJob"]
    assert leader["TrainingJobName"] == children[0 if goal == "Minimize" else -1]["TrainingJobName"]
    assert leader["ObjectiveStatus"] == "Succeeded"
    metric = leader["FinalHyperParameterTuningJobObjectiveMetric"]
    assert metric["Value"] == (min if goal == "Minimize" else max)(losses)
    names = [child["TrainingJobName"] for child in trials("six", MaxResults=5)]
    assert names == sorted(sagemaker.training)


def test_failed_children_do_not_end_it(sagemaker: SageMaker) -> None:
    request = tuning_request("some-fail", jobs=8, parallel=4, broken_kind="a")
    service().create_hyper_parameter_tuning_job(**request)
    end = tuning_end("some-fail")
    assert end["HyperParameterTuningJobStatus"] == "Completed"
    children = trials("some-fail")
    failed = [child for child in children if child["TunedHyperParameters"]["kind"] == "a"]
    assert 0 < len(failed) < 8
    assert end["TrainingJobStatusCounters"]["NonRetryableError"] == len(failed)
    assert end["ObjectiveStatusCounters"]["Failed"] == len(failed)
    for child in failed:
        assert (child["TrainingJobStatus"], child["ObjectiveStatus"]) == ("Failed", "Failed")
        assert "this kind does not work" in child["FailureReason"]
    valued = trials("some-fail", SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    assert len(valued) == 8 - len(failed)
    assert end["BestTrainingJob"]["TrainingJobName"] == valued[-1]["TrainingJobName"]
    names = [child["TrainingJobName"] for child in trials("some-fail", StatusEquals="Failed")]
    assert names == [child["TrainingJobName"] for child in failed]


def test_when_all_fail_it_fails(sagemaker: SageMaker) -> None:
    request = tuning_request("all-fail", jobs=2, broken_kind="a")
    config = request["HyperParameterTuningJobConfig"]
    config["ParameterRanges"] = {
        **RANGES,
        "CategoricalParameterRanges": [{"Name": "kind", "Values": ["a"]}],
    }
    service().create_hyper_parameter_tuning_job(**request)
    end = tuning_end("all-fail")
    assert end["HyperParameterTuningJobStatus"] == "Failed"
    assert end["FailureReason"].startswith("No training job succeeded after 2 attempts")
    assert "BestTrainingJob" not in end


def test_stop_stops_the_children(sagemaker: SageMaker) -> None:
    client = service()
    client.create_hyper_parameter_tuning_job(**tuning_request("stopped", parallel=2, slow="yes"))
    wait_until(lambda: sum(bool(job.started) for job in sagemaker.training.values()) == 2)
    client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="stopped")
    end = tuning_end("stopped")
    assert end["HyperParameterTuningJobStatus"] == "Stopped"
    assert end["TrainingJobStatusCounters"]["Stopped"] == 2
    assert {job.status for job in sagemaker.training.values()} == {"Stopped"}
    with pytest.raises(client.exceptions.ResourceInUse):
        client.create_hyper_parameter_tuning_job(**tuning_request("stopped"))
    with pytest.raises(client.exceptions.ResourceNotFound):
        client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName="never")


def continuous(low: str, high: str, scaling: str) -> dict[str, Any]:
    bounds = {"MinValue": low, "MaxValue": high, "ScalingType": scaling}
    return {"ContinuousParameterRanges": [{"Name": "x", **bounds}]}


def test_draws_are_as_scaled() -> None:
    def uniform(ranges: dict[str, Any], scale: Any) -> float:
        values = [float(drawn["x"]) for drawn in islice(draws(ranges, Random(1)), 2000)]
        p: float = kstest([scale(value) for value in values], "uniform").pvalue
        return p

    assert uniform(continuous("-2", "2", "Linear"), lambda x: (x + 2) / 4) > 0.01
    logarithmic = continuous("0.001", "10", "Logarithmic")
    assert uniform(logarithmic, lambda x: (math.log10(x) + 3) / 4) > 0.01
    assert uniform(logarithmic, lambda x: x / 10) < 1e-6
    reverse = continuous("0.9", "0.999", "ReverseLogarithmic")
    assert uniform(reverse, lambda x: (3 + math.log10(1 - x)) / 2) > 0.01

    dice = {"IntegerParameterRanges": [{"Name": "x", "MinValue": "1", "MaxValue": "6"}]}
    rolls = [next(draws(dice, Random(seed)))["x"] for seed in range(3000)]
    assert {rolls.count(face) > 420 for face in "123456"} == {True}
    assert sorted(drawn["x"] for drawn in islice(draws(dice, Random(1)), 6)) == list("123456")
    assert next(draws(RANGES, Random(3))) == next(draws(RANGES, Random(3)))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("", {"HyperParameterTuningJobName": "x" * 33}, "length less than or equal to 32"),
        ("", {"HyperParameterTuningJobName": "a_b"}, "regular expression"),
        ("", {"Autotune": {"Mode": "Enabled"}}, "Autotune: not done here"),
        ("", {"TrainingJobDefinition": None}, "TrainingJobDefinition must be given"),
        ("config", {"Strategy": "Guess"}, "enum value set"),
        ("config", {"Strategy": "Grid"}, "only Random and Bayesian"),
        ("config", {"TrainingJobEarlyStoppingType": "Auto"}, "nothing is stopped early"),
        (
            "config",
            {"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "auc"}},
            "objective auc is none of the MetricDefinitions",
        ),
        ("config", {"ResourceLimits": {"MaxParallelTrainingJobs": 1}}, "MaxNumberOfTrainingJobs"),
        ("config", {"ParameterRanges": {}}, "must have a range"),
        ("config", {"ParameterRanges": continuous("0", "1", "Logarithmic")}, "greater than 0"),
        ("config", {"ParameterRanges": continuous("0", "1", "ReverseLogarithmic")}, "0 <= x < 1"),
        ("config", {"ParameterRanges": continuous("2", "1", "Auto")}, "MinValue must be less"),
        ("config", {"ParameterRanges": continuous("low", "1", "Auto")}, "range of x"),
        ("config", {"ParameterRanges": continuous("1" * 257, "1", "Auto")}, "or equal to 256"),
        (
            "config",
            {
                "ParameterRanges": {
                    "CategoricalParameterRanges": [{"Name": "x", "Values": ["1", "2"]}]
                }
            },
            "2 combinations, fewer than",
        ),
        ("definition", {"StaticHyperParameters": {"rate": "1"}}, "rate is given more than once"),
        ("definition", {"StaticHyperParameters": {"a": "x" * 2501}}, "less than or equal to 2500"),
        ("definition", {"Environment": {f"V{n}": "1" for n in range(49)}}, "or equal to 48"),
        ("definition", {"Environment": {"V": "x" * 513}}, "or equal to 512"),
        ("definition", {"ResourceConfig": None}, "ResourceConfig must be given"),
    ],
)
def test_what_the_service_refuses(
    sagemaker: SageMaker, part: str, change: dict[str, Any], message: str
) -> None:
    request = tuning_request("refused")
    parts = {
        "": request,
        "config": request["HyperParameterTuningJobConfig"],
        "definition": request["TrainingJobDefinition"],
    }
    parts[part].update(change)
    for member in [name for name, value in parts[part].items() if value is None]:
        del parts[part][member]
    with pytest.raises(ClientError, match=message) as refusal:
        service().create_hyper_parameter_tuning_job(**request)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"
    assert not sagemaker.tuning

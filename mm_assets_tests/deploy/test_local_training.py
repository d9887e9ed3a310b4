"""Training jobs of the local SageMaker server: its contract with containers, by real processes."""

import uuid
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from deploy.local.sagemaker.server import SageMaker, serving
from deploy.local.sagemaker.site import Site
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.deploy.training_jobs import (
    artefacts,
    keys,
    put,
    seen,
    service,
    text,
    training_end,
    training_request,
    wait_until,
)


@pytest.fixture
def prefix(sagemaker: SageMaker) -> str:
    """Prefix of one test's objects; the server is there."""
    return uuid.uuid4().hex


def channel(name: str, prefix: str) -> dict[str, object]:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://artefacts/{prefix}/{name}"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def test_a_channel_becomes_a_model(prefix: str) -> None:
    put(f"{prefix}/train/1.txt", "1")
    put(f"{prefix}/train/deep/2.txt", "2")
    request = training_request("trained", prefix, "trained")
    arn = service().create_training_job(**request, InputDataConfig=[channel("train", prefix)])
    end = training_end("trained")
    assert (end["TrainingJobStatus"], end["SecondaryStatus"]) == ("Completed", "Completed")
    assert end["TrainingJobArn"] == arn["TrainingJobArn"]
    model = end["ModelArtifacts"]["S3ModelArtifacts"]
    assert model == f"s3://artefacts/{prefix}/models/trained/output/model.tar.gz"
    assert artefacts(end) == {"weights/sum.json": "3.0"}
    assert keys(f"{prefix}/models/trained/output") == ["model.tar.gz", "output.tar.gz"]
    (metric,) = end["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("loss", 1.0)
    phases = [phase["Status"] for phase in end["SecondaryStatusTransitions"]]
    assert phases == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert end["TrainingEndTime"] >= end["TrainingStartTime"] >= end["CreationTime"]
    for member in ("HyperParameters", "AlgorithmSpecification", "StoppingCondition", "RoleArn"):
        assert end[member] == request[member]
    logs = boto3.client("logs", region_name="eu-west-2")
    group = "/aws/sagemaker/TrainingJobs"
    streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="trained/")
    (stream,) = [found["logStreamName"] for found in streams["logStreams"]]
    events = logs.get_log_events(logGroupName=group, logStreamName=stream)["events"]
    assert [event["message"] for event in events][-1] == "epoch 2 loss=1.000"


def test_every_job_has_an_opt_ml_of_its_own(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_CHANNEL_TRAIN", "of this machine")
    put(f"{prefix}/train/1.txt", "1")
    for mark in ("one", "two"):
        request = training_request(f"seen-{mark}", prefix, "told_everything", mark=mark)
        request["AlgorithmSpecification"]["ContainerArguments"] = ["--to", "/opt/ml/model"]
        request["Environment"] = {"OMP_NUM_THREADS": "1"}
        service().create_training_job(**request, InputDataConfig=[channel("train", prefix)])
    ends = {mark: training_end(f"seen-{mark}") for mark in ("one", "two")}
    found = {mark: seen(end) for mark, end in ends.items()}
    for mark, what in found.items():
        assert "/opt/ml" in what["mounts"]
        assert what["own"] == mark
        assert what["arguments"] == ["--to", "/opt/ml/model"]
        assert what["names"] == ["input", "model", "output", "own"]
        assert what["config"]["hyperparameters"] == {"behaviour": "told_everything", "mark": mark}
        assert what["config"]["inputdataconfig"] == {
            "train": {
                "TrainingInputMode": "File",
                "S3DistributionType": "FullyReplicated",
                "RecordWrapperType": "None",
            }
        }
        machine = what["config"]["resourceconfig"]
        assert (machine["current_host"], machine["hosts"]) == ("algo-1", ["algo-1"])
        assert machine["current_instance_type"] == "ml.m5.xlarge"
        variables = what["environment"]
        assert variables["TRAINING_JOB_NAME"] == f"seen-{mark}"
        assert variables["OMP_NUM_THREADS"] == "1"
        assert not [name for name in variables if name.startswith("SM_")]
    assert " /opt/ml " not in Path("/proc/self/mountinfo").read_text()
    assert not Path("/opt/ml/own").exists()


def test_failures_say_why(prefix: str, sagemaker: SageMaker) -> None:
    service().create_training_job(**training_request("failed", prefix, "failed"))
    end = training_end("failed")
    assert (end["TrainingJobStatus"], end["SecondaryStatus"]) == ("Failed", "Failed")
    assert end["FailureReason"] == "AlgorithmError: the labels are constant, exit code: 3"
    assert "model.tar.gz" not in keys(f"{prefix}/models/failed/output")

    request = training_request("no-data", prefix, "trained")
    service().create_training_job(**request, InputDataConfig=[channel("train", prefix)])
    end = training_end("no-data")
    assert end["FailureReason"].startswith("ClientError: channel train: no S3 objects found")
    assert "TrainingStartTime" not in end

    sagemaker.without_capacity = 1
    service().create_training_job(**training_request("no-machine", prefix, "trained"))
    assert training_end("no-machine")["FailureReason"].startswith("CapacityError")


@pytest.mark.parametrize("stubborn", ["no", "yes"])
def test_time_limit(prefix: str, stubborn: str) -> None:
    name = f"limit-{stubborn}"
    request = training_request(name, prefix, "endless", stubborn=stubborn)
    request["StoppingCondition"] = {"MaxRuntimeInSeconds": 2}
    service().create_training_job(**request)
    end = training_end(name)
    assert (end["TrainingJobStatus"], end["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    # The fixture's server gives 5 seconds between SIGTERM and SIGKILL.
    ran = (end["TrainingEndTime"] - end["TrainingStartTime"]).total_seconds()
    assert (ran > 7) == (stubborn == "yes")
    assert artefacts(end) == ({} if stubborn == "yes" else {"last": "saved in time"})


def test_stopped_jobs_go_on_from_their_checkpoint(prefix: str) -> None:
    client = service()
    for step in ("1", "2"):
        name = f"step-{step}"
        place = {"S3Uri": f"s3://artefacts/{prefix}/checkpoints"}
        request = training_request(name, prefix, "endless")
        client.create_training_job(**request, CheckpointConfig=place)

        def is_kept(step: str = step) -> bool:
            held = keys(f"{prefix}/checkpoints") == ["step"]
            return held and text(f"{prefix}/checkpoints/step") == step

        wait_until(is_kept)  # while it runs
        facts = client.describe_training_job(TrainingJobName=name)
        assert (facts["TrainingJobStatus"], facts["SecondaryStatus"]) == ("InProgress", "Training")
        client.stop_training_job(TrainingJobName=name)
        end = training_end(name)
        assert (end["TrainingJobStatus"], end["SecondaryStatus"]) == ("Stopped", "Stopped")
        assert artefacts(end) == {"last": "saved in time"}
    with pytest.raises(ClientError, match="cannot be stopped"):
        client.stop_training_job(TrainingJobName="step-1")


def test_names_are_taken_for_ever(prefix: str) -> None:
    client = service()
    client.create_training_job(**training_request("once", prefix, "failed"))
    training_end("once")
    with pytest.raises(client.exceptions.ResourceInUse):
        client.create_training_job(**training_request("once", prefix, "failed"))
    with pytest.raises(ClientError, match="Requested resource not found"):
        client.describe_training_job(TrainingJobName="never")


def test_without_an_entry_point_arguments_or_train_are_run(
    s3_environment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = training_request("train", uuid.uuid4().hex, "told_everything", mark="")
    algorithm = request["AlgorithmSpecification"]
    command = algorithm.pop("ContainerEntrypoint")
    with serving(Site(tmp_path, s3_environment, train=(*command, "of the image"))) as sagemaker:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", sagemaker.address)
        service().create_training_job(**request)
        algorithm["ContainerArguments"] = [*command, "of the request"]
        service().create_training_job(**{**request, "TrainingJobName": "arguments"})
        assert seen(training_end("train"))["arguments"] == ["of the image"]
        assert seen(training_end("arguments"))["arguments"] == ["of the request"]


def test_the_images_train_tries_settings(
    sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    request = training_request("trial", uuid.uuid4().hex, "trained")
    del request["AlgorithmSpecification"]["ContainerEntrypoint"]
    service().create_training_job(**request)
    assert training_end("trial")["TrainingJobStatus"] == "Failed"
    log = (sagemaker.training["trial"].folder / "log").read_text()
    assert "in try_settings" in log
    assert "/opt/ml/input/data/job/order.json" in log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Environment": {"MANY": "x" * 513}}, "length less than or equal to 512"),
        ({"Environment": {"x" * 513: "1"}}, "length less than or equal to 512"),
        ({"Environment": {"no-name": "1"}}, "regular expression"),
        ({"Environment": {f"V{n}": "1" for n in range(101)}}, "less than or equal to 100"),
        ({"HyperParameters": {"a": "x" * 2501}}, "length less than or equal to 2500"),
        ({"HyperParameters": {"x" * 257: "a"}}, "length less than or equal to 256"),
        ({"HyperParameters": {"a": "two\nlines"}}, "regular expression"),
        ({"TrainingJobName": "x" * 64}, "length less than or equal to 63"),
        ({"TrainingJobName": "under_score"}, "regular expression"),
        ({"RoleArn": "arn:aws:iam::1:role/short"}, "regular expression"),
        ({"OutputDataConfig": {"S3OutputPath": "/a/folder"}}, "regular expression"),
        ({"CheckpointConfig": {"S3Uri": "s3://a/b", "LocalPath": "/tmp"}}, "under /opt/ml"),
        ({"InputDataConfig": [{**channel("a", "b"), "InputMode": "Pipe"}]}, "only InputMode File"),
        ({"StoppingCondition": None}, "StoppingCondition must be given"),
    ],
)
def test_what_the_service_refuses(
    prefix: str, sagemaker: SageMaker, change: dict[str, object], message: str
) -> None:
    request = {**training_request("refused", prefix, "trained"), **change}
    given = {member: value for member, value in request.items() if value is not None}
    with pytest.raises(ClientError, match=message) as refusal:
        service().create_training_job(**given)
    assert refusal.value.response["Error"]["Code"] == "ValidationException"
    assert not sagemaker.training


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ({"ContainerArguments": ["x" * 257]}, "length less than or equal to 256"),
        ({"ContainerArguments": ["two\nlines"]}, "regular expression"),
        ({"TrainingImage": "x" * 256}, "length less than or equal to 255"),
        ({"TrainingInputMode": "Tape"}, "enum value set"),
        ({"MetricDefinitions": [{"Name": "m", "Regex": "x" * 501}]}, "less than or equal to 500"),
        ({"MetricDefinitions": [{"Name": "m", "Regex": "loss"}]}, "no group"),
        ({"MetricDefinitions": [{"Name": "m", "Regex": "("}]}, "no regular expression"),
    ],
)
def test_algorithms_that_the_service_refuses(
    prefix: str, sagemaker: SageMaker, algorithm: dict[str, object], message: str
) -> None:
    request = training_request("refused", prefix, "trained")
    request["AlgorithmSpecification"].update(algorithm)
    with pytest.raises(ClientError, match=message):
        service().create_training_job(**request)
    assert not sagemaker.training

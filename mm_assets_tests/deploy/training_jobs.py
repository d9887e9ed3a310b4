"""Training jobs of the local SageMaker server in tests: their requests, their ends, their files."""

import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

from mm_assets_tests.sagemaker import IMAGE, ROLE

WORKER = Path(__file__).with_name("training_worker.py")
BUCKET = "artefacts"


def service() -> Any:
    """Client of the server."""
    return boto3.client("sagemaker", region_name="eu-west-2")


def training_request(name: str, prefix: str, behaviour: str, **told: str) -> dict[str, Any]:
    """A job that behaves so, of `training_worker`."""
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", str(WORKER)],
            "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=([-+.\de]+)"}],
        },
        "HyperParameters": {"behaviour": behaviour, **told},
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/{prefix}/models"},
        "ResourceConfig": {
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": 1,
            "VolumeSizeInGB": 10,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
    }


def put(key: str, text: str) -> None:
    """An object on S3."""
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=text.encode())


def keys(prefix: str) -> list[str]:
    """Keys below a prefix, without it."""
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return sorted(item["Key"].removeprefix(f"{prefix}/") for item in found.get("Contents", []))


def text(key: str) -> str:
    """Content of an object."""
    content: bytes = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return content.decode()


def artefacts(end: dict[str, Any]) -> dict[str, str]:
    """Name -> content of the files in a job's model."""
    address = end["ModelArtifacts"]["S3ModelArtifacts"]
    key = address.removeprefix(f"s3://{BUCKET}/")
    body = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        files = {m.name: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
        return {name: file.read().decode() for name, file in files.items() if file}


def seen(end: dict[str, Any]) -> dict[str, Any]:
    """What a job of behaviour `told_everything` saw."""
    found: dict[str, Any] = json.loads(artefacts(end)["seen.json"])
    return found


def training_end(name: str) -> dict[str, Any]:
    """Description of a training job that is over."""
    client = service()

    def is_over() -> bool:
        status = client.describe_training_job(TrainingJobName=name)["TrainingJobStatus"]
        return status in ("Completed", "Failed", "Stopped")

    wait_until(is_over)
    end: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
    return end


def wait_until(done: Callable[[], bool], seconds: float = 60) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)

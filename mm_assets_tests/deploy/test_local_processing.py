"""What the local SageMaker server refuses of processing jobs, and what it tells of their end."""

from typing import Any

import pytest
from botocore.exceptions import ClientError

from deploy.local.sagemaker.server import SageMaker
from mm_assets.assets.compute import Compute
from mm_assets.resources.sagemaker_request import PROCESSING, Place
from mm_assets_tests.deploy.training_jobs import service, wait_until
from mm_assets_tests.sagemaker import client


def request(name: str, script: str) -> dict[str, Any]:
    """A processing job that runs a line of Python."""
    settings = client("s3://artefacts/none/jobs").settings
    nowhere, command = Place("s3://artefacts/none", "", ""), ("python", "-c", script)
    asked = settings.request(PROCESSING, nowhere, Compute(), {}, command)
    return {"ProcessingJobName": name, **asked}


def test_a_job_leaves_a_message(sagemaker: SageMaker) -> None:
    script = "import pathlib; p = pathlib.Path('/opt/ml/output'); p.mkdir(); "
    script += "(p / 'message').write_text('three slides'); raise SystemExit(4)"
    service().create_processing_job(**request("told", script))
    wait_until(lambda: sagemaker.jobs["told"].is_over)
    end = service().describe_processing_job(ProcessingJobName="told")
    assert (end["ProcessingJobStatus"], end["ExitMessage"]) == ("Failed", "three slides")
    assert end["FailureReason"] == "AlgorithmError: , exit code: 4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Environment": {"V": "x" * 257}}, "length less than or equal to 256"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 777_601}}, "or equal to 777600"),
        ({"AppSpecification": {"ImageUri": "an-image"}}, "ContainerEntrypoint must be given"),
        ({"LocalPath": "/tmp/in"}, "begins with /opt/ml/processing"),
        ({"LocalPath": "/opt/ml/processing/../input"}, "begins with /opt/ml/processing"),
    ],
)
def test_what_the_service_refuses(
    sagemaker: SageMaker, change: dict[str, Any], message: str
) -> None:
    asked = request("refused", "pass")
    place = asked["ProcessingInputs"][0]["S3Input"] if "LocalPath" in change else asked
    place.update(change)
    with pytest.raises(ClientError, match=message):
        service().create_processing_job(**asked)
    assert not sagemaker.jobs
    with pytest.raises(ClientError, match="Could not find requested job"):
        service().describe_processing_job(ProcessingJobName="refused")

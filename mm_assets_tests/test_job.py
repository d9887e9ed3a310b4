"""What a job does before its work."""

import json
import os

import boto3
import pytest

from mm_assets.job import log_in
from mm_assets.resources.sagemaker_request import MLFLOW_SECRET


def test_a_job_logs_in_with_the_secret_it_is_told_of(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    log_in()
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == ""
    secret = json.dumps({"username": "mm-assets", "password": "of the job"})
    client = boto3.client("secretsmanager", region_name="eu-west-2")
    client.create_secret(Name="mm-assets/mlflow-admin", SecretString=secret)
    monkeypatch.setenv(MLFLOW_SECRET, "mm-assets/mlflow-admin")
    log_in()
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "mm-assets"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "of the job"
    monkeypatch.setenv(MLFLOW_SECRET, "mm-assets/none")
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        log_in()

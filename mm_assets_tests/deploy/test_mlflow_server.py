"""Models through an MLflow server whose database is PostgreSQL and whose files are on S3."""

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

import boto3
import pandas as pd
import pytest

from mm_assets.resources.tracking import Tracking
from mm_assets_tests.mlflow_server import HOST, LOGIN, ORIGIN, running_mlflow
from mm_assets_tests.postgres import find_programs
from mm_assets_tests.resources.models import example, model_run


@pytest.fixture
def tracking(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Tracking, str]]:
    """A client that knows the server's address alone, and where the server keeps files."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    prefix = uuid.uuid4().hex
    for name, value in LOGIN.items():
        monkeypatch.setenv(name, value)
    with running_mlflow(f"s3://artefacts/{prefix}") as address:
        yield Tracking(tracking_uri=address), prefix


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_models_are_registered_and_loaded(
    tracking: tuple[Tracking, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, prefix = tracking
    first = client.log_model(model_run("heec", code_version="1"))
    second = client.log_model(model_run("heec", code_version="2"))
    assert (first.aliases, second.aliases) == (("champion",), ("challenger",))
    assert client.log_model(model_run("heec", code_version="1")).version == first.version
    found = client.load(second.name, second.version).predict(example())
    expected = model_run("heec").predictor.predict(example())
    pd.testing.assert_frame_equal(found, expected)
    files = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix=prefix)
    assert len(files["Contents"]) > 4
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a guess")
    with pytest.raises(Exception, match=r"401|not authenticated"):
        client.version(first.name, "champion")


def answer(address: str, **headers: str) -> int:
    """Status of a search, which is a POST, by somebody who is logged in."""
    login = base64.b64encode(":".join(LOGIN.values()).encode()).decode()
    known = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/search", b'{"max_results": 1}', known | headers
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_hosts_and_origins_are_those_it_was_told(tracking: tuple[Tracking, str]) -> None:
    address = tracking[0].tracking_uri
    assert answer(address, Host=HOST) == 200
    assert answer(address, Host="models.example.com") == 403
    assert answer(address, Origin=ORIGIN) == 200
    assert answer(address, Origin="https://example.com") == 403


def test_without_a_host_it_does_not_start() -> None:
    without = {key: os.environ[key] for key in os.environ if not key.startswith("MLFLOW")}
    command = [sys.executable, "-m", "mm_assets.shared_mlflow"]
    done = subprocess.run(command, env=without, capture_output=True, text=True, check=False)
    assert done.returncode
    assert done.stderr.startswith("set MLFLOW_SERVER_ALLOWED_HOSTS")

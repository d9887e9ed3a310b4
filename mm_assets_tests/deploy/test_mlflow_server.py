"""Models through an MLflow server whose database is PostgreSQL and whose files are on S3."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

import boto3
import pandas as pd
import pytest

from mm_assets.resources.tracking import Tracking
from mm_assets_tests.daemon import free_port
from mm_assets_tests.postgres import find_programs, running_postgres
from mm_assets_tests.resources.models import example, model_run

START_SECONDS = 120


@pytest.fixture
def tracking(s3_environment: str) -> Iterator[tuple[Tracking, str]]:
    """A client that knows the server's address alone, and where the server keeps files."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    prefix, port = uuid.uuid4().hex, free_port()
    with running_postgres() as database:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
            "--backend-store-uri",
            f"postgresql+psycopg2://dagster@127.0.0.1:{database.port}/dagster",
            *("--artifacts-destination", f"s3://artefacts/{prefix}"),
        ]
        server = subprocess.Popen(command, start_new_session=True)
        try:
            _await(f"http://127.0.0.1:{port}/health", server)
            yield Tracking(tracking_uri=f"http://127.0.0.1:{port}"), prefix
        finally:
            server.terminate()
            server.wait(30)


def _await(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("the MLflow server does not answer")


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_models_are_registered_and_loaded(tracking: tuple[Tracking, str]) -> None:
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

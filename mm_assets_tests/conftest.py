"""Fixtures shared by all tests."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from deploy.local.sagemaker.mount import require_mounts
from deploy.local.sagemaker.server import SageMaker, serving
from deploy.local.sagemaker.site import Site
from mm_assets_tests.daemon import free_port
from mm_assets_tests.sagemaker import IMAGE, ROLE

REPOSITORY = Path(__file__).resolve().parents[1]


# Servers go first: started from a worker behind hundreds of other tests, Dagster's web server
# sometimes ran but never listened, for reasons not found. Then the longest, so that no worker is
# left with one at the end.
FIRST = (
    *("test_servers.py", "test_browser.py", "test_automation.py", "test_end_to_end.py"),
    *("test_backfill.py", "test_predictions.py", "test_real_data.py", "test_nuclei.py"),
    *("test_nucleus_gnn.py", "test_tuning.py", "test_hipt.py", "test_kill.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of `FIRST` before all others, in that order."""
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides and tables beside the repository; tests that need them skip without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real development data (../shared/data) is not here")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `MM_HOME` with a Dagster home of its own."""
    folder = tmp_path / "mm"
    folder.mkdir()
    monkeypatch.setenv("MM_HOME", str(folder))
    for variable in ("MM_STORE", "MM_COHORTS", "DAGSTER_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return folder


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the S3 server does not answer")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a moto server with an empty bucket named ``artefacts``."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        address = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="eu-west-2",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        where = {"LocationConstraint": "eu-west-2"}
        client.create_bucket(Bucket="artefacts", CreateBucketConfiguration=where)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address, set as a user of another S3-speaking server would set it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    return s3_server


@pytest.fixture
def sagemaker_site(s3_environment: str, tmp_path: Path) -> Site:
    """Where the local SageMaker server runs its jobs."""
    return Site(tmp_path / "sagemaker", s3_environment, grace_seconds=5)


@pytest.fixture
def sagemaker(sagemaker_site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[SageMaker]:
    """The local SageMaker server, known to boto3."""
    try:
        require_mounts()
    except PermissionError as error:
        pytest.skip(str(error))
    with serving(sagemaker_site) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", service.address)
        yield service


@pytest.fixture
def remote_store(
    sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """Prefix of a store on S3, in the bucket ``artefacts``."""
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{tmp_path.name}")
    return tmp_path.name


@pytest.fixture
def sagemaker_settings(sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch) -> SageMaker:
    """The server, with what the launcher reads from the environment."""
    monkeypatch.setenv("MM_SAGEMAKER_ROLE", ROLE)
    monkeypatch.setenv("MM_SAGEMAKER_IMAGE", IMAGE)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return sagemaker

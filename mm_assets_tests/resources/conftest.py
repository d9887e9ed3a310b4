"""A real S3 server, a real MLflow database, and stores on both kinds of ground."""

import multiprocessing
import os
import uuid
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Child processes that start at once because the slow imports are done already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.writers", f"{__package__}.models"])
    with pytest.MonkeyPatch.context() as patch:
        # The fork server of Python 3.11 does not inherit sys.path, and then preloads nothing.
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        forkserver.ensure_running()
    return context


@pytest.fixture
def local_store(tmp_path: Path) -> ArtefactStore:
    """An empty store in a folder."""
    return ArtefactStore(uri=str(tmp_path / "store"))


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ArtefactStore:
    """An empty store, once in a folder and once on S3."""
    if request.param == "local":
        return request.getfixturevalue("local_store")
    request.getfixturevalue("s3_environment")
    return ArtefactStore(uri=f"s3://artefacts/{uuid.uuid4().hex}/deep")


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """MLflow on an SQLite database of this test session."""
    os.environ.setdefault("MM_MLFLOW_URL", "http://127.0.0.1:5000")
    return Tracking(tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/new/mlflow.db")

"""The MLflow server of a deployment for tests: PostgreSQL is its database, files are on S3."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from mm_assets_tests.daemon import free_port
from mm_assets_tests.postgres import running_postgres

START_SECONDS = 120
# The names by which the server is called, and by which browsers know it.
HOST, ORIGIN = "mlflow.example.org", "https://models.example.org"
LOGIN = {
    "MLFLOW_TRACKING_USERNAME": "mm-assets",
    "MLFLOW_TRACKING_PASSWORD": "an open secret of tests",
}


@contextmanager
def running_mlflow(artefacts: str) -> Iterator[str]:
    """The server's address, from start to end; clients need the variables `LOGIN`.

    Parameters
    ----------
    artefacts
        ``s3://`` folder of the models' files.
    """
    port = free_port()
    with running_postgres() as database:
        environment = {
            **os.environ,
            **LOGIN,
            "MLFLOW_PG_HOST": "127.0.0.1",
            "MLFLOW_PG_PORT": str(database.port),
            "MLFLOW_PG_DATABASE": "dagster",
            "MLFLOW_PG_USERNAME": "dagster",
            "MLFLOW_PG_PASSWORD": "a/b%c@d",
            "MLFLOW_ARTIFACTS": artefacts,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "signs sessions",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},{HOST}",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ORIGIN,
        }
        command = [sys.executable, "-m", "mm_assets.shared_mlflow", str(port)]
        server = subprocess.Popen(command, env=environment, start_new_session=True)
        try:
            _await(f"http://127.0.0.1:{port}/health", server)
            yield f"http://127.0.0.1:{port}"
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

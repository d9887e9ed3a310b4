"""A real MLflow server for tests: PostgreSQL is its database, files are on S3."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from mm_assets.resources.mlflow_quiet import QUIET
from mm_assets_tests.daemon import free_port
from mm_assets_tests.postgres import running_postgres

START_SECONDS = 120


@contextmanager
def running_mlflow(artefacts: str) -> Iterator[str]:
    """The server's address, from start to end.

    Parameters
    ----------
    artefacts
        ``s3://`` folder of the models' files.
    """
    port = free_port()
    with running_postgres() as database:
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
            "--backend-store-uri",
            f"postgresql+psycopg2://dagster@127.0.0.1:{database.port}/dagster",
            *("--artifacts-destination", artefacts),
        ]
        server = subprocess.Popen(command, env={**os.environ, **QUIET}, start_new_session=True)
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

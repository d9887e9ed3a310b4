"""`mm ui`: every web UI answers, and a busy port is named."""

import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.daemon import environment, free_port, wait_for

LOAD_ERRORS = (
    "workspaceOrError{... on Workspace{locationEntries{"
    "loadStatus locationOrLoadError{... on PythonError{message}}}}}"
)


def _command(dagster_port: int, mlflow_port: int, viewer_port: int) -> list[str]:
    ports = ["--dagster-port", str(dagster_port), "--mlflow-port", str(mlflow_port)]
    ports += ["--viewer-port", str(viewer_port)]
    return [sys.executable, "-m", "mm_assets", "ui", *ports]


def _get(address: str, body: bytes | None = None) -> str:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    # Long: on a busy machine questions given up and asked again would pile up in the server.
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_every_ui_serves_the_cohort_and_its_models(home: Path, tmp_path: Path) -> None:
    from mm_assets.resources.tracking import Tracking
    from mm_assets_tests.resources.models import model_run

    make_cohort(tmp_path / "cohorts" / "tiny", 8, slides=0)
    version = Tracking().log_model(model_run("heec"))
    dagster, mlflow, viewer = free_port(), free_port(), free_port()
    log = tmp_path / "ui.log"
    with log.open("w") as sink:
        servers = subprocess.Popen(
            _command(dagster, mlflow, viewer),
            env=environment(home, tmp_path / "cohorts"),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        query = json.dumps({"query": f"{{assetNodes{{assetKey{{path}}}} {LOAD_ERRORS}}}"}).encode()
        page = f"http://127.0.0.1:{dagster}/graphql"
        answer = wait_for("Dagster", lambda: _get(page, query), 240, log, servers.pid)
        graph = json.loads(answer)["data"]
        paths = [node["assetKey"]["path"] for node in graph["assetNodes"]]
        assert ["tiny", "evaluation_survival"] in paths, (graph, log.read_text())
        api = f"http://127.0.0.1:{mlflow}/api/2.0/mlflow/registered-models/search"
        models = wait_for("MLflow", lambda: _get(api), 240, log, servers.pid)
        assert version.name in [model["name"] for model in json.loads(models)["registered_models"]]
        page = f"http://127.0.0.1:{viewer}/api/cohorts"
        cohorts = json.loads(wait_for("the viewer", lambda: _get(page), 240, log, servers.pid))
        assert [each["cohort"] for each in cohorts["cohorts"]] == ["tiny"]
    finally:
        servers.terminate()
        servers.wait(60)


def test_busy_port_is_named(home: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            _command(free_port(), port, free_port()),
            env=environment(home, tmp_path),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"port {port} for the MLflow UI is in use" in done.stdout + done.stderr

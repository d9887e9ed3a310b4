"""The control plane's health check, beside each service where that is all that runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dagster as dg
import pytest

from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.daemon import wait_for

SECONDS = 120
PROGRAMS = Path(sys.executable).parent
HEALTHY = str(REPOSITORY / "deploy" / "images" / "healthy")
LISTEN = ("-h", "127.0.0.1", "-p")
MLFLOW = ("--host", "127.0.0.1", "--port", "5000", "--workers", "1")
LOGIN = ("AWS_REGION=eu-west-2", *(f"MM_LOGIN_{part}=x" for part in ("BALANCER", "CLIENT", "KEYS")))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of the container."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs root, util-linux and iproute2")
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}")
    (tmp_path / "workspace.yaml").write_text("load_from: []")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    # Its databases are made before a service and its check would make them at once.
    dg.DagsterInstance.get().dispose()
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    home = {"HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path)}
    return {"PATH": path, "PYTHONPATH": str(REPOSITORY), **home}


@contextmanager
def contained(
    command: Sequence[str], environment: dict[str, str], log: Path
) -> Iterator[Callable[[], bool]]:
    """The command, first process and alone on its loopback; yields whether it is healthy."""
    script = 'ip link set lo up && exec "$@"'
    alone = ("unshare", "--pid", "--net", "--mount-proc", "--kill-child", "--fork")
    with log.open("w") as sink:
        parent = subprocess.Popen(
            [*alone, "sh", "-c", script, "sh", *command],
            env=environment,
            cwd=log.parent,  # MLflow puts its database where it is started
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    try:
        child = wait_for("a process", lambda: children.read_text().strip(), SECONDS, log)
        yield partial(_is_healthy, child, environment)
    finally:
        parent.kill()
        parent.wait()


def _is_healthy(service: str, environment: dict[str, str]) -> bool:
    enter = ("nsenter", "--target", service, "--pid", "--net", "--mount")
    done = subprocess.run([*enter, HEALTHY], env=environment, capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.stress
@pytest.mark.parametrize(
    "command",
    [
        ("dagster-webserver", *LISTEN, "3000", "--empty-workspace"),
        ("env", *LOGIN, "python", "-m", "mm_assets.shared_web", "--workspace", "workspace.yaml"),
        ("dagster-daemon", "run", "--empty-workspace"),
        ("dagster", "code-server", "start", *LISTEN, "4000", "-m", "mm_assets.definitions"),
        ("python", "-m", "mlflow", "server", *MLFLOW),
    ],
    ids=["web", "web with login", "daemon", "code", "mlflow"],
)
def test_a_service_is_healthy_once_it_answers(
    environment: dict[str, str], tmp_path: Path, command: Sequence[str]
) -> None:
    log = tmp_path / "log"
    with contained(command, environment, log) as is_healthy:
        wait_for("health", is_healthy, SECONDS, log)


@pytest.mark.stress
@pytest.mark.parametrize("name", ["dagster-webserver", "dagster-daemon", "code-server", "mlflow"])
def test_what_does_not_answer_is_not_healthy(
    environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    log = tmp_path / "log"
    silent = ("bash", "-c", f"echo begun; exec -a {name} sleep 600")
    with contained(silent, environment, log) as is_healthy:
        wait_for("the silent service", lambda: "begun" in log.read_text(), SECONDS, log)
        assert not is_healthy()


@pytest.mark.stress
def test_any_other_command_is_healthy(environment: dict[str, str], tmp_path: Path) -> None:
    with contained(("sleep", "600"), environment, tmp_path / "log") as is_healthy:
        assert is_healthy()

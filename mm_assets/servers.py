"""Serve the web UIs: Dagster (with its daemon), MLflow and the viewer, on the loopback address."""

import os
import signal
import socket
import subprocess
import sys
import time

from mm_assets.resources.home import dagster_instance
from mm_assets.resources.mlflow_quiet import QUIET
from mm_assets.resources.tracking import Tracking

HOST = "127.0.0.1"
MODULE = "mm_assets.definitions"


def port_is_free(port: int) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def commands(dagster_port: int, mlflow_port: int, viewer_port: int) -> dict[str, list[str]]:
    """Name -> command line of each server; MLflow's only where no other server is named."""
    tracking = Tracking()
    python = [sys.executable, "-m"]
    webserver = [*python, "dagster_webserver", "--module-name", MODULE]
    servers = {
        "Dagster UI": [*webserver, "--host", HOST, "--port", str(dagster_port)],
        "Dagster daemon": [*python, "dagster._daemon", "run", "--module-name", MODULE],
        "Viewer": [*python, "mm_assets", "view", "--no-browser", "--port", str(viewer_port)],
    }
    if not tracking.uri.startswith("http"):
        mlflow = [*python, "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)]
        store = ["--backend-store-uri", tracking.uri, "--workers", "1"]
        files = ["--default-artifact-root", tracking.files] if tracking.files else []
        servers["MLflow UI"] = [*mlflow, *store, *files]
    return servers


def serve(dagster_port: int, mlflow_port: int, viewer_port: int) -> None:
    """Run all servers until interrupted, or until one of them ends.

    Raises
    ------
    RuntimeError
        When a port is taken (the message names it) or a server ends by itself.
    """
    started = commands(dagster_port, mlflow_port, viewer_port)
    for name, port, option in (
        ("Dagster UI", dagster_port, "DAGSTER_PORT"),
        ("MLflow UI", mlflow_port, "MLFLOW_PORT"),
        ("Viewer", viewer_port, "VIEWER_PORT"),
    ):
        if name in started and not port_is_free(port):
            raise RuntimeError(
                f"port {port} for the {name} is in use: stop what listens there, "
                f"or choose another with `make ui {option}=<port>`"
            )
    pages = {
        "Dagster UI": f"http://{HOST}:{dagster_port}",
        "MLflow UI": Tracking().uri,
        "Viewer": f"http://{HOST}:{viewer_port}",
    }
    if "MLflow UI" in started:
        pages["MLflow UI"] = f"http://{HOST}:{mlflow_port}"
    # What is trained from the UI links to these pages.
    os.environ |= {
        **QUIET,
        "MM_DAGSTER_URL": pages["Dagster UI"],
        "MM_MLFLOW_URL": pages["MLflow UI"],
        "MM_VIEWER_URL": pages["Viewer"],
    }
    # Its databases are made before two processes would make them at once.
    dagster_instance().dispose()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    servers = {name: subprocess.Popen(command) for name, command in started.items()}
    for name, page in pages.items():
        print(f"{name:12}{page}")
    try:
        while all(server.poll() is None for server in servers.values()):
            time.sleep(0.5)
        ended = [name for name, server in servers.items() if server.poll() is not None]
        raise RuntimeError(f"{', '.join(ended)} ended; its output above says why")
    except KeyboardInterrupt:
        pass
    finally:
        for server in servers.values():
            server.terminate()
        for server in servers.values():
            server.wait(timeout=30)

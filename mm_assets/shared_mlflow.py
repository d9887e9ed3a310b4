"""`python -m mm_assets.shared_mlflow`: MLflow's server of a shared deployment, behind a login.

Reads ``MLFLOW_PG_HOST``, ``_PORT``, ``_DATABASE``, ``_USERNAME`` and ``_PASSWORD`` (PostgreSQL),
``MLFLOW_ARTIFACTS`` (an ``s3://`` folder), ``MLFLOW_TRACKING_USERNAME`` and ``_PASSWORD`` (who may
do everything; others see models and change nothing), ``MLFLOW_FLASK_SERVER_SECRET_KEY``,
``MLFLOW_SERVER_ALLOWED_HOSTS`` (names, with port, by which clients call the server: a request that
names another host is refused) and, where browsers reach it under a name of their own,
``MLFLOW_SERVER_CORS_ALLOWED_ORIGINS`` (such as ``https://models.example.org``; without it they can
look and change nothing).
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mm_assets.resources.mlflow_quiet import QUIET

PORT = 5000
_HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"


def database_uri(environment: Mapping[str, str]) -> str:
    """SQLAlchemy's address of the database.

    Raises
    ------
    KeyError
        Names the variable that is missing.
    """
    parts = ("USERNAME", "PASSWORD", "HOST", "PORT", "DATABASE")
    user, password, host, port, name = (environment[f"MLFLOW_PG_{part}"] for part in parts)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return f"postgresql+psycopg2://{login}@{host}:{port}/{name}"


def auth_settings(environment: Mapping[str, str]) -> str:
    """Settings of MLflow's own login, in the format of its file."""
    facts = {
        "default_permission": "READ",
        "database_uri": database_uri(environment).replace("%", "%%"),
        "admin_username": environment["MLFLOW_TRACKING_USERNAME"],
        "admin_password": environment["MLFLOW_TRACKING_PASSWORD"],
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    return "\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in facts.items()), ""])


def main(port: int) -> None:
    """Become the server."""
    if not os.environ.get(_HOSTS):
        # Its health would be well nevertheless.
        sys.exit(f"set {_HOSTS} to what clients call this server, such as mlflow:{port}")
    settings = Path(tempfile.mkdtemp(prefix="mlflow-")) / "auth.ini"
    settings.touch(0o600)
    settings.write_text(auth_settings(os.environ))
    environment = {**QUIET, **os.environ, "MLFLOW_AUTH_CONFIG_PATH": str(settings)}
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", "0.0.0.0", "--port", str(port), "--workers", "2"),
        *("--backend-store-uri", database_uri(os.environ)),
        *("--artifacts-destination", os.environ["MLFLOW_ARTIFACTS"]),
    ]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else PORT)

"""`python -m mm_assets.shared_web`: Dagster's web server behind a balancer that logs people in.

As ``dagster-webserver``, but lets in only whom AWS's load balancer says to be logged in
(`mm_assets.resources.login`). Reads ``MM_LOGIN_BALANCER`` (its ARN), ``MM_LOGIN_CLIENT`` (the
provider's client for these pages), ``MM_LOGIN_KEYS`` (the Lambda function that fetches its public
keys) and, to let in one group of the client's people only, ``MM_LOGIN_GROUP`` (``claim=group``).
"""

import argparse
import os
import sys

import uvicorn
from dagster import DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__

from mm_assets.resources.login import VerifiedLogin, keys_of_function, login_of, required

PORT = 3000
WORKSPACE = "/opt/dagster/workspace.yaml"
# What `dagster-webserver` has by default.
_DATABASE = {"statement_timeout": 15_000, "pool_recycle": 3600, "max_overflow": 20}


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--workspace", default=WORKSPACE)
    parser.add_argument("--read-only", action="store_true", help="nothing can be launched")
    given = parser.parse_args()
    try:
        login = login_of(os.environ)
        keys = keys_of_function(required(os.environ, "MM_LOGIN_KEYS"))
    except ValueError as wrong:
        sys.exit(str(wrong))
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(**_DATABASE)
        with WorkspaceProcessContext(
            instance,
            workspace_load_target=WorkspaceFileTarget([given.workspace]),
            version=__version__,
            read_only=given.read_only,
        ) as context:
            pages = create_app_from_workspace_process_context(context)
            uvicorn.run(
                VerifiedLogin(pages, login, keys),
                host=given.host,
                port=given.port,
                log_level="warning",
            )


if __name__ == "__main__":
    main()

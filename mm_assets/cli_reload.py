"""`mm reload`: cohorts that have come or changed, in a deployment's web UI."""

import os
from typing import Annotated

import typer

_SECONDS = 600


def reload(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the code server.")] = 4000,
) -> None:
    """Have the code server at MM_CODE_HOST look for cohorts anew, as Reload in the web UI does."""
    from dagster._core.errors import DagsterUserCodeUnreachableError
    from dagster._grpc.client import DagsterGrpcClient
    from dagster._grpc.types import ListRepositoriesResponse
    from dagster._serdes import deserialize_value
    from dagster._utils.error import SerializableErrorInfo

    from mm_assets.cli import out

    host = os.environ.get("MM_CODE_HOST")
    if not host:
        raise ValueError("MM_CODE_HOST names no code server: without one, restart `mm ui`")
    client = DagsterGrpcClient(host=host, port=port)
    try:
        client.reload_code(timeout=_SECONDS)
        found = deserialize_value(
            client.list_repositories(), (ListRepositoriesResponse, SerializableErrorInfo)
        )
    except DagsterUserCodeUnreachableError as error:
        raise RuntimeError(f"the code server at {host}:{port} does not answer: {error}") from error
    if isinstance(found, SerializableErrorInfo):
        cause = found.cause or found
        raise RuntimeError(f"the cohorts cannot be loaded: {cause.message.strip()}")
    out.print("the code server has loaded the cohorts anew")

"""MLflow without its telemetry, side effects and advice."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

TRACKING_URI = "MLFLOW_TRACKING_URI"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Eight processes that serve scorers of language models.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Requirements are given; searching for uv projects and locks costs seconds.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_LOG_UV_FILES": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def quiet_mlflow(uri: str) -> Any:
    """The module `mlflow`, set to a tracking URI; the environment's own stays as it was."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    import mlflow
    import mlflow.artifacts
    import mlflow.models
    import mlflow.pyfunc

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    given = os.environ.pop(TRACKING_URI, None)
    mlflow.set_tracking_uri(uri)
    os.environ.pop(TRACKING_URI, None)  # MLflow sets it; what the user set must stay as it was
    if given is not None:
        os.environ[TRACKING_URI] = given
    return mlflow


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Without MLflow's advice about integer columns, type hints and pip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

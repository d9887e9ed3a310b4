"""Writing into an MLflow run: parameters, metrics, files, and the trials of tuning."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mm_assets.resources.model_run import FINGERPRINT_TAG, ModelRun, RunFacts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric


def log_params(client: MlflowClient, run_id: str, run: RunFacts) -> None:
    """The run's parameters, JSON where they are no text."""
    from mlflow.entities import Param

    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in run.parameters.items()
    }
    client.log_batch(run_id, params=[Param(key, text) for key, text in texts.items()])


def log_trials(client: MlflowClient, experiment: str, parent: str, run: ModelRun) -> None:
    """What tuning tried, as runs nested in the model's."""
    # With the fingerprint a run that a kill left open is closed with its parent's.
    tags = {"mlflow.parentRunId": parent, FINGERPRINT_TAG: run.fingerprint()}
    for name, params, metrics in run.nested():
        run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        client.log_batch(run_id, metrics, params)
        client.set_terminated(run_id)


def log_metrics(client: MlflowClient, run_id: str, metrics: list[Metric]) -> None:
    """Metrics, in batches that MLflow takes."""
    for start in range(0, len(metrics), 1000):  # MLflow's limit for one batch
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def log_files(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    """Path in the run's artefacts -> content."""
    if not files:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        client.log_artifacts(run_id, folder)

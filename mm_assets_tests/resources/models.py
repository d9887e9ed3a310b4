"""Models to register, and a child process that registers them."""

# What MLflow imports only when it is needed; forked children find it imported.
import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import numpy as np
import pandas as pd

from mm_assets.resources.model_run import ModelRun
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.resources.predictor import LinearRisk


def example(columns: int = 4) -> pd.DataFrame:
    values = np.random.default_rng(0).standard_normal((3, columns)).astype(np.float32)
    return pd.DataFrame(values, columns=[f"expression:G{i}" for i in range(columns)])


def model_run(model: str, code_version: str = "1", columns: int = 4, **changes: object) -> ModelRun:
    weights = np.linspace(-1, 1, columns)
    fields = {
        "cohort": "demo",
        "task": "survival",
        "model": model,
        "dagster_run_id": "1f0a",
        "asset_key": "demo/heec_survival",
        "code_version": code_version,
        "upstream": {
            "slide": {"S1": "sha256:1", "S2": "sha256:2"},
            "omics": {"cohort": "sha256:3"},
        },
        "splits_digest": "sha256:4",
        "parameters": {"learning_rate": 0.1, "objective": "cox", "levels": ["tile", "region"]},
        "predictor": LinearRisk(weights),
        "input_example": example(columns),
        "weights": "resnet50 random:0",
    }
    return ModelRun(**{**fields, **changes})


def register_versions(uri: str, code_versions: list[str]) -> None:
    """Body of a child process; an exception gives it a non-zero exit code."""
    tracking = Tracking(tracking_uri=uri)
    for code_version in code_versions:
        registered = tracking.log_model(model_run("concurrent", code_version))
        overall = {"model": "concurrent", "metric": "c", "value": 0.6, "low": 0.5, "high": 0.7}
        fold = {"model": "concurrent", "repeat": 0, "fold": 0, "metric": "c", "value": 0.6}
        tracking.attach(
            registered.run_id, "concurrent", pd.DataFrame([overall]), pd.DataFrame([fold]), {}
        )

"""The form in which a predictor is registered: MLflow serves it without knowing this package.

Readable code beside the pickled predictor: unlike a pickled class it survives a change of Python
version, and it needs neither Dagster nor this module to load.
"""

import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from mm_assets.resources.mlflow_quiet import hushed
from mm_assets.resources.model_run import ModelRun

_SERVED = '''"""Serves the predictor pickled beside this file."""

import pickle

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Served(PythonModel):
    def load_context(self, context):
        with open(context.artifacts["predictor"], "rb") as file:
            self.predictor = pickle.load(file)

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return self.predictor.predict(model_input)


set_model(Served())
'''

# MLflow tries the example out through its JSON server code: 7 of 12 s at 5,000 columns. The example
# of a wide model is only a file of the run.
_EXAMPLE_COLUMNS = 300


def log_served(mlflow: Any, run: ModelRun) -> tuple[str, str]:
    """Log the predictor of `run` as a model of the run that is active in `mlflow`.

    Returns
    -------
    URI and id of the logged model.
    """
    import cloudpickle

    example = run.input_example
    with tempfile.TemporaryDirectory() as folder, hushed():
        predictor, code = Path(folder, "predictor.pkl"), Path(folder, "served.py")
        predictor.write_bytes(cloudpickle.dumps(run.predictor))
        code.write_text(_SERVED)
        info = mlflow.pyfunc.log_model(
            name=run.model,
            python_model=str(code),
            artifacts={"predictor": str(predictor)},
            signature=mlflow.models.infer_signature(example, run.predictor.predict(example)),
            input_example=example if example.shape[1] <= _EXAMPLE_COLUMNS else None,
            pip_requirements=[_requirement()],
        )
    return info.model_uri, info.model_id


def _requirement() -> str:
    try:
        return f"mm_assets=={metadata.version('mm_assets')}"
    except metadata.PackageNotFoundError:
        return "mm_assets"

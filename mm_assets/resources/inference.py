"""Prediction apart from training: a registered model, loaded in a process of its own."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from mm_assets.resources.tracking import RegisteredModel, Tracking

if TYPE_CHECKING:
    import pandas as pd


def predict_apart(
    tracking: Tracking, model: RegisteredModel, frame: "pd.DataFrame"
) -> "pd.DataFrame":
    """Predictions of a registered model for the rows of `frame`, made in a fresh process.

    Columns that the model reads and `frame` lacks are missing values.
    """
    # Spawned, not forked: nothing that this process has in memory reaches the model.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_predict, tracking.uri, model.name, model.version, frame).result()


def _predict(uri: str, name: str, version: int, frame: "pd.DataFrame") -> "pd.DataFrame":
    model = Tracking(tracking_uri=uri).predictor(name, version)
    found: pd.DataFrame = model.predict(frame.reindex(columns=list(model.feature_names)))
    return found

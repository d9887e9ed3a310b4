"""Prediction apart from training: registered models, loaded in a process of their own."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from mm_assets.resources.tracking import RegisteredModel, Tracking

if TYPE_CHECKING:
    import pandas as pd

Score = Callable[[Any], "pd.DataFrame"]


def predict_apart(
    tracking: Tracking, wanted: Sequence[tuple[RegisteredModel, Score]]
) -> "list[pd.DataFrame]":
    """What registered models predict, in a fresh process.

    Parameters
    ----------
    wanted
        Model, and a picklable function that is called with its predictor and reads the patients.
    """
    # Spawned, not forked: nothing that this process has in memory reaches the models.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = [
            pool.submit(_predict, tracking.uri, model.name, model.version, score)
            for model, score in wanted
        ]
        return [each.result() for each in found]


def _predict(uri: str, name: str, version: int, score: Score) -> "pd.DataFrame":
    return score(Tracking(tracking_uri=uri).predictor(name, version))

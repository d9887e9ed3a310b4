"""Results by number of training patients, and whether more patients would help."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_assets.evaluation.metrics import nan_mean
from mm_assets.evaluation.out_of_fold import OutOfFold, check_predictions
from mm_assets.evaluation.ranking import Floats
from mm_assets.evaluation.resampling import interval

if TYPE_CHECKING:
    from mm_assets.cohort.clinical import Endpoint

_COLUMNS = ["model", "share", "trained_on", "draws", "metric", "value", "low", "high"]
_GAIN = ["gain", "gain_low", "gain_high"]


def learning_table(
    learning: pd.DataFrame | None,
    endpoint: "Endpoint",
    splits: pd.DataFrame,
    counts: pd.DataFrame,
) -> pd.DataFrame:
    """The main metric of every model for every share of the training patients.

    Parameters
    ----------
    learning
        Columns share, draw and trained_on, then as `predictions` of `evaluate`; None gives an
        empty table.
    endpoint, splits, counts
        As in `OutOfFold`; test patients and resamples are those of the evaluation.

    Returns
    -------
    table
        Columns model, share, trained_on (patients, mean over folds), draws, metric, value, low,
        high (over folds, draws and bootstrap resamples of test patients), and gain, gain_low,
        gain_high: the paired difference to the next smaller share, NaN for the smallest.

    Raises
    ------
    ValueError
        As `evaluate`.
    """
    rows = []
    metric = "c_index" if endpoint.kind == "survival" else "auc"
    before: dict[str, Floats] = {}
    for share, parts in [] if learning is None else learning.groupby("share", sort=True):
        resampled = _resampled(parts, endpoint, splits, counts, metric)
        for model, values in resampled.items():
            gain = values - before.get(model, np.full_like(values, np.nan))
            own = parts[parts["model"] == model]
            rows.append(
                (
                    model,
                    share,
                    float(own["trained_on"].groupby([own["repeat"], own["fold"]]).first().mean()),
                    own["draw"].nunique(),
                    metric,
                    *(float(values[0]), *interval(values[1:])),
                    *(float(gain[0]), *interval(gain[1:])),
                )
            )
        before = resampled
    return pd.DataFrame(rows, columns=[*_COLUMNS, *_GAIN])


def _resampled(
    parts: pd.DataFrame,
    endpoint: "Endpoint",
    splits: pd.DataFrame,
    counts: pd.DataFrame,
    metric: str,
) -> dict[str, Floats]:
    """Mean over folds and draws on the data and on each resample, by model."""
    draws: dict[str, list[Floats]] = {}
    for _, rows in parts.groupby("draw"):
        predictions = rows.drop(columns=["share", "draw", "trained_on"])
        check_predictions(predictions, endpoint, splits)
        scores = OutOfFold(predictions, endpoint, splits, counts, ())
        for model in scores.models:
            values = scores.values(model, scores.scored(model))[metric]
            draws.setdefault(model, []).append(values)
    return {model: nan_mean(np.concatenate(values)) for model, values in draws.items()}

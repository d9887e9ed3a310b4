"""Errors of probabilities that tell nobody apart: the yardstick of Brier score and log loss."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_assets.evaluation.metrics import LOWER_IS_BETTER, nan_mean
from mm_assets.evaluation.out_of_fold import SURVIVAL, OutOfFold, survival_arrays, survival_months
from mm_assets.evaluation.ranking import Floats
from mm_assets.evaluation.survival_curves import kaplan_meier

if TYPE_CHECKING:
    from mm_assets.cohort.clinical import Endpoint


def uninformed_table(
    predictions: pd.DataFrame,
    endpoint: "Endpoint",
    splits: pd.DataFrame,
    counts: pd.DataFrame,
    horizons: tuple[float, ...],
) -> pd.DataFrame:
    """Errors of giving every test patient what the training patients of the fold had on average.

    Survival is their Kaplan-Meier curve, a class probability their share of the class.

    Parameters
    ----------
    predictions
        Those of the models, for the months at which they predict survival.
    endpoint, splits, counts, horizons
        As in `OutOfFold`.

    Returns
    -------
    table
        Columns metric (where lower is better), value (mean over folds).
    """
    months = survival_months(predictions)
    folds = splits.groupby(["repeat", "fold"])
    tables = [_average(endpoint, rows, months) for _, rows in folds]
    known = pd.concat(tables, ignore_index=True).assign(model="")
    scores = OutOfFold(known, endpoint, splits, counts[[0]], horizons)
    values = scores.values("", scores.scored(""))
    rows = [
        (metric, float(nan_mean(by_fold)[0]))
        for metric, by_fold in values.items()
        if metric.startswith(LOWER_IS_BETTER)
    ]
    return pd.DataFrame(rows, columns=["metric", "value"])


def _average(endpoint: "Endpoint", fold: pd.DataFrame, months: Floats) -> pd.DataFrame:
    """The same prediction for each test patient of a fold."""
    train = endpoint.table.loc[fold.loc[fold["role"] == "train", "patient_id"]]
    test = fold.loc[fold["role"] == "test", ["repeat", "fold", "patient_id"]]
    if endpoint.kind == "survival":
        curve = kaplan_meier(*survival_arrays(train))
        place = np.searchsorted(curve.time, months, side="right")
        survival = np.append(1.0, curve.survival)[place]
        names = [f"{SURVIVAL}{month:g}" for month in months]
        return test.assign(risk=0.0, **dict(zip(names, survival, strict=True)))
    shares = train["label"].value_counts(normalize=True)
    names = [f"probability_{name}" for name in endpoint.classes]
    return test.assign(**{name: shares.get(code, 0.0) for code, name in enumerate(names)})

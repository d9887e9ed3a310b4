"""Features that alone give the outcome away, as a copy of it among the features does."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.evaluation.metrics import Floats, harrell_c, roc_auc

SUSPICIOUS = 0.98
MIN_CASES = 10  # events, or patients of the smaller side: among fewer, chance ranks perfectly too


def telltale_features(
    features: pd.DataFrame, endpoint: Endpoint, names: Sequence[str]
) -> list[str]:
    """Those of the named features whose own C-index or AUC is too good to be biology.

    Parameters
    ----------
    features
        Numeric columns, indexed by patient_id; NaN where missing.
    endpoint
        All of its patients are looked at, test patients too: nothing is fitted with the answer.
    names
        Columns to look at.
    """
    known = endpoint.table.index.intersection(features.index)
    outcome = endpoint.table.loc[known]
    found = []
    for name in names:
        values = features.loc[known, name].to_numpy(np.float64, na_value=np.nan)
        measured = ~np.isnan(values)
        if _ranking(values[measured], outcome[measured], endpoint) >= SUSPICIOUS:
            found.append(name)
    return found


def _ranking(values: Floats, outcome: pd.DataFrame, endpoint: Endpoint) -> float:
    """How well a feature ranks, whichever way it points, from .5 to 1; .5 of too few patients."""
    found = [0.5]
    if endpoint.kind == "survival":
        event = outcome["event"].to_numpy(bool)
        if event.sum() >= MIN_CASES:
            found.append(float(harrell_c(outcome["time"].to_numpy(), event, values)))
    else:
        for code in range(len(endpoint.classes)):
            of_class = (outcome["label"] == code).to_numpy()
            if min(of_class.sum(), (~of_class).sum()) >= MIN_CASES:
                found.append(float(roc_auc(of_class, values)))
    return max(max(score, 1 - score) for score in found)

"""Discrete hazards: intervals of follow-up, the likelihood of censored times, survival curves.

Zadeh and Schmid, Bias in cross-entropy-based training of deep survival networks (IEEE TPAMI 2021):
h_k is the probability of the event in interval k of those who reached it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mm_assets.models.calibration import survival_columns
from mm_assets.models.losses import Floats, Outcome

INTERVALS = 4


@dataclass(frozen=True)
class Intervals:
    """Intervals (a, b] of follow-up that hold equally many of the training patients' events.

    Attributes
    ----------
    edges
        Months, ascending from 0 to the end of training follow-up, shape [intervals + 1]. Fewer
        than `INTERVALS` where the events have fewer distinct times.
    """

    edges: Floats

    @classmethod
    def fit(cls, train: Outcome) -> "Intervals":
        """Quantiles of the training patients' uncensored times."""
        observed = train.time[train.event > 0]
        inner = np.linspace(0, 1, INTERVALS + 1)[1:-1]
        cuts = np.unique(np.quantile(observed, inner)) if len(observed) else np.empty(0)
        cuts = cuts[cuts < train.time.max()]
        return cls(np.concatenate([[0.0], cuts, [train.time.max()]]))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def of(self, time: Floats) -> NDArray[np.int64]:
        """Interval of each time, the last one beyond the end."""
        return np.searchsorted(self.edges[1:-1], time).astype(np.int64)

    def predict(self, logits: Floats, horizons: Sequence[float]) -> pd.DataFrame:
        """Columns risk and survival_<h> of logits of hazards, shape [patients, intervals].

        Risk is 1 minus the mean survival over the intervals' ends, from 0 to 1. Inside an
        interval the hazard is constant in time, beyond the end survival stays as it is.
        """
        logarithm = -np.logaddexp(0, logits).cumsum(axis=1)
        padded = np.hstack([np.zeros((len(logits), 1)), logarithm])
        survival = [
            np.exp([np.interp(horizon, self.edges, curve) for curve in padded])
            for horizon in horizons
        ]
        table = dict(zip(survival_columns(horizons), survival, strict=True))
        return pd.DataFrame({"risk": 1 - np.exp(logarithm).mean(axis=1)} | table)


def hazard_nll(logits: Tensor, interval: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood of each patient.

    Who had the event in interval k survived those before it; who was censored in interval k
    counts as having survived it.

    Parameters
    ----------
    logits
        Of hazards, float32, shape [patients, intervals].
    interval
        Of the event or of censoring, int64, shape [patients].
    event
        1 = observed, 0 = censored, float32, shape [patients].

    Returns
    -------
    Tensor
        Shape [patients].
    """
    survived = functional.logsigmoid(-logits).cumsum(dim=1)
    until = survived.gather(1, interval[:, None])[:, 0]
    # log h - log (1 - h) is the logit itself.
    return -(until + event * logits.gather(1, interval[:, None])[:, 0])

"""From scores to votes, probabilities and cut-offs, with what training patients gave."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.models.losses import CoxLoss, Floats, Outcome, nelson_aalen

MAX_SLOPE = 20.0
THRESHOLD = "threshold"
_NO_THRESHOLD = 0.5


@dataclass(frozen=True)
class QuantileMap:
    """The place of a score among reference scores, from 0 to 1; defined for a single patient.

    Attributes
    ----------
    values, places
        Distinct reference scores in ascending order and the share of references below each,
        ties counting half.
    """

    values: Floats
    places: Floats

    @classmethod
    def fit(cls, reference: Floats) -> "QuantileMap":
        """Learn from reference scores, shape [n], n at least 1."""
        values, counts = np.unique(reference, return_counts=True)
        return cls(values, (np.cumsum(counts) - counts / 2) / counts.sum())

    def __call__(self, score: Floats) -> Floats:
        """Places of scores; linear between references, the end's place beyond them."""
        return np.interp(score, self.values, self.places)


@dataclass(frozen=True)
class SurvivalCurve:
    """Probability of surviving each horizon from a risk, as in a Cox model with Breslow's baseline.

    Attributes
    ----------
    slope
        Log hazard ratio of one unit of risk.
    centre
        Risk at which the baseline holds.
    baseline
        Cumulative baseline hazard at each horizon; flat after the last training time.
    cut
        Median risk of the training patients: above it a patient counts as at high risk.
    """

    horizons: tuple[float, ...]
    slope: float
    centre: float
    baseline: Floats
    cut: float

    @classmethod
    def fit(
        cls, risk: Floats, outcome: Outcome, horizons: Sequence[float], slope: float | None = None
    ) -> "SurvivalCurve":
        """Fit to training patients' risks, which must be out-of-fold unless `slope` is given.

        Without `slope` it is the maximum of the partial likelihood, never below 0: a risk score
        that turned out the wrong way round says nothing.
        """
        centre = float(risk.mean())
        if slope is None:
            slope = cox_slope(risk - centre, outcome)
        hazard = np.exp(slope * (risk - centre))
        baseline = nelson_aalen(outcome, np.asarray(horizons, np.float64), hazard)
        return cls(tuple(horizons), slope, centre, baseline, float(np.median(risk)))

    def __call__(self, risk: Floats) -> pd.DataFrame:
        """Columns risk, risk_cut (the training patients' median) and survival_<horizon>."""
        hazard = np.exp(self.slope * (risk - self.centre))
        survival = np.exp(-hazard[:, None] * self.baseline)
        columns = survival_columns(self.horizons)
        table = {name: survival[:, i] for i, name in enumerate(columns)}
        return pd.DataFrame({"risk": risk, "risk_cut": self.cut} | table)


def survival_columns(horizons: Sequence[float]) -> list[str]:
    """Names of the columns of survival probabilities, e.g. ``survival_12``."""
    return [f"survival_{horizon:g}" for horizon in horizons]


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns of class probabilities, e.g. ``probability_IDC``."""
    return [f"probability_{name}" for name in classes]


def class_table(probability: Floats, classes: Sequence[str], threshold: float) -> pd.DataFrame:
    """Columns probability_<class> and, for two classes, the threshold of the second.

    Parameters
    ----------
    probability
        Shape [patients, classes].
    """
    table = pd.DataFrame(probability, columns=probability_columns(classes))
    return table.assign(**{THRESHOLD: threshold}) if len(classes) == 2 else table


def youden_threshold(label: NDArray[np.int64], probability: Floats) -> float:
    """Probability of the second class from which on a training patient is best put into it.

    Where sensitivity + specificity is largest (Youden, Cancer 3, 1950), in the middle between the
    probabilities on both sides; 0.5 where no threshold is better than chance.

    Parameters
    ----------
    label
        0 or 1, shape [patients].
    probability
        Of the second class, shape [patients].
    """
    from sklearn.metrics import roc_curve

    if not 0 < label.sum() < len(label):
        return _NO_THRESHOLD
    false, true, score = roc_curve(label, probability, drop_intermediate=False)
    best = int(np.argmax(true - false))
    return float(score[best : best + 2].mean()) if best else _NO_THRESHOLD


def cox_slope(risk: Floats, outcome: Outcome) -> float:
    """Log hazard ratio of a risk, at least 0 and at most `MAX_SLOPE`."""
    from scipy.optimize import minimize_scalar

    if np.ptp(risk) == 0 or not outcome.event.any():
        return 0.0
    loss = CoxLoss(outcome)
    # A faint ridge keeps the slope finite when few deaths are in perfect order.
    found = minimize_scalar(
        lambda slope: loss.value(slope * risk) + 0.01 * slope**2,
        bounds=(0.0, MAX_SLOPE),
        method="bounded",
    )
    return float(found.x) if found.x > 1e-3 else 0.0

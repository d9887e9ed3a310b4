"""Do predicted probabilities come true: bins, calibration line, expected calibration error."""

import numpy as np
import pandas as pd

from mm_assets.evaluation.ranking import Flags, Floats, Integers
from mm_assets.evaluation.survival_curves import kaplan_meier

_PATIENTS_PER_BIN = 20
_MOST_BINS = 10
_CLIP = 1e-9
_STEPS = 50
_NORMAL_975 = 1.959963984540054


def calibration_line(positive: Flags, probability: Floats) -> tuple[float, float]:
    """Calibration slope and calibration-in-the-large (Van Calster et al., BMC Medicine 2019).

    Parameters
    ----------
    positive, probability
        Shape ``(n,)``.

    Returns
    -------
    slope
        Of the logistic regression of the outcome on the log-odds: 1 is ideal, below 1 means
        predictions are too extreme. NaN for one class, constant predictions or
        predictions that separate the classes perfectly.
    intercept
        With the slope held at 1: 0 is ideal, below 0 means predictions are too high. NaN for one
        class.
    """
    if positive.all() or not positive.any():
        return float("nan"), float("nan")
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    log_odds = np.log(clipped / (1 - clipped))
    slope = float("nan")
    if np.ptp(log_odds) > 0:
        design = np.column_stack([np.ones_like(log_odds), log_odds])
        slope = float(_logistic(design, positive, np.zeros_like(log_odds))[1])
    intercept = float(_logistic(np.ones((len(log_odds), 1)), positive, log_odds)[0])
    return slope, intercept


def survival_slope(time: Floats, event: Flags, survival: Floats) -> float:
    """Cox regression slope on log(-log S) of predicted survival: 1 is ideal, NaN if undefined."""
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    clipped = np.clip(survival, _CLIP, 1 - _CLIP)
    score = np.log(-np.log(clipped))
    if np.ptp(score) == 0 or not event.any():
        return float("nan")
    table = pd.DataFrame({"time": time, "event": event.astype(int), "score": score})
    try:
        fitted = CoxPHFitter().fit(table, "time", "event")
    except ConvergenceError:
        return float("nan")
    return float(fitted.params_["score"])


def expected_calibration_error(positive: Flags, probability: Floats, bins: int = 10) -> float:
    """Mean absolute gap between predicted and observed share over equally wide bins."""
    if not len(probability):
        return float("nan")
    index = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, weights=probability - positive, minlength=bins)
    return float(np.abs(gaps).sum() / len(probability))


def wilson(share: float, count: float) -> tuple[float, float]:
    """95 % interval of a share of `count` patients (Wilson, JASA 22, 1927); NaN of nobody."""
    if not count:
        return float("nan"), float("nan")
    spread = 1 + _NORMAL_975**2 / count
    centre = share + _NORMAL_975**2 / (2 * count)
    half = _NORMAL_975 * np.sqrt(share * (1 - share) / count + _NORMAL_975**2 / (4 * count**2))
    # At a share of 0 or 1 the bound is the share, but for rounding.
    return min(float(centre - half) / spread, share), max(float(centre + half) / spread, share)


def class_calibration(positive: Flags, probability: Floats) -> pd.DataFrame:
    """Predicted and observed share of a class in groups of equal size.

    Returns
    -------
    bins
        Columns bin, predicted, observed, low, high (Wilson 95 % interval), patients.
    """
    rows: list[tuple[float, ...]] = []
    for number, members in enumerate(_equal_groups(probability)):
        share, count = float(positive[members].mean()), len(members)
        predicted = float(probability[members].mean())
        low, high = wilson(share, count)
        rows.append((number, predicted, share, low, high, count))
    return _bins(rows)


def survival_calibration(
    time: Floats, event: Flags, survival: Floats, horizon: float
) -> pd.DataFrame:
    """Predicted and Kaplan-Meier event probability by `horizon` months, in groups of equal size.

    Returns
    -------
    bins
        Columns bin, predicted, observed, low, high (95 % interval), patients. `observed` is NaN
        where a group's follow-up ends before the horizon.
    """
    rows: list[tuple[float, ...]] = []
    for number, members in enumerate(_equal_groups(1 - survival)):
        observed, low, high = kaplan_meier(time[members], event[members]).at(horizon)
        predicted = float(1 - survival[members].mean())
        rows.append((number, predicted, 1 - observed, 1 - high, 1 - low, len(members)))
    return _bins(rows)


def _equal_groups(values: Floats) -> list[Integers]:
    """Indices of groups of about equal size by rising value; equal values stay together."""
    count = int(np.clip(len(values) // _PATIENTS_PER_BIN, 1, _MOST_BINS))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    index = np.searchsorted(edges, values, side="left")
    return [np.flatnonzero(index == group) for group in np.unique(index)]


def _bins(rows: list[tuple[float, ...]]) -> pd.DataFrame:
    columns = ["bin", "predicted", "observed", "low", "high", "patients"]
    return pd.DataFrame(rows, columns=columns)


def _logistic(design: Floats, positive: Flags, offset: Floats) -> Floats:
    """Newton's method for logistic regression; NaN when there is no finite optimum."""
    coefficients = np.zeros(design.shape[1])
    for _ in range(_STEPS):
        linear = np.clip(design @ coefficients + offset, -500, 500)
        fitted = 1 / (1 + np.exp(-linear))
        information = (design * (fitted * (1 - fitted))[:, None]).T @ design
        try:
            step = np.linalg.solve(information, design.T @ (positive - fitted))
        except np.linalg.LinAlgError:
            break
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10:
            return coefficients
    return np.full(design.shape[1], np.nan)

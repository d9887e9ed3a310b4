"""Metrics of survival and class predictions, for one test set or many resamples of it at once.

Every function takes optional `weights`: of shape ``(n,)`` for one weighted value, or ``(n, b)`` to
get ``b`` values, one a column. Integer weights are a bootstrap resample. A value that is not
defined (no event, one class only, follow-up too short) is NaN; a constant prediction ranks at 0.5.
"""

from collections.abc import Callable

import numpy as np

from mm_assets.evaluation.ranking import (
    Flags,
    Floats,
    Integers,
    concordant_pairs,
    ranked_pairs,
    threshold_counts,
)
from mm_assets.evaluation.survival_curves import CensoringCurve

TwoClassMetric = Callable[[Flags, Floats, Floats | None], Floats]

LOWER_IS_BETTER = ("brier", "integrated_brier", "log_loss")


def higher_is_better(metric: str) -> bool:
    """Whether more of the metric of this name (``c_index``, ``brier_36``...) is better."""
    return not metric.startswith(LOWER_IS_BETTER)


def harrell_c(time: Floats, event: Flags, risk: Floats, weights: Floats | None = None) -> Floats:
    """Harrell's concordance index (Statistics in Medicine 15, 1996), in O(n log n).

    Parameters
    ----------
    time, event, risk
        Shape ``(n,)``; months, whether the event was observed, higher is worse.
    weights
        Shape ``(n,)`` or ``(n, b)``.

    Returns
    -------
    c_index
        Shape ``()`` or ``(b,)``.
    """
    columns = _columns(weights, len(time))
    pairs = concordant_pairs(time, event, risk, columns, columns)
    return _like(_ratio(*pairs), weights)


def uno_c(
    time: Floats,
    event: Flags,
    risk: Floats,
    censoring: CensoringCurve,
    truncation: float,
    weights: Floats | None = None,
) -> Floats:
    """Uno's concordance index (Statistics in Medicine 30, 2011, eq. 6), free of the censoring.

    Parameters
    ----------
    time, event, risk
        Shape ``(n,)``.
    censoring
        Fitted on training patients.
    truncation
        Months; events from there on are not counted. Must lie inside training follow-up.
    weights
        Shape ``(n,)`` or ``(n, b)``.
    """
    columns = _columns(weights, len(time))
    inverse = censoring.weights(time) ** 2 * (time < truncation)
    pairs = concordant_pairs(time, event, risk, columns * inverse[:, None], columns)
    return _like(_ratio(*pairs), weights)


def auc_at(
    time: Floats,
    event: Flags,
    risk: Floats,
    horizon: float,
    censoring: CensoringCurve,
    weights: Floats | None = None,
) -> Floats:
    """Cumulative/dynamic AUC at `horizon` months with inverse censoring weights.

    Cases had the event by the horizon, controls were observed beyond it (Uno et al., JASA 102,
    2007; Blanche et al., Biometrical Journal 55, 2013).
    """
    columns = _columns(weights, len(time))
    is_case = event & (time <= horizon)
    case = columns * (is_case * censoring.weights(time))[:, None]
    control = columns * (time > horizon)[:, None]
    return _like(_ratio(*ranked_pairs(risk, case, control)), weights)


def brier_at(
    time: Floats,
    event: Flags,
    survival: Floats,
    horizon: float,
    censoring: CensoringCurve,
    weights: Floats | None = None,
) -> Floats:
    """Brier score of the probability to survive beyond `horizon` months (Graf et al. 1999).

    Patients censored before the horizon have weight 0; the others are weighted by the inverse
    probability of being observed. NaN when training follow-up ends before the horizon.
    """
    columns = _columns(weights, len(time))
    inverse = np.where(time > horizon, censoring.weights(np.array([horizon])), 0.0)
    inverse = np.where(event & (time <= horizon), censoring.weights(time), inverse)
    error = inverse * (survival - (time > horizon)) ** 2
    values = _ratio(error @ columns, columns.sum(axis=0))
    if not _followed(time, horizon, censoring):
        values = np.full_like(values, np.nan)
    return _like(values, weights)


def integrated_brier(
    time: Floats,
    event: Flags,
    survival: Floats,
    months: Floats,
    censoring: CensoringCurve,
    weights: Floats | None = None,
) -> Floats:
    """Brier score averaged over time, from 0 to the last of `months` within follow-up.

    The integral (Graf et al., Statistics in Medicine 18, 1999) is a sum of trapezoids that starts
    from the score 0 at time 0, where everybody is alive.

    Parameters
    ----------
    survival
        Probability to survive beyond each of `months`, shape ``(n, t)``.
    months
        Ascending, above 0, shape ``(t,)``.
    """
    followed = [i for i, month in enumerate(months) if _followed(time, month, censoring)]
    columns = _columns(weights, len(time))
    if not followed:
        return _like(np.full(columns.shape[1], np.nan), weights)
    scores = np.zeros((len(followed) + 1, columns.shape[1]))
    for row, i in enumerate(followed, start=1):
        scores[row] = brier_at(time, event, survival[:, i], months[i], censoring, columns)
    at = np.append(0.0, months[followed])
    return _like(np.trapezoid(scores, at, axis=0) / at[-1], weights)


def roc_auc(positive: Flags, score: Floats, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve; NaN with one class only."""
    columns = _columns(weights, len(score))
    pairs = ranked_pairs(score, columns * positive[:, None], columns * ~positive[:, None])
    return _like(_ratio(*pairs), weights)


def average_precision(positive: Flags, score: Floats, weights: Floats | None = None) -> Floats:
    """Average precision: precision at each threshold weighted by the recall gained there."""
    columns = _columns(weights, len(score))
    true, false = threshold_counts(score, columns * positive[:, None], columns * ~positive[:, None])
    gained = np.diff(true, axis=0, prepend=np.zeros((1, true.shape[1])))
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    one_class = (true[-1] == 0) | (false[-1] == 0)
    values = np.where(one_class, np.nan, _ratio((gained * precision).sum(axis=0), true[-1]))
    return _like(values, weights)


def macro(
    metric: TwoClassMetric, label: Integers, probabilities: Floats, weights: Floats | None = None
) -> Floats:
    """A two-class metric on k classes: of the second class, or the mean of one against the rest.

    Parameters
    ----------
    metric
        `roc_auc` or `average_precision`.
    label
        Index of the class, shape ``(n,)``.
    probabilities
        Shape ``(n, k)``.

    Returns
    -------
    values
        Mean over the classes for which the metric is defined, NaN when there is none.
    """
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    return nan_mean(np.stack([metric(label == c, probabilities[:, c], weights) for c in classes]))


def brier(label: Integers, probabilities: Floats, weights: Floats | None = None) -> Floats:
    """Mean squared error of class probabilities: 0 to 1 for two classes, 0 to 2 for more."""
    columns = _columns(weights, len(label))
    truth = np.eye(probabilities.shape[1])[label]
    error = ((probabilities - truth) ** 2).sum(axis=1)
    scale = 0.5 if probabilities.shape[1] == 2 else 1.0
    return _like(_ratio(scale * error @ columns, columns.sum(axis=0)), weights)


def log_loss(label: Integers, probabilities: Floats, weights: Floats | None = None) -> Floats:
    """Mean negative log-likelihood of the true class, in nats."""
    columns = _columns(weights, len(label))
    smallest = np.finfo(np.float64).eps
    given = np.clip(probabilities[np.arange(len(label)), label], smallest, 1 - smallest)
    return _like(_ratio(-np.log(given) @ columns, columns.sum(axis=0)), weights)


def nan_mean(values: Floats) -> Floats:
    """Mean over the first axis of what is defined, NaN (without a warning) where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


def _followed(time: Floats, horizon: float, censoring: CensoringCurve) -> bool:
    """Whether somebody is observed beyond `horizon`, in training and here."""
    return bool(censoring.at(np.array([horizon]))[0] > 0 and (time > horizon).any())


def _columns(weights: Floats | None, count: int) -> Floats:
    """Weights as float64 of shape ``(n, b)``."""
    if weights is None:
        return np.ones((count, 1))
    return np.asarray(weights, dtype=np.float64).reshape(count, -1)


def _like(values: Floats, weights: Floats | None) -> Floats:
    """One value for one set of weights, else one a column."""
    return np.asarray(values[0]) if weights is None or weights.ndim == 1 else values


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    numerator = np.asarray(numerator, dtype=np.float64)
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )

"""Losses for boosting scores, with gradients for LightGBM: softmax, and four for censored times.

A survival loss reads one score a patient, higher = worse; softmax reads one score a class. What a
loss needs beside the score (prior, baseline hazards, a scale) is fitted without covariates on the
training patients and then held fixed, so that a loss can be evaluated on held-out patients. All
are sums over patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
MIN_HESSIAN = 1e-6


@dataclass(frozen=True)
class Outcome:
    """Follow-up of n patients: `time` (months, > 0) and `event` (1 = observed, 0 = censored)."""

    time: Floats
    event: Floats

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Outcome":
        """From an endpoint's table, in its order."""
        return cls(table["time"].to_numpy(np.float64), table["event"].to_numpy(np.float64))


@dataclass(frozen=True)
class Labels:
    """Class of n patients as a number below `classes`."""

    code: Rows
    classes: int


class Loss(Protocol):
    """A loss bound to some patients.

    Attributes
    ----------
    outputs
        Scores a patient; scores have shape [patients], or [patients, outputs] when above 1.
    """

    outputs: int

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """First and (diagonal) second derivative of the loss by each score."""
        ...

    def value(self, score: Floats) -> float:
        """Loss of the scores, summed over patients."""
        ...


class CoxLoss:
    """Negative Cox partial log-likelihood with Breslow's handling of tied times."""

    outputs = 1

    def __init__(self, rows: Outcome) -> None:
        times, self._index = np.unique(rows.time, return_inverse=True)
        self._event = rows.event
        self._deaths = np.bincount(self._index, rows.event, len(times))

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """Martingale residuals with the sign turned, and the diagonal of the Hessian."""
        # Bounded below, so that squared sums over the smallest hazards do not underflow to 0.
        hazard = np.exp(np.maximum(score - score.max(), -300.0))
        at_risk = self._at_risk(hazard)
        first = np.cumsum(self._deaths / at_risk)[self._index] * hazard
        second = np.cumsum(self._deaths / at_risk**2)[self._index] * hazard**2
        return first - self._event, np.maximum(first - second, MIN_HESSIAN)

    def value(self, score: Floats) -> float:
        """Loss; 0 when nobody died."""
        shift = score.max()
        at_risk = self._at_risk(np.exp(np.maximum(score - shift, -300.0)))
        return float(self._deaths @ (np.log(at_risk) + shift) - self._event @ score)

    def _at_risk(self, hazard: Floats) -> Floats:
        """Sum of hazards of those still followed, at each distinct time."""
        totals = np.bincount(self._index, hazard, len(self._deaths))
        return np.cumsum(totals[::-1])[::-1].astype(np.float64)


class HazardLoss:
    """Discrete-time hazards: logit h_k = a_k + score in intervals that hold equally many events.

    Tutz and Schmid, Modeling Discrete Time-to-Event Data (2016), chapter 3: a Bernoulli likelihood
    over person-intervals. A censored patient counts in every interval survived at least half.
    """

    outputs = 1

    INTERVALS = 8

    def __init__(self, train: Outcome, rows: Outcome) -> None:
        observed = train.time[train.event > 0]
        inner = np.linspace(0, 1, self.INTERVALS + 1)[1:-1]
        cuts = np.unique(np.quantile(observed, inner)) if len(observed) else np.empty(0)
        self._edges = np.concatenate([[0.0], cuts, [max(train.time.max(), cuts.max(initial=0))]])
        at_risk, died = self._person_intervals(train)
        hazard = (died.sum(0) + 0.5) / (at_risk.sum(0) + 1.0)
        self._intercept = np.log(hazard / (1 - hazard))
        self._at_risk, self._died = self._person_intervals(rows)

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """Sum over the intervals of hazard minus event, and of hazard times survival."""
        hazard = self._at_risk / (1 + np.exp(-(self._intercept + score[:, None])))
        second = (hazard * (1 - hazard)).sum(1)
        return (hazard - self._died).sum(1), np.maximum(second, MIN_HESSIAN)

    def value(self, score: Floats) -> float:
        """Negative Bernoulli log-likelihood of all person-intervals."""
        logit = self._intercept + score[:, None]
        return float((self._at_risk * np.logaddexp(0, logit) - self._died * logit).sum())

    def _person_intervals(self, rows: Outcome) -> tuple[Floats, Floats]:
        """At risk and died, each [patients, intervals]."""
        start, end = self._edges[:-1], self._edges[1:]
        last: Rows = np.clip(np.searchsorted(end, rows.time), 0, len(end) - 1)
        died = np.where(np.arange(len(end)) == last[:, None], rows.event[:, None], 0.0)
        survived = rows.time[:, None] >= (start + end) / 2
        at_risk = np.maximum(survived & (np.arange(len(end)) <= last[:, None]), died)
        return at_risk.astype(np.float64), died


class AftLoss:
    """Log-logistic accelerated failure time: log T = location - score + scale * logistic noise."""

    outputs = 1

    MIN_SCALE = 0.2

    def __init__(self, train: Outcome, rows: Outcome) -> None:
        from scipy.optimize import minimize

        log_time = np.log(train.time)

        def loss(parameters: Floats) -> float:
            scale = np.exp(parameters[1])
            standard = (log_time - parameters[0]) / scale
            return float(self._negative_log_likelihood(standard, scale, train.event).sum())

        start = [log_time.mean(), np.log(max(log_time.std(), self.MIN_SCALE))]
        bounds = [(start[0] - 5, start[0] + 10), (np.log(self.MIN_SCALE), np.log(5.0))]
        fitted = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
        self._scale = float(np.exp(fitted[1]))
        self._centred = (np.log(rows.time) - fitted[0]) / self._scale
        self._event = rows.event

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """Derivatives of the censored log-logistic likelihood."""
        late = 1 / (1 + np.exp(-(self._centred + score / self._scale)))
        weight = 1 + self._event
        first = (weight * late - self._event) / self._scale
        return first, np.maximum(weight * late * (1 - late) / self._scale**2, MIN_HESSIAN)

    def value(self, score: Floats) -> float:
        """Negative log-likelihood of log time."""
        standard = self._centred + score / self._scale
        return float(self._negative_log_likelihood(standard, self._scale, self._event).sum())

    @staticmethod
    def _negative_log_likelihood(standard: Floats, scale: float, event: Floats) -> Floats:
        return (1 + event) * np.logaddexp(0, standard) - event * (standard - np.log(scale))


class DevianceLoss:
    """Squared error of the score against the null model's deviance residual.

    Therneau, Grambsch and Fleming, Biometrika 77 (1990): residuals are event minus Nelson-Aalen
    cumulative hazard, made symmetric.
    """

    outputs = 1

    def __init__(self, train: Outcome, rows: Outcome) -> None:
        cumulative = nelson_aalen(train, rows.time)
        martingale = rows.event - cumulative
        logarithm = np.where(rows.event > 0, np.log(np.maximum(cumulative, 1e-12)), 0.0)
        inside = np.maximum(-2 * (martingale + rows.event * logarithm), 0)
        self._target = np.sign(martingale) * np.sqrt(inside)

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """Difference to the residual; the second derivative is one."""
        return score - self._target, np.ones_like(score)

    def value(self, score: Floats) -> float:
        """Half the squared error."""
        return float(((score - self._target) ** 2).sum() / 2)


def nelson_aalen(train: Outcome, at: Floats, hazard: Floats | None = None) -> Floats:
    """Cumulative hazard of the training patients at the times `at`.

    With `hazard` (relative hazard of each training patient) it is Breslow's baseline.
    """
    weight = np.ones_like(train.time) if hazard is None else hazard
    times, index = np.unique(train.time, return_inverse=True)
    deaths = np.bincount(index, train.event, len(times))
    at_risk = np.cumsum(np.bincount(index, weight, len(times))[::-1])[::-1]
    cumulative = np.concatenate([[0.0], np.cumsum(deaths / at_risk)])
    return cumulative[np.searchsorted(times, at, side="right")]


class SoftmaxLoss:
    """Multinomial cross-entropy; scores are added to the log prior of the training patients."""

    def __init__(self, train: Labels, rows: Labels) -> None:
        self.outputs = train.classes
        self._log_prior = log_prior(train)
        self._is_class = np.eye(train.classes)[rows.code]

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """Probability minus indicator, and the diagonal bound of Friedman's K-class boosting."""
        probability = softmax(self._log_prior + score)
        factor = self.outputs / (self.outputs - 1)
        second = np.maximum(factor * probability * (1 - probability), MIN_HESSIAN)
        return probability - self._is_class, second

    def value(self, score: Floats) -> float:
        """Cross-entropy."""
        probability = (softmax(self._log_prior + score) * self._is_class).sum(1)
        return float(-np.log(np.maximum(probability, 1e-12)).sum())


def log_prior(train: Labels) -> Floats:
    """Logarithm of the class frequencies, each class counted half a patient more."""
    count = np.bincount(train.code, minlength=train.classes) + 0.5
    return np.log(count / count.sum())


def softmax(logits: Floats) -> Floats:
    """Probabilities, rows summing to 1."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


SOFTMAX_MEMBERS = 3


def bind_losses(endpoint: Endpoint, train: Sequence[str], rows: Sequence[str]) -> dict[str, Loss]:
    """Every loss of an endpoint, nuisance parameters from `train`, bound to the patients `rows`.

    Parameters
    ----------
    train, rows
        Patient ids, all of them in `endpoint.table`.
    """
    fitted, bound = endpoint.table.loc[list(train)], endpoint.table.loc[list(rows)]
    if endpoint.kind == "survival":
        known, wanted = Outcome.of(fitted), Outcome.of(bound)
        return {
            "cox": CoxLoss(wanted),
            "hazard": HazardLoss(known, wanted),
            "aft": AftLoss(known, wanted),
            "deviance": DevianceLoss(known, wanted),
        }
    labels = [Labels(t["label"].to_numpy(np.int64), len(endpoint.classes)) for t in (fitted, bound)]
    # One loss for classes, several times: the average over draws of features and patients is
    # what the four losses give survival.
    return {f"softmax_{member}": SoftmaxLoss(*labels) for member in range(SOFTMAX_MEMBERS)}

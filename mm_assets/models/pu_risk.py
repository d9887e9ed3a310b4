"""Learning from labelled and unlabeled instances: Elkan-Noto, and the non-negative PU risk.

The papers call the labelled class positive. Here it is whatever class the sure examples belong to:
tile selection (`models.pu`) is sure of the negatives. Rows are instances, columns features.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTY = 0.1
BATCH = 256
STEPS = 400
RATE = 0.03
DECAYS = (0.9, 0.999)


def sigmoid(score: Floats) -> Floats:
    """Logistic function."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * score)))


def sigmoid_loss(margin: Floats) -> Floats:
    """Kiryo's surrogate loss of a margin: 1 / (1 + exp(margin))."""
    return sigmoid(-margin)


def unbiased_risk(labelled: Floats, unlabeled: Floats, prior: float) -> float:
    """Unbiased PU risk (du Plessis et al., NeurIPS 2014) under the sigmoid loss.

    Parameters
    ----------
    labelled, unlabeled
        Scores of the instances; above 0 speaks for the labelled class.
    prior
        Share of the labelled class among the unlabeled.
    """
    known, rest = _risk_parts(labelled, unlabeled, prior)
    return known + rest


def non_negative_risk(labelled: Floats, unlabeled: Floats, prior: float) -> float:
    """Non-negative PU risk (Kiryo et al., NeurIPS 2017): the part that cannot be below 0 is not.

    Parameters are those of `unbiased_risk`.
    """
    known, rest = _risk_parts(labelled, unlabeled, prior)
    return known + max(rest, 0.0)


def _risk_parts(labelled: Floats, unlabeled: Floats, prior: float) -> tuple[float, float]:
    """Risk of the labelled class, and the estimate of that of the other class."""
    known = prior * float(sigmoid_loss(labelled).mean())
    rest = float(sigmoid_loss(-unlabeled).mean()) - prior * float(sigmoid_loss(-labelled).mean())
    return known, rest


def labelling_frequency(held_out: Floats) -> float:
    """Elkan and Noto's c (KDD 2008, estimator e1): probability that a sure instance is labelled.

    Parameters
    ----------
    held_out
        Probability of being labelled, as a classifier of labelled against unlabeled gives it for
        labelled instances that it was not fitted to.
    """
    return float(held_out.mean())


def elkan_noto_prior(held_out: Floats) -> float:
    """Share of the labelled class among the unlabeled, by Elkan and Noto's c.

    Parameters
    ----------
    held_out
        As in `labelling_frequency`, of a classifier in which labelled and unlabeled instances
        weigh the same in total.
    """
    frequency = labelling_frequency(held_out)
    return min(1.0, (1 - frequency) / max(frequency, 1e-9))


def excess_prior(labelled: Floats, unlabeled: Floats) -> float:
    """Share of the labelled class among the unlabeled, from what they have in excess.

    An unlabeled sample of which a share `prior` is distributed as the labelled has
    P(unlabeled in A) - P(labelled in A) <= 1 - prior for any set A; the sets are those of
    instances least like the labelled class. The bound is met where the classes are apart, and is
    otherwise too large a prior. Ratios of P over the instances most like the labelled class bound
    it more sharply (Blanchard, Lee and Scott, JMLR 2010), but fall to 0 when some labelled
    instances have no like among the unlabeled, as here tiles of the other classes' own.

    Parameters
    ----------
    labelled, unlabeled
        Held-out scores, higher = more like the labelled class.
    """
    at = np.unique(np.concatenate([labelled, unlabeled]))
    excess = upper_tail(labelled, at) - upper_tail(unlabeled, at)
    return float(1 - max(excess.max(), 0.0))


def upper_tail(scores: Floats, at: Floats) -> Floats:
    """Share of the scores that are `at` or higher."""
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, at, side="left")
    return np.asarray((len(ordered) - below) / len(ordered))


def fit_logistic(labelled: Floats, unlabeled: Floats) -> tuple[Floats, float]:
    """Ridge-penalized logistic regression of labelled against unlabeled, each weighing half.

    Returns
    -------
    tuple
        Weights [features] and intercept; scores above 0 speak for labelled.
    """
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([unlabeled, labelled])
    is_labelled = np.repeat([0, 1], [len(unlabeled), len(labelled)])
    # The penalty is per instance: the same for any number of tiles.
    model = LogisticRegression(C=1 / (PENALTY * len(rows)), class_weight="balanced", max_iter=500)
    model.fit(rows, is_labelled)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def fit_non_negative(
    labelled: Floats, unlabeled: Floats, prior: float, seed: int
) -> tuple[Floats, float]:
    """Linear classifier under the non-negative PU risk, by Kiryo's algorithm 1 with Adam.

    A batch whose estimate of the other class's risk is below 0 steps against that estimate's
    gradient, and only there. The penalty is that of `fit_logistic`.

    Returns
    -------
    tuple
        Weights [features] and intercept; scores above 0 speak for the labelled class.
    """
    rng = np.random.default_rng(seed)
    labelled, unlabeled = _with_ones(labelled), _with_ones(unlabeled)
    weights = np.zeros(labelled.shape[1])
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, STEPS + 1):
        known = labelled[rng.integers(0, len(labelled), BATCH)]
        other = unlabeled[rng.integers(0, len(unlabeled), BATCH)]
        slope = _non_negative_gradient(known, other, prior, weights)
        slope[:-1] += PENALTY * weights[:-1] / 4  # the sigmoid loss is a quarter as steep
        mean = DECAYS[0] * mean + (1 - DECAYS[0]) * slope
        square = DECAYS[1] * square + (1 - DECAYS[1]) * slope**2
        unbiased = mean / (1 - DECAYS[0] ** step), square / (1 - DECAYS[1] ** step)
        rate = RATE * (1 - step / STEPS)
        weights = weights - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return weights[:-1], float(weights[-1])


def _non_negative_gradient(
    labelled: Floats, unlabeled: Floats, prior: float, weights: Floats
) -> Floats:
    known, other = labelled @ weights, unlabeled @ weights
    # The loss of a margin m falls by s(m) s(-m); for the other class the margin is -score.
    steep_known, steep_other = (sigmoid(s) * sigmoid(-s) for s in (known, other))
    risk_known = -prior * (steep_known @ labelled) / len(labelled)
    risk_rest = (steep_other @ unlabeled) / len(unlabeled) + risk_known
    if _risk_parts(known, other, prior)[1] < 0:
        return np.asarray(-risk_rest)
    return np.asarray(risk_known + risk_rest)


def _with_ones(rows: Floats) -> Floats:
    return np.column_stack([rows, np.ones(len(rows))])

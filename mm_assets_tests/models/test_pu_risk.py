"""Estimators of positive-unlabeled learning on simulated mixtures with a known prior."""

import numpy as np
import pytest
from numpy.typing import NDArray

from mm_assets.models.pu_risk import (
    elkan_noto_prior,
    excess_prior,
    fit_logistic,
    fit_non_negative,
    labelling_frequency,
    non_negative_risk,
    sigmoid,
    sigmoid_loss,
    unbiased_risk,
)

PRIOR = 0.6
Floats = NDArray[np.float64]


def mixture(
    rng: np.random.Generator, count: int, distance: float, prior: float = PRIOR
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Labelled rows, unlabeled rows, and which of these are of the labelled class."""
    labelled = rng.normal([distance / 2, 0], size=(count, 2))
    is_labelled = rng.random(count) < prior
    unlabeled = rng.normal(size=(count, 2))
    unlabeled[:, 0] += np.where(is_labelled, distance / 2, -distance / 2)
    return labelled, unlabeled, is_labelled


def test_unbiased_risk_is_the_supervised_risk_on_average() -> None:
    rng = np.random.default_rng(0)
    estimates, truth = [], []
    for _ in range(400):
        labelled, unlabeled, is_labelled = mixture(rng, 50, 2.0)
        score = 0.7 * unlabeled[:, 0] - 0.2
        estimates.append(unbiased_risk(0.7 * labelled[:, 0] - 0.2, score, PRIOR))
        truth.append(sigmoid_loss(np.where(is_labelled, score, -score)).mean())
    error = np.subtract(estimates, truth)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))


def test_unbiased_and_non_negative_risk_are_consistent() -> None:
    labelled, unlabeled, is_labelled = mixture(np.random.default_rng(1), 200_000, 2.0)
    known, score = labelled[:, 0], unlabeled[:, 0]
    truth = sigmoid_loss(np.where(is_labelled, score, -score)).mean()
    assert unbiased_risk(known, score, PRIOR) == pytest.approx(truth, abs=0.01)
    assert non_negative_risk(known, score, PRIOR) == pytest.approx(truth, abs=0.01)


def test_non_negative_risk_stops_where_the_unbiased_one_falls_below_zero() -> None:
    # What a flexible model reaches: labelled instances on one side, all unlabeled on the other.
    labelled, unlabeled = np.full(20, 9.0), np.full(20, -9.0)
    assert unbiased_risk(labelled, unlabeled, PRIOR) < -0.5
    assert non_negative_risk(labelled, unlabeled, PRIOR) >= 0
    rng = np.random.default_rng(2)
    for _ in range(200):
        labelled, unlabeled, _ = mixture(rng, 8, 1.0)
        pair = labelled[:, 0], unlabeled[:, 0], PRIOR
        assert non_negative_risk(*pair) >= max(unbiased_risk(*pair), 0)


def test_non_negative_fit_finds_the_boundary_of_the_prior_given() -> None:
    labelled, unlabeled, is_labelled = mixture(np.random.default_rng(3), 4000, 3.0)
    weights, intercept = fit_non_negative(labelled, unlabeled, PRIOR, seed=0)
    score = unlabeled @ weights + intercept
    # Two Gaussians 3 apart: the best rule is right about 94 times in 100.
    assert ((score > 0) == is_labelled).mean() > 0.92
    assert abs(weights[1]) < 0.2 * weights[0]
    # Labelled against unlabeled alone puts the boundary elsewhere: it calls most labelled.
    plain, offset = fit_logistic(labelled, unlabeled)
    assert ((unlabeled @ plain + offset > 0) == is_labelled).mean() < 0.92


def test_non_negative_fit_repeats_with_the_seed() -> None:
    labelled, unlabeled, _ = mixture(np.random.default_rng(4), 300, 2.0)
    first, second = (fit_non_negative(labelled, unlabeled, PRIOR, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("prior", [0.3, 0.6, 0.9])
def test_elkan_notos_c_is_the_labelling_frequency_where_classes_are_apart(prior: float) -> None:
    rng = np.random.default_rng(6)
    labelled, unlabeled, _ = mixture(rng, 6000, 8.0, prior)
    weights, intercept = fit_logistic(labelled, unlabeled)
    fresh, _, _ = mixture(rng, 6000, 8.0, prior)
    held_out = sigmoid(fresh @ weights + intercept)
    # Both samples weigh the same, so of the labelled class's weight 1 / (1 + prior) is labelled.
    assert labelling_frequency(held_out) == pytest.approx(1 / (1 + prior), abs=0.03)
    assert elkan_noto_prior(held_out) == pytest.approx(prior, abs=0.08)


def test_the_excess_gives_the_prior_where_classes_are_apart_and_a_bound_where_not() -> None:
    rng = np.random.default_rng(7)
    for distance, slack in ((8.0, 0.02), (2.0, 0.2)):
        labelled, unlabeled, _ = mixture(rng, 20_000, distance)
        found = excess_prior(labelled[:, 0], unlabeled[:, 0])
        assert PRIOR - 0.01 < found < PRIOR + slack
        # Elkan and Noto's c suffers more from overlap.
        weights, intercept = fit_logistic(labelled, unlabeled)
        assert elkan_noto_prior(sigmoid(labelled @ weights + intercept)) > found - 0.03


def test_the_excess_stands_labelled_instances_that_the_unlabeled_have_not() -> None:
    rng = np.random.default_rng(9)
    shared = rng.normal(size=(2, 6000))
    labelled = np.concatenate([shared[0], rng.normal(8, 1, 4000)])
    unlabeled = np.concatenate([shared[1], rng.normal(-8, 1, 4000)])
    assert excess_prior(labelled, unlabeled) == pytest.approx(0.6, abs=0.02)


def test_everything_is_of_the_labelled_class_where_both_samples_are_alike() -> None:
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=20_000), rng.normal(size=20_000)
    assert excess_prior(first, second) > 0.97
    assert elkan_noto_prior(np.full(100, 0.5)) == pytest.approx(1.0)

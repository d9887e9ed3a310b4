"""Calibration: bins, line and error on predictions whose calibration is known."""

import numpy as np
import pytest

from mm_assets.evaluation.calibration import (
    calibration_line,
    class_calibration,
    expected_calibration_error,
    survival_calibration,
    survival_slope,
)


def drawn(seed=0, count=4000):
    generator = np.random.default_rng(seed)
    log_odds = generator.normal(size=count) * 1.5
    probability = 1 / (1 + np.exp(-log_odds))
    return log_odds, probability, generator.random(count) < probability


def test_true_probabilities_have_slope_one_and_intercept_zero():
    _, probability, positive = drawn()
    slope, intercept = calibration_line(positive, probability)
    assert slope == pytest.approx(1, abs=0.08)
    assert intercept == pytest.approx(0, abs=0.08)
    assert expected_calibration_error(positive, probability) < 0.03


def test_too_extreme_predictions_have_half_the_slope():
    log_odds, _, positive = drawn()
    slope, _ = calibration_line(positive, 1 / (1 + np.exp(-2 * log_odds)))
    assert slope == pytest.approx(0.5, abs=0.05)


def test_line_equals_unpenalised_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    log_odds, probability, positive = drawn(1, 300)
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    fitted.fit(log_odds[:, None], positive)
    assert calibration_line(positive, probability)[0] == pytest.approx(fitted.coef_[0, 0], abs=1e-5)


def test_what_has_no_line_is_nan():
    nobody = np.zeros(10, dtype=bool)
    half = np.arange(10) % 2 == 0
    assert np.isnan(calibration_line(nobody, np.linspace(0.1, 0.9, 10))).all()
    constant = calibration_line(half, np.full(10, 0.5))
    assert np.isnan(constant[0])
    assert constant[1] == pytest.approx(0, abs=1e-9)
    separated = calibration_line(np.arange(10) > 4, np.linspace(0.1, 0.9, 10))
    assert np.isnan(separated[0])


def test_expected_calibration_error_by_hand():
    positive = np.array([True, False, True, True])
    probability = np.array([0.15, 0.15, 0.95, 1.0])
    assert expected_calibration_error(positive, probability) == pytest.approx((0.7 + 0.05) / 4)


def test_bins_hold_every_patient_once_and_a_wilson_interval():
    _, probability, positive = drawn(2, 200)
    bins = class_calibration(positive, probability)
    assert bins["patients"].sum() == 200
    assert len(bins) == 10
    assert bins["predicted"].is_monotonic_increasing
    assert (bins["low"] <= bins["observed"]).all()
    assert (bins["observed"] <= bins["high"]).all()
    half = class_calibration(np.arange(40) % 2 == 0, np.full(40, 0.5))
    assert len(half) == 1
    # Wilson's interval of 20 out of 40.
    assert half[["low", "high"]].iloc[0].tolist() == pytest.approx([0.3520, 0.6480], abs=1e-4)


def test_survival_bins_are_kaplan_meier_and_open_where_follow_up_ends():
    generator = np.random.default_rng(0)
    time = generator.exponential(50, 100)
    event = np.ones(100, dtype=bool)
    survival = np.repeat([0.2, 0.8], 50)
    bins = survival_calibration(time, event, survival, 20.0)
    assert bins["predicted"].tolist() == pytest.approx([0.2, 0.8])
    assert bins["observed"].tolist() == pytest.approx(
        [(time[50:] <= 20).mean(), (time[:50] <= 20).mean()]
    )
    late = survival_calibration(time, event, survival, time.max() + 1)
    assert late["observed"].isna().all()


def test_survival_slope_of_the_truth_is_one_and_of_a_constant_is_undefined():
    generator = np.random.default_rng(0)
    score = generator.normal(size=1500)
    time = generator.exponential(np.exp(-score))
    event = np.ones(1500, dtype=bool)
    survival = np.exp(-0.5 * np.exp(score))
    assert survival_slope(time, event, survival) == pytest.approx(1, abs=0.1)
    assert np.isnan(survival_slope(time, event, np.full(1500, 0.5)))
    assert np.isnan(survival_slope(time, ~event, survival))

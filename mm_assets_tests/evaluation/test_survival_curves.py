"""Kaplan-Meier curves against lifelines; the censoring curve and its limits."""

import numpy as np
import pytest

from mm_assets.evaluation.survival_curves import CensoringCurve, kaplan_meier, median_follow_up


@pytest.mark.parametrize("event_share", [0.1, 0.6, 1.0])
def test_curve_and_intervals_equal_lifelines(event_share):
    from lifelines import KaplanMeierFitter

    generator = np.random.default_rng(0)
    time = generator.integers(1, 30, 80).astype(float)
    event = generator.random(80) < event_share
    curve = kaplan_meier(time, event)
    fitted = KaplanMeierFitter().fit(time, event)
    expected = fitted.survival_function_["KM_estimate"].loc[curve.time]
    intervals = fitted.confidence_interval_.loc[curve.time].to_numpy()
    inside = (expected > 0) & (expected < 1)
    assert curve.survival == pytest.approx(expected.to_numpy(), abs=1e-12)
    assert curve.low[inside] == pytest.approx(intervals[inside, 0], abs=1e-9)
    assert curve.high[inside] == pytest.approx(intervals[inside, 1], abs=1e-9)
    assert list(curve.at_risk) == list(fitted.event_table["at_risk"].loc[curve.time])


def test_median_follow_up_is_the_reverse_kaplan_meier():
    from lifelines import KaplanMeierFitter

    generator = np.random.default_rng(2)
    time, event = generator.exponential(30, 200), generator.random(200) < 0.4
    expected = KaplanMeierFitter().fit(time, ~event).median_survival_time_
    assert median_follow_up(time, event) == pytest.approx(expected)
    assert np.isnan(median_follow_up(time, np.ones(200, dtype=bool)))


def test_a_curve_says_nothing_beyond_its_follow_up():
    curve = kaplan_meier(np.array([2.0, 4.0]), np.array([True, False]))
    assert curve.at(1.0) == (1.0, 1.0, 1.0)
    assert curve.at(3.0)[0] == 0.5
    assert np.isnan(curve.at(5.0)).all()


def test_at_a_tie_the_event_comes_before_the_censoring():
    curve = CensoringCurve.fit(np.array([1.0, 2.0, 2.0, 3.0]), np.array([True, True, False, True]))
    assert curve.at(np.array([0.5, 1.0, 2.0, 3.0])) == pytest.approx([1, 1, 0.5, 0.5])


def test_nobody_observed_that_long_has_no_weight():
    curve = CensoringCurve.fit(np.array([1.0, 2.0]), np.array([False, False]))
    assert list(curve.weights(np.array([0.5, 1.0, 2.0]))) == [1.0, 2.0, 0.0]


def test_truncation_stays_inside_training_follow_up():
    time = np.arange(1.0, 31.0)
    curve = CensoringCurve.fit(time, np.zeros(30, dtype=bool))
    assert curve.truncation((6.0, 12.0)) == 12.0
    # After month 28, under 5 % of the patients are still observed.
    assert curve.truncation((600.0,)) == 28.0
    assert curve.truncation(()) == 28.0

"""The bootstrap: what is drawn, and that its intervals and p values mean what they say."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_assets.evaluation.metrics import harrell_c
from mm_assets.evaluation.resampling import holm, interval, patient_counts, two_sided_p


def two_repeats():
    ids = [f"P{number}" for number in range(12)]
    return pd.DataFrame(
        {
            "repeat": [0] * 12 + [1] * 12,
            "fold": [number % 3 for number in range(12)] + [number // 4 for number in range(12)],
            "patient_id": ids + ids,
        }
    )


def test_every_resample_keeps_the_fold_sizes_and_the_seed_decides():
    tests = two_repeats()
    counts = patient_counts(tests, 50, seed=3)
    assert counts.shape == (12, 51)
    assert (counts[0] == 1).all()
    fold = tests[tests["repeat"] == 0].set_index("patient_id")["fold"]
    assert (counts.groupby(fold).sum() == 4).all(axis=None)
    pd.testing.assert_frame_equal(counts, patient_counts(tests.sample(frac=1), 50, seed=3))
    assert not counts.equals(patient_counts(tests, 50, seed=4))


def test_intervals_of_the_c_index_cover_its_true_value():
    generator = np.random.default_rng(0)
    tests = pd.DataFrame({"repeat": 0, "fold": 0, "patient_id": [f"P{n:03d}" for n in range(120)]})

    def cohort(count):
        risk = generator.normal(size=count)
        death, end = generator.exponential(np.exp(-risk)), generator.exponential(2, size=count)
        return np.minimum(death, end), death <= end, risk

    truth = float(harrell_c(*cohort(200_000)))
    covered = 0
    for seed in range(150):
        counts = patient_counts(tests, 200, seed).to_numpy()
        low, high = interval(harrell_c(*cohort(120), counts)[1:])
        covered += low <= truth <= high
    # 95 % of 150 is 142; below 133 or above 149 has a probability under 0.002.
    assert 133 <= covered <= 149


def test_p_values_of_no_difference_are_uniform_enough():
    generator = np.random.default_rng(1)
    small = 0
    for _ in range(300):
        gaps = generator.normal(size=50)
        means = generator.choice(gaps, size=(200, 50)).mean(axis=1)
        small += two_sided_p(float(gaps.mean()), means) < 0.05
    assert 4 <= small <= 30


def test_p_of_no_difference_at_all_is_one_and_of_a_clear_one_survives_correction():
    assert two_sided_p(0.0, np.zeros(100)) == 1.0
    resampled = np.random.default_rng(0).normal(0.1, 0.01, size=1000)
    assert two_sided_p(0.1, resampled) < 1e-6
    assert two_sided_p(-0.1, -resampled) == two_sided_p(0.1, resampled)
    assert np.isnan(two_sided_p(float("nan"), np.full(10, np.nan)))


def test_interval_needs_most_resamples():
    values = np.arange(100.0)
    assert interval(values) == pytest.approx((2.475, 96.525))
    values[:60] = np.nan
    assert np.isnan(interval(values)).all()
    assert np.isnan(interval(np.array([]))).all()


def test_holm_by_hand():
    adjusted = holm(np.array([0.01, 0.04, np.nan, 0.03]))
    assert adjusted == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_never_below_the_raw_p(p_values):
    raw = np.array(p_values)
    adjusted = holm(raw)
    assert (adjusted >= raw).all()
    # The smallest p pays for all comparisons, as with Bonferroni.
    assert adjusted.min() == pytest.approx(min(raw.min() * len(raw), 1))
    assert (np.diff(adjusted[np.argsort(raw, kind="stable")]) >= 0).all()

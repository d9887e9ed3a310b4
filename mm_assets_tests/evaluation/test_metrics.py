"""Metrics against lifelines, scikit-learn and torchsurv, and on inputs with nothing to measure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_assets.evaluation import metrics
from mm_assets.evaluation.survival_curves import CensoringCurve

PATIENT = st.tuples(st.integers(1, 8), st.booleans(), st.integers(0, 6))
SETTINGS = settings(max_examples=150, deadline=None)


def survival_data(seed, count=120, *, censored=0.5, levels=None):
    """Times, events and risks; `levels` makes ties in all of them."""
    generator = np.random.default_rng(seed)
    risk = generator.normal(size=count)
    time = generator.exponential(30 * np.exp(-risk)) + 0.1
    event = generator.random(count) > censored
    if levels:
        time = np.ceil(time * levels / time.max()) * 10
        risk = np.round(risk * 2) / 2
    return time, event, risk


@SETTINGS
@given(st.lists(PATIENT, min_size=2, max_size=40))
def test_harrell_equals_lifelines_with_ties_everywhere(patients):
    from lifelines.utils import concordance_index

    time, event, risk = (np.array(column, dtype=float) for column in zip(*patients, strict=True))
    found = float(metrics.harrell_c(time, event == 1, risk))
    try:
        expected = concordance_index(time, -risk, event)
    except ZeroDivisionError:
        expected = np.nan
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("censored", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("levels", [None, 12])
def test_harrell_equals_lifelines_on_larger_data(censored, levels):
    from lifelines.utils import concordance_index

    time, event, risk = survival_data(1, 1500, censored=censored, levels=levels)
    expected = concordance_index(time, -risk, event)
    assert float(metrics.harrell_c(time, event, risk)) == pytest.approx(expected, abs=1e-12)


@SETTINGS
@given(st.lists(PATIENT, min_size=2, max_size=25), st.integers(0, 1000))
def test_integer_weights_are_copies_of_patients(patients, seed):
    time, event, risk = (np.array(column, dtype=float) for column in zip(*patients, strict=True))
    counts = np.random.default_rng(seed).integers(0, 3, size=(len(time), 4))
    weighted = metrics.harrell_c(time, event == 1, risk, counts)
    for column, found in zip(counts.T, weighted, strict=True):
        copies = (np.repeat(values, column) for values in (time, event == 1, risk))
        assert found == pytest.approx(float(metrics.harrell_c(*copies)), abs=1e-12, nan_ok=True)


def test_weighted_columns_beyond_one_slice_of_the_cache():
    time, event, risk = survival_data(2, 700)
    counts = np.random.default_rng(0).multinomial(700, np.full(700, 1 / 700), size=250).T
    weighted = metrics.harrell_c(time, event, risk, counts)
    alone = [float(metrics.harrell_c(time, event, risk, counts[:, c])) for c in (0, 100, 249)]
    assert weighted[[0, 100, 249]] == pytest.approx(alone, abs=1e-12)


def torch_of(*arrays):
    import torch

    return [torch.tensor(a) if a.dtype == bool else torch.tensor(a).float() for a in arrays]


@pytest.mark.parametrize(("censored", "levels"), [(0.3, None), (0.8, None), (0.5, 25)])
def test_uno_dynamic_auc_and_brier_equal_torchsurv(censored, levels):
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    train_time, train_event, _ = survival_data(3, 300, censored=censored, levels=levels)
    time, event, risk = survival_data(4, 150, censored=censored, levels=levels)
    horizon = float(np.quantile(time, 0.4))
    survival = np.exp(-horizon / 30 * np.exp(risk))
    curve = CensoringCurve.fit(train_time, train_event)
    t_train_time, t_train_event, t_time, t_event, t_risk, t_horizon = torch_of(
        train_time, train_event, time, event, risk, np.array([horizon])
    )
    weight = get_ipcw(t_train_event, t_train_time, t_time)
    at_horizon = get_ipcw(t_train_event, t_train_time, t_horizon)

    tau = float(np.quantile(train_time, 0.8))
    (t_tau,) = torch_of(np.array(tau))
    expected = ConcordanceIndex()(t_risk, t_event, t_time, weight=weight, tmax=t_tau)
    found = metrics.uno_c(time, event, risk, curve, tau)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)

    expected = Auc()(
        t_risk, t_event, t_time, new_time=t_horizon, weight=weight, weight_new_time=at_horizon
    )
    found = metrics.auc_at(time, event, risk, horizon, curve)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)

    (t_survival,) = torch_of(survival[:, None])
    expected = BrierScore()(
        t_survival, t_event, t_time, new_time=t_horizon, weight=weight, weight_new_time=at_horizon
    )
    found = metrics.brier_at(time, event, survival, horizon, curve)
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(("censored", "levels"), [(0.3, None), (0.8, None), (0.5, 25)])
def test_integrated_brier_equals_torchsurv_between_its_first_and_last_month(censored, levels):
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.stats.ipcw import get_ipcw

    train_time, train_event, _ = survival_data(3, 300, censored=censored, levels=levels)
    time, event, risk = survival_data(4, 150, censored=censored, levels=levels)
    end = min(time.max(), train_time[train_event].max()) * 0.6
    months = np.linspace(end / 15, end, 15)
    survival = np.exp(-months / 30 * np.exp(risk)[:, None])
    curve = CensoringCurve.fit(train_time, train_event)
    t_train_time, t_train_event, t_time, t_event, t_months, t_survival = torch_of(
        train_time, train_event, time, event, months, survival
    )
    score = BrierScore()
    score(
        t_survival,
        t_event,
        t_time,
        new_time=t_months,
        weight=get_ipcw(t_train_event, t_train_time, t_time),
        weight_new_time=get_ipcw(t_train_event, t_train_time, t_months),
    )
    found = float(metrics.integrated_brier(time, event, survival, months, curve))
    # torchsurv starts at the first month, the metric at 0, where nobody is wrong.
    first = float(metrics.brier_at(time, event, survival[:, 0], months[0], curve))
    later = (found * end - first * months[0] / 2) / (end - months[0])
    assert later == pytest.approx(float(score.integral()), abs=1e-5)


def test_integrated_brier_ends_with_the_follow_up_and_takes_resamples():
    time, event, risk = survival_data(8, 80)
    curve = CensoringCurve.fit(time, event)
    months = np.array([5.0, 10.0, time.max() + 1])
    survival = np.exp(-months / 30 * np.exp(risk)[:, None])
    short = metrics.integrated_brier(time, event, survival[:, :2], months[:2], curve)
    assert float(metrics.integrated_brier(time, event, survival, months, curve)) == float(short)
    counts = np.random.default_rng(0).integers(0, 3, size=(80, 3)).astype(float)
    weighted = metrics.integrated_brier(time, event, survival, months, curve, counts)
    for column, value in zip(counts.T.astype(int), weighted, strict=True):
        copies = (np.repeat(values, column, axis=0) for values in (time, event, survival))
        time_, event_, survival_ = copies
        alone = metrics.integrated_brier(time_, event_, survival_, months, curve)
        assert value == pytest.approx(float(alone), abs=1e-12)
    assert np.isnan(metrics.integrated_brier(time, event, survival[:, 2:], months[2:], curve))


@SETTINGS
@given(
    st.lists(PATIENT, min_size=3, max_size=30),
    st.sampled_from(["ties", "censored", "constant", "single event"]),
)
def test_uno_auc_and_brier_equal_torchsurv_where_data_are_poor(patients, poverty):
    import torch
    from torchsurv.metrics.auc import Auc
    from torchsurv.metrics.brier_score import BrierScore
    from torchsurv.metrics.cindex import ConcordanceIndex
    from torchsurv.stats.ipcw import get_ipcw

    time, event, risk = (np.array(column, dtype=float) for column in zip(*patients, strict=True))
    event = event == 1
    if poverty == "censored":
        event &= np.arange(len(event)) % 5 == 0
    if poverty == "constant":
        risk = np.ones_like(risk)
    if poverty == "single event":
        event = np.arange(len(event)) == int(np.argmin(time))
    horizon = float(np.median(time))
    # Censoring of other patients, who are followed for longer than these.
    train_time, train_event, _ = survival_data(9, 60)
    train_time = np.append(train_time, 100.0)
    train_event = np.append(train_event, False)
    curve = CensoringCurve.fit(train_time, train_event)
    survival = np.exp(-0.1 * horizon * (1 + risk) / (1 + risk.max()))
    found = [
        float(metrics.uno_c(time, event, risk, curve, 9.0)),
        float(metrics.auc_at(time, event, risk, horizon, curve)),
        float(metrics.brier_at(time, event, survival, horizon, curve)),
    ]
    if not event.any():
        assert np.isnan(found[:2]).all()
        return
    t_train_time, t_train_event, t_time, t_event, t_risk, t_horizon, t_survival = torch_of(
        train_time, train_event, time, event, risk, np.array([horizon]), survival[:, None]
    )
    weight = get_ipcw(t_train_event, t_train_time, t_time)
    later = {
        "new_time": t_horizon,
        "weight": weight,
        "weight_new_time": get_ipcw(t_train_event, t_train_time, t_horizon),
    }
    (t_end,) = torch_of(np.array(9.0))
    references = {
        0: lambda: ConcordanceIndex()(t_risk, t_event, t_time, weight=weight, tmax=t_end),
        1: lambda: Auc()(t_risk, t_event, t_time, **later),
        2: lambda: BrierScore()(t_survival, t_event, t_time, **later),
    }
    for place, reference in references.items():
        # Where nothing is defined the reference divides by zero or refuses.
        if not np.isnan(found[place]):
            expected = torch.as_tensor(reference()).item()
            assert found[place] == pytest.approx(expected, abs=1e-5)


def test_uno_is_harrell_without_censoring():
    time, event, risk = survival_data(5, censored=0.0)
    curve = CensoringCurve.fit(time, event)
    uno = metrics.uno_c(time, event, risk, curve, time.max())
    assert float(uno) == pytest.approx(float(metrics.harrell_c(time, event, risk)), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_two_class_metrics_equal_scikit_learn(seed):
    from sklearn.metrics import (
        average_precision_score,
        brier_score_loss,
        log_loss,
        roc_auc_score,
    )

    generator = np.random.default_rng(seed)
    label = generator.integers(0, 2, 200)
    score = np.round(np.clip(label * 0.2 + generator.random(200) * 0.8, 0, 1), 1)
    both = np.column_stack([1 - score, score])
    counts = generator.integers(0, 4, 200).astype(float)
    for weights in (None, counts):
        options = {"sample_weight": weights}
        pairs = [
            (metrics.macro(metrics.roc_auc, label, both, weights), roc_auc_score),
            (
                metrics.macro(metrics.average_precision, label, both, weights),
                average_precision_score,
            ),
            (metrics.brier(label, both, weights), brier_score_loss),
            (metrics.log_loss(label, both, weights), log_loss),
        ]
        for found, reference in pairs:
            assert float(found) == pytest.approx(reference(label, score, **options), abs=1e-12)


def test_many_class_metrics_equal_scikit_learn():
    from sklearn.metrics import (
        average_precision_score,
        brier_score_loss,
        log_loss,
        roc_auc_score,
    )

    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, 300)
    share = generator.dirichlet(np.ones(4), 300) + np.eye(4)[label] * 0.5
    share /= share.sum(axis=1, keepdims=True)
    assert float(metrics.macro(metrics.roc_auc, label, share)) == pytest.approx(
        roc_auc_score(label, share, multi_class="ovr"), abs=1e-12
    )
    assert float(metrics.macro(metrics.average_precision, label, share)) == pytest.approx(
        average_precision_score(np.eye(4)[label], share), abs=1e-12
    )
    assert float(metrics.brier(label, share)) == pytest.approx(
        brier_score_loss(label, share, labels=range(4)), abs=1e-12
    )
    assert float(metrics.log_loss(label, share)) == pytest.approx(log_loss(label, share), abs=1e-12)


def test_constant_predictions_rank_at_one_half():
    time, event, _ = survival_data(6)
    flat = np.ones_like(time)
    curve = CensoringCurve.fit(time, event)
    label = event.astype(int)
    assert float(metrics.harrell_c(time, event, flat)) == 0.5
    assert float(metrics.uno_c(time, event, flat, curve, 60)) == pytest.approx(0.5, abs=1e-12)
    assert float(metrics.auc_at(time, event, flat, 10, curve)) == pytest.approx(0.5, abs=1e-12)
    assert float(metrics.roc_auc(event, flat)) == 0.5
    assert float(metrics.macro(metrics.roc_auc, label, np.full((len(label), 3), 1 / 3))) == 0.5


def test_nothing_to_measure_is_nan():
    time, event, risk = survival_data(7)
    nobody = np.zeros_like(event)
    curve = CensoringCurve.fit(time, event)
    assert np.isnan(metrics.harrell_c(time, nobody, risk))
    assert np.isnan(metrics.uno_c(time, nobody, risk, curve, 60))
    assert np.isnan(metrics.auc_at(time, nobody, risk, 10, curve))
    assert np.isnan(metrics.brier_at(time, event, risk, time.max() + 1, curve))
    assert np.isnan(metrics.roc_auc(nobody, risk))
    assert np.isnan(metrics.average_precision(~nobody, risk))
    assert np.isnan(metrics.harrell_c(time[:0], event[:0], risk[:0]))


def test_a_single_event_is_compared_with_all_who_outlive_it():
    time = np.array([1.0, 5.0, 3.0, 4.0])
    event = np.array([False, False, True, False])
    assert float(metrics.harrell_c(time, event, np.array([9.0, 2.0, 1.0, 0.0]))) == 0.5


def test_a_class_that_is_absent_is_left_out_of_the_mean():
    label = np.array([0, 0, 1, 1])
    share = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.65, 0.35, 0.0]])
    expected = (
        metrics.roc_auc(label == 0, share[:, 0]) + metrics.roc_auc(label == 1, share[:, 1])
    ) / 2
    assert float(metrics.macro(metrics.roc_auc, label, share)) == pytest.approx(float(expected))


def test_direction_of_metrics():
    assert metrics.higher_is_better("auc_36")
    assert not metrics.higher_is_better("brier_36")
    assert not metrics.higher_is_better("log_loss")

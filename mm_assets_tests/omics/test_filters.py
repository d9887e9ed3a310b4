"""The univariate filter: right statistics, and nothing of a test fold in them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.statistics import logrank_test
from scipy import stats

from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.config import EvaluationConfig
from mm_assets.cohort.splits import make_splits
from mm_assets.omics.filters import (
    apply_filter,
    cox_score,
    filter_folds,
    fit_filter,
    kruskal_wallis,
)

NOBODY = pd.DataFrame(columns=["patient_id", "reason"])


def cohort(
    patients: int = 120, features: int = 40, seed: int = 0, kind: str = "survival"
) -> tuple[pd.DataFrame, Endpoint]:
    """Omics of which the first expression and the first mutation carry the outcome."""
    rng = np.random.default_rng(seed)
    index = pd.Index([f"P{i:03d}" for i in range(patients)], name="patient_id")
    expression = rng.normal(size=(patients, features))
    mutation = (rng.random((patients, 5)) < 0.2).astype(float)
    names = [f"expression:E{i}" for i in range(features)] + [f"mutation:M{i}" for i in range(5)]
    omics = pd.DataFrame(
        np.hstack([expression, mutation]).astype(np.float32), index=index, columns=names
    )
    score = 1.5 * expression[:, 0] + 2 * mutation[:, 0]
    if kind == "survival":
        time = rng.exponential(np.exp(-score)) + 0.01
        # Rounded times are tied, as months are.
        outcome = {"time": np.ceil(time * 10) / 10, "event": (rng.random(patients) < 0.7) * 1}
        return omics, Endpoint("survival", (), pd.DataFrame(outcome, index=index), NOBODY)
    label = (score + rng.normal(size=patients) > 0).astype(np.int64)
    return omics, Endpoint(
        "classification", ("a", "b"), pd.DataFrame({"label": label}, index=index), NOBODY
    )


def test_score_of_a_binary_feature_is_the_log_rank_test() -> None:
    omics, endpoint = cohort()
    time, event = endpoint.table["time"].to_numpy(), endpoint.table["event"].to_numpy(bool)
    group = omics["mutation:M1"].to_numpy(bool)
    reference = logrank_test(time[group], time[~group], event[group], event[~group])
    z = cox_score(group[:, None].astype(float), time, event)
    assert z[0] ** 2 == pytest.approx(reference.test_statistic, rel=1e-9)


def test_score_of_a_continuous_feature_is_near_lifelines_and_has_its_sign() -> None:
    omics, endpoint = cohort(patients=400)
    for feature in omics.columns[:4]:
        table = endpoint.table.assign(x=omics[feature])
        fitted = CoxPHFitter().fit(table, "time", "event")
        ratio = fitted.log_likelihood_ratio_test().test_statistic
        z = cox_score(
            table[["x"]].to_numpy(float), table["time"].to_numpy(), table["event"].to_numpy(bool)
        )[0]
        assert np.sign(z) == np.sign(fitted.params_["x"])
        assert z**2 == pytest.approx(ratio, rel=0.25, abs=0.1)


@given(seed=st.integers(0, 10_000), missing=st.floats(0, 0.6))
@settings(max_examples=25, deadline=None)
def test_missing_values_leave_patients_out_feature_by_feature(seed: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, (40, 3)).astype(float)
    values[rng.random(values.shape) < missing] = np.nan
    time, event = rng.integers(1, 12, 40).astype(float), rng.random(40) < 0.5
    labels = rng.integers(0, 3, 40)
    z = cox_score(values, time, event)
    h, freedom = kruskal_wallis(values, labels)
    for column in range(3):
        known = ~np.isnan(values[:, column])
        if not known.any():
            continue
        alone = values[known][:, [column]]
        assert z[column] == pytest.approx(cox_score(alone, time[known], event[known])[0], abs=1e-9)
        groups = [alone[labels[known] == k, 0] for k in np.unique(labels[known])]
        if len(groups) > 1 and np.ptp(alone):
            assert h[column] == pytest.approx(stats.kruskal(*groups).statistic, abs=1e-9)
            assert freedom[column] == len(groups) - 1


def test_two_classes_give_the_mann_whitney_test() -> None:
    omics, endpoint = cohort(kind="classification")
    fitted = fit_filter(omics, endpoint, list(omics.index), None).set_index("feature")
    for feature in ("expression:E0", "mutation:M0", "expression:E7"):
        low, high = fitted.loc[feature, ["winsor_low", "winsor_high"]]
        values = omics[feature].astype(float).clip(low, high)
        one, other = (values[endpoint.table["label"] == k] for k in (0, 1))
        reference = stats.mannwhitneyu(one, other, use_continuity=False, method="asymptotic")
        assert fitted.loc[feature, "p_value"] == pytest.approx(reference.pvalue, rel=1e-6)


@pytest.mark.parametrize("kind", ["survival", "classification"])
def test_planted_features_come_first(kind: str) -> None:
    omics, endpoint = cohort(kind=kind)
    fitted = fit_filter(omics, endpoint, list(omics.index), 10)
    assert set(fitted["feature"].head(2)) == {"expression:E0", "mutation:M0"}
    assert fitted["rank"].tolist() == list(range(1, 11))
    assert fitted["modality"].tolist() == fitted["feature"].str.split(":").str[0].tolist()
    assert fitted["p_value"].is_monotonic_increasing


def test_q_values_are_those_of_scipy_over_all_features() -> None:
    omics, endpoint = cohort()
    everything = fit_filter(omics, endpoint, list(omics.index), None)
    assert len(everything) == omics.shape[1]
    expected = stats.false_discovery_control(everything["p_value"])
    np.testing.assert_allclose(everything["q_value"], expected)
    best = fit_filter(omics, endpoint, list(omics.index), 3)
    pd.testing.assert_frame_equal(best, everything.head(3))


def test_winsor_limits_are_training_quantiles_of_expression_only() -> None:
    omics, endpoint = cohort()
    omics.iloc[0, 1] = 36_893.0
    omics["mutation:rare"] = np.float32(0)
    omics.loc["P005", "mutation:rare"] = 1
    omics.loc["P007":"P011", "expression:E1"] = np.nan
    train = list(omics.index[:100])
    fitted = fit_filter(omics, endpoint, train, None).set_index("feature")
    values = omics.loc[train, "expression:E1"].astype(float)
    assert fitted.loc["expression:E1", "winsor_low"] == pytest.approx(values.quantile(0.01))
    assert fitted.loc["expression:E1", "winsor_high"] == pytest.approx(values.quantile(0.99))
    assert fitted.loc["expression:E1", "median"] == pytest.approx(values.median())
    assert fitted.loc["mutation:rare", ["winsor_low", "winsor_high"]].tolist() == [0, 1]
    applied = apply_filter(omics, fitted.reset_index())
    assert applied.columns.tolist() == fitted.index.tolist()
    assert applied["expression:E1"].max() == pytest.approx(values.quantile(0.99), rel=1e-6)
    assert applied["expression:E1"].isna().sum() == 5
    assert (applied.dtypes == np.float32).all()


def test_what_does_not_vary_in_training_is_not_kept() -> None:
    omics, endpoint = cohort()
    omics["expression:flat"] = np.float32(1)
    omics["expression:absent"] = np.float32(np.nan)
    omics["mutation:test_only"] = np.float32(0)
    omics.loc["P110", "mutation:test_only"] = 1
    kept = fit_filter(omics, endpoint, list(omics.index[:100]), None)["feature"]
    assert not set(kept) & {"expression:flat", "expression:absent", "mutation:test_only"}


@pytest.mark.parametrize("kind", ["survival", "classification"])
def test_a_fold_knows_nothing_of_its_test_patients(kind: str) -> None:
    omics, endpoint = cohort(kind=kind)
    splits, _ = make_splits(endpoint, endpoint.table[[]], EvaluationConfig(folds=3, repeats=2))
    before = filter_folds(omics, endpoint, splits, 12)
    rng = np.random.default_rng(1)
    for (repeat, fold), rows in splits[splits["role"] == "test"].groupby(["repeat", "fold"]):
        test = rows["patient_id"]
        other, outcome = omics.copy(), endpoint.table.copy()
        shape = (len(test), omics.shape[1])
        other.loc[test] = (100 * rng.normal(size=shape)).astype(np.float32)
        outcome.loc[test] = outcome.loc[test].sample(frac=1, random_state=1).set_axis(test)
        if kind == "survival":
            outcome.loc[test, "time"] *= 50
        after = filter_folds(
            other, Endpoint(endpoint.kind, endpoint.classes, outcome, NOBODY), splits, 12
        )
        of_fold = [
            table[(table["repeat"] == repeat) & (table["fold"] == fold)]
            for table in (before, after)
        ]
        pd.testing.assert_frame_equal(*(t.reset_index(drop=True) for t in of_fold))
        final = [table[table["fold"] == -1].reset_index(drop=True) for table in (before, after)]
        assert not final[0].equals(final[1])


def test_folds_are_all_there_and_the_last_has_all_patients() -> None:
    omics, endpoint = cohort()
    splits, _ = make_splits(endpoint, endpoint.table[[]], EvaluationConfig(folds=3, repeats=2))
    table = filter_folds(omics.iloc[:100], endpoint, splits, 7)
    counts = table.groupby(["repeat", "fold"]).size().to_dict()
    assert counts == {(-1, -1): 7, **{(r, f): 7 for r in range(2) for f in range(3)}}
    final = table[table["fold"] == -1].drop(columns=["repeat", "fold", "fitted_on"])
    alone = fit_filter(omics.iloc[:100], endpoint, omics.index, 7)
    pd.testing.assert_frame_equal(final.reset_index(drop=True), alone)


def test_misuse_is_refused() -> None:
    omics, endpoint = cohort()
    splits, _ = make_splits(endpoint, endpoint.table[[]], EvaluationConfig(folds=2))
    table = filter_folds(omics, endpoint, splits, None)
    with pytest.raises(ValueError, match="several folds"):
        apply_filter(omics, table)
    with pytest.raises(ValueError, match="not in the omics table"):
        apply_filter(omics.iloc[:, :3], table[table["fold"] == 0])
    with pytest.raises(ValueError, match="no training patient has omics"):
        fit_filter(omics, endpoint, ["nobody"], 3)


def test_permuted_outcomes_give_uniform_p_values() -> None:
    omics, endpoint = cohort(patients=200, features=600)
    shuffled = endpoint.table.sample(frac=1, random_state=0).set_axis(endpoint.table.index)
    fitted = fit_filter(omics, Endpoint("survival", (), shuffled, NOBODY), list(omics.index), None)
    continuous = fitted.loc[fitted["modality"] == "expression", "p_value"]
    assert stats.kstest(continuous, "uniform").pvalue > 0.001
    assert fitted["q_value"].min() > 0.01

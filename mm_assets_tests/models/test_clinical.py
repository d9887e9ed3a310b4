"""Clinical baselines, their encoder and calibration."""

import pickle

import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from mm_assets.models.calibration import QuantileMap, SurvivalCurve
from mm_assets.models.clinical import ClinicalModel, CovariateEncoder, run_clinical_folds
from mm_assets.models.losses import Outcome
from mm_assets_tests.models.simulation import make_endpoint, shuffled, simulate, split

HORIZONS = (12.0, 60.0)


def test_encoder() -> None:
    generator = np.random.default_rng(0)
    codes = ["IDC"] * 60 + ["ILC"] * 30 + ["rare"] * 9 + [None]
    frame = pd.DataFrame(
        {"age": generator.normal(60, 10, 100), "code": codes, "constant": 1.0, "empty": np.nan}
    )
    frame.loc[3, "age"] = np.nan
    encoder = CovariateEncoder.fit(frame)
    assert encoder.names() == ["age", "code=ILC"]
    raw, standard = encoder.encode(frame), encoder.standardize(frame)
    assert np.isnan(raw[3, 0])
    assert np.isnan(raw[99, 1])
    assert raw[60:90, 1].all()
    assert raw[90:99, 1].sum() == 0
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.std(0), 1, atol=1e-12)
    np.testing.assert_allclose(
        standard[3, 0], (frame["age"].median() - encoder.mean[0]) / encoder.scale[0]
    )
    unseen = pd.DataFrame({"age": [70.0], "code": ["new"], "constant": [5.0], "empty": [1.0]})
    assert encoder.encode(unseen).tolist() == [[70.0, 0.0]]


@pytest.mark.parametrize(("men", "kept"), [(9, False), (10, True)])
def test_a_rare_value_has_no_column_however_it_is_written(men: int, kept: bool) -> None:
    numbers = pd.Series([1.0] * men + [0.0] * 90, name="male")
    texts = numbers.map({1.0: "M", 0.0: "F"})
    for frame in (numbers.to_frame(), texts.to_frame()):
        assert bool(CovariateEncoder.fit(frame).names()) == kept


def test_cox_is_that_of_lifelines_and_calibrated() -> None:
    cohort = simulate(400, seed=1)
    covariates, endpoint = cohort.blocks.clinical, cohort.survival
    assert covariates is not None
    model = ClinicalModel.fit(covariates, endpoint, HORIZONS)
    predicted = model.predict(covariates)
    table = endpoint.table.assign(age=covariates["age"], male=(covariates["sex"] == "M") * 1.0)
    reference = CoxPHFitter().fit(table, "time", "event")
    expected = reference.predict_survival_function(table, times=HORIZONS).T
    assert concordance_index(table["time"], -predicted["risk"], table["event"]) > 0.6
    for i, name in enumerate(["survival_12", "survival_60"]):
        np.testing.assert_allclose(predicted[name], expected.iloc[:, i], atol=0.03)


@pytest.mark.parametrize("kind", ["survival", "classification"])
def test_folds(kind: str) -> None:
    cohort = simulate(200, seed=2)
    endpoint, covariates = cohort.endpoint(kind), cohort.blocks.clinical
    assert covariates is not None
    splits = split(endpoint.table.index, 4)
    predictions = run_clinical_folds(covariates, endpoint, splits, HORIZONS)
    assert set(predictions["model"]) == {f"clinical_{'cox' if kind == 'survival' else 'logistic'}"}
    assert sorted(predictions["patient_id"]) == list(endpoint.table.index)
    for _, fold in predictions.groupby("fold"):
        truth = endpoint.table.loc[fold["patient_id"]]
        if kind == "survival":
            assert concordance_index(truth["time"], -fold["risk"], truth["event"]) > 0.55
        else:
            assert roc_auc_score(truth["label"], fold["probability_B"]) > 0.55
    # The rest of the cohort does not reach the model of a fold.
    spoilt = shuffled(endpoint, 1)
    test = splits[(splits["fold"] == 0) & (splits["role"] == "test")]["patient_id"]
    table = endpoint.table.copy()
    table.loc[test] = spoilt.table.loc[test]
    again = run_clinical_folds(
        covariates, make_endpoint(kind, table), splits[splits["fold"] == 0], HORIZONS
    )
    expected = predictions[predictions["fold"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, check_exact=True)


def test_pickle() -> None:
    cohort = simulate(60, seed=3)
    assert cohort.blocks.clinical is not None
    model = ClinicalModel.fit(cohort.blocks.clinical, cohort.survival, HORIZONS)
    copy = pickle.loads(pickle.dumps(model))
    first, second = (m.predict(cohort.blocks.clinical) for m in (model, copy))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert model.feature_names == ["age", "sex"]


def test_classes_without_patients() -> None:
    cohort = simulate(60, seed=4)
    covariates, table = cohort.blocks.clinical, cohort.classification.table
    assert covariates is not None
    for present in ([0], [0, 2], [0, 1, 2]):
        code = np.asarray(present)[np.arange(60) % len(present)]
        endpoint = make_endpoint("classification", table.assign(label=code))
        object.__setattr__(endpoint, "classes", ("A", "B", "C"))
        predicted = ClinicalModel.fit(covariates, endpoint).predict(covariates).to_numpy()
        np.testing.assert_allclose(predicted.sum(1), 1)
        absent = [c for c in range(3) if c not in present]
        assert (predicted[:, absent] < 0.02).all()


def test_perfectly_separated_events_do_not_crash() -> None:
    covariates = pd.DataFrame({"age": np.arange(20.0)}, [f"P{i:02d}" for i in range(20)])
    time = np.where(np.arange(20) < 5, 1.0 + np.arange(20), 100.0)
    table = pd.DataFrame({"time": time, "event": (np.arange(20) < 5) * 1}, covariates.index)
    predicted = ClinicalModel.fit(covariates, make_endpoint("survival", table), HORIZONS).predict(
        covariates
    )
    assert np.isfinite(predicted.to_numpy()).all()
    assert predicted["risk"].iloc[0] > predicted["risk"].iloc[-1]


def test_quantiles_of_a_single_score() -> None:
    quantile = QuantileMap.fit(np.array([3.0, 1.0, 1.0, 2.0]))
    np.testing.assert_allclose(quantile(np.array([1.0, 2.0, 3.0])), [0.25, 0.625, 0.875])
    np.testing.assert_allclose(quantile(np.array([-9.0, 1.5, 9.0])), [0.25, 0.4375, 0.875])
    assert QuantileMap.fit(np.zeros(5))(np.array([-1.0, 0.0, 1.0])).tolist() == [0.5] * 3


def test_survival_curve_of_a_useless_or_reversed_risk_is_kaplan_meiers() -> None:
    table = simulate(200, seed=5).survival.table
    outcome = Outcome.of(table)
    lived = KaplanMeierFitter().fit(table["time"], table["event"])
    for risk in (np.zeros(200), outcome.time):
        predicted = SurvivalCurve.fit(risk, outcome, HORIZONS)(risk[:1])
        for horizon in HORIZONS:
            assert predicted[f"survival_{horizon:g}"][0] == pytest.approx(
                lived.predict(horizon), abs=0.01
            )

"""HEEC on simulated cohorts: signal, missing modalities, determinism, fold safety."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.features import FeatureBlocks, Variant
from mm_assets.models.heec import HeecModel, fit_heec
from mm_assets.models.heec_folds import fit_final, run_folds
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.omics.filters import filter_folds
from mm_assets_tests.models.simulation import Simulated, make_endpoint, shuffled, simulate, split

HORIZONS = (12.0, 36.0)
KINDS = ["survival", "classification"]
FAST = HeecParameters(inner_folds=3, boosting=BoostingParameters(min_rounds=25, max_rounds=50))


@pytest.fixture(scope="module")
def cohort() -> Simulated:
    return simulate()


def performance(predictions: pd.DataFrame, endpoint: Endpoint) -> float:
    """Harrell's C or ROC AUC, mean over folds."""
    values = []
    for _, fold in predictions.groupby(["model", "repeat", "fold"]):
        truth = endpoint.table.loc[fold["patient_id"]]
        if endpoint.kind == "survival":
            values.append(concordance_index(truth["time"], -fold["risk"], truth["event"]))
        else:
            values.append(roc_auc_score(truth["label"], fold["probability_B"]))
    return float(np.mean(values))


@pytest.mark.parametrize("kind", KINDS)
def test_modalities_together_beat_each_alone(cohort: Simulated, kind: str) -> None:
    endpoint = cohort.endpoint(kind)
    splits = split(endpoint.table.index, 3)
    seen: list[tuple[int, int]] = []
    predictions = run_folds(
        cohort.blocks,
        endpoint,
        splits,
        HORIZONS if kind == "survival" else (),
        parameters=FAST,
        progress=lambda done, whole: seen.append((done, whole)),
    )
    result = {name: performance(rows, endpoint) for name, rows in predictions.groupby("model")}
    alone = [result["heec_imaging"], result["heec_omics"]]
    assert result["heec"] > max(alone) > 0.6
    assert result["heec"] > 0.7
    assert result["heec"] > result["heec_no_expression"]
    assert result["heec_omics_no_expression"] < 0.62  # the latent lies in expression only
    assert seen == [(i + 1, 15) for i in range(15)]
    # Every patient once a model, also those without omics or imaging.
    for _, rows in predictions.groupby("model"):
        assert sorted(rows["patient_id"]) == list(endpoint.table.index)
    assert list(predictions.columns[:4]) == ["model", "repeat", "fold", "patient_id"]
    numbers = predictions.iloc[:, 4:]
    assert numbers.notna().all(axis=None)
    if kind == "survival":
        assert list(numbers) == ["risk", "risk_cut", "survival_12", "survival_36"]
        assert (numbers["survival_12"] >= numbers["survival_36"]).all()
        assert numbers.iloc[:, 1:].stack().between(0, 1).all()
    else:
        assert list(numbers) == ["probability_A", "probability_B", "threshold"]
        np.testing.assert_allclose(numbers.iloc[:, :2].sum(axis=1), 1, atol=1e-12)
        # One threshold a fold and model, chosen where classes are told apart: it decides well.
        assert (predictions.groupby(["model", "fold"])["threshold"].nunique() == 1).all()
        full = predictions[predictions["model"] == "heec"].set_index("patient_id")
        called = full["probability_B"] >= full["threshold"]
        assert balanced_accuracy_score(endpoint.table.loc[full.index, "label"], called) > 0.62


def test_survival_is_calibrated() -> None:
    """Mean predicted survival of unseen patients is near what they lived."""
    known, new = simulate(300, seed=1), simulate(600, seed=2)
    model = fit_final(known.blocks, known.survival, HORIZONS, FAST)
    predicted = model.predict(new.blocks.frame(new.survival.table.index))
    from lifelines import KaplanMeierFitter

    lived = KaplanMeierFitter().fit(new.survival.table["time"], new.survival.table["event"])
    for horizon in HORIZONS:
        mean = predicted[f"survival_{horizon:g}"].mean()
        assert mean == pytest.approx(lived.predict(horizon), abs=0.07)
    worse = predicted["risk"] > predicted["risk"].median()
    for group in (worse, ~worse):
        table = new.survival.table[group.to_numpy()]
        lived = KaplanMeierFitter().fit(table["time"], table["event"])
        assert predicted.loc[group, "survival_36"].mean() == pytest.approx(
            lived.predict(36.0), abs=0.12
        )


@pytest.mark.parametrize("kind", KINDS)
def test_one_patient_at_a_time_is_predicted_the_same(cohort: Simulated, kind: str) -> None:
    endpoint = cohort.endpoint(kind)
    patients = list(endpoint.table.index)
    model = fit_heec(cohort.blocks, endpoint, patients[:120], HORIZONS, FAST)
    frame = cohort.blocks.frame(patients[110:])
    together = model.predict(frame)
    alone = pd.concat([model.predict(frame.iloc[[i]]) for i in range(len(frame))])
    pd.testing.assert_frame_equal(together, alone, rtol=1e-9)
    # More columns and another order of columns change nothing, fewer are refused.
    extra = frame[list(reversed(frame.columns))].assign(unknown=1.0)
    pd.testing.assert_frame_equal(model.predict(extra), together, check_exact=True)
    with pytest.raises(ValueError, match=model.feature_names[0]):
        model.predict(frame.drop(columns=model.feature_names[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_modalities_are_predicted(cohort: Simulated, kind: str) -> None:
    endpoint = cohort.endpoint(kind)
    model = fit_final(cohort.blocks, endpoint, HORIZONS, FAST)
    frame = cohort.blocks.frame(endpoint.table.index)
    nothing = frame.astype({"sex": object}).iloc[[0]].copy()
    nothing.loc[:, :] = np.nan
    predicted = model.predict(nothing)
    assert predicted.notna().all(axis=None)
    assert not np.allclose(model.predict(frame).std().to_numpy(), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_predicts_the_same(cohort: Simulated, kind: str) -> None:
    endpoint = cohort.endpoint(kind)
    model = fit_final(cohort.blocks, endpoint, HORIZONS, FAST)
    frame = cohort.blocks.frame(endpoint.table.index)
    copy: HeecModel = pickle.loads(pickle.dumps(model))
    pd.testing.assert_frame_equal(copy.predict(frame), model.predict(frame), check_exact=True)
    assert set(model.feature_names) < set(frame.columns) | {""}


PROGRAM = """
import sys
from mm_assets_tests.models.test_heec import predictions
sys.stdout.buffer.write(predictions())
"""


def predictions() -> bytes:
    """All figures of a small run, bit by bit."""
    cohort = simulate(80)
    splits = split(cohort.survival.table.index, 2)
    tables = [
        run_folds(cohort.blocks, cohort.endpoint(kind), splits, (12.0,), [Variant("heec")], FAST)
        for kind in KINDS
    ]
    return b"".join(table.iloc[:, 4:].to_numpy().tobytes() for table in tables)


def test_bit_for_bit_the_same_in_another_process() -> None:
    other = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    ).stdout
    assert len(other) > 1000
    assert other == predictions()


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_filter_changes_nothing_but_where_it_is_computed(
    cohort: Simulated, kind: str
) -> None:
    endpoint, omics = cohort.endpoint(kind), cohort.blocks.omics
    assert omics is not None
    splits = split(endpoint.table.index, 2)
    few = replace(FAST, omics_features=15)
    filtered = filter_folds(omics, endpoint, splits, 15)
    variants = [Variant("heec"), Variant("heec_no_g0", without_genes=("G0",))]
    plain, given = (
        run_folds(cohort.blocks, endpoint, splits, (12.0,), variants, few, table)
        for table in (None, filtered)
    )
    pd.testing.assert_frame_equal(plain, given, check_exact=True)
    final = fit_final(cohort.blocks, endpoint, (12.0,), few, filtered)
    chosen = [name for name in final.feature_names if name in omics]
    assert chosen == filtered.loc[filtered["fold"] == -1, "feature"].to_list()


# Fold safety.


def test_every_fold_reads_imaging_as_it_selects(cohort: Simulated) -> None:
    endpoint = cohort.endpoint("classification")
    splits = split(endpoint.table.index, 2)
    variants = [
        Variant("chosen", omics=False, clinical=False),
        Variant("all", omics=False, clinical=False, selection=False),
        Variant("none", imaging=False),
    ]
    imaging = cohort.blocks.imaging
    assert imaging is not None
    asked: list[tuple[int, int, bool]] = []

    def imaging_of(repeat: int, fold: int, selection: bool) -> pd.DataFrame:
        asked.append((repeat, fold, selection))
        return imaging * 0 if selection and fold == 1 else imaging

    def run(**options: Callable[[int, int, bool], pd.DataFrame]) -> pd.DataFrame:
        found = run_folds(
            cohort.blocks, endpoint, splits, (), variants, FAST, processes=1, **options
        )
        return found.set_index(["model", "fold", "patient_id"])["probability_B"]

    plain, folded = run(), run(imaging_of=imaging_of)
    assert asked == [(0, fold, selection) for fold in (0, 1) for selection in (True, False)]
    pd.testing.assert_series_equal(folded[["all", "none"]], plain[["all", "none"]])
    pd.testing.assert_series_equal(folded.loc["chosen", 0], plain.loc["chosen", 0])
    assert folded.loc["chosen", 1].nunique() == 1


def spoil(cohort: Simulated, endpoint: Endpoint, test: list[str]) -> tuple[FeatureBlocks, Endpoint]:
    """The cohort with features and outcomes of the test patients replaced by others."""
    blocks, table = cohort.blocks, endpoint.table.copy()
    generator = np.random.default_rng(9)
    assert blocks.imaging is not None
    assert blocks.omics is not None
    assert blocks.clinical is not None
    imaging, omics, clinical = blocks.imaging.copy(), blocks.omics.copy(), blocks.clinical.copy()
    for block in (imaging, omics):
        rows = block.index.intersection(test)
        block.loc[rows] = generator.normal(1e4, 1e6, (len(rows), block.shape[1])).astype(np.float32)
    clinical.loc[test, "age"] = -1e6
    clinical.loc[test, "sex"] = "other"
    if endpoint.kind == "survival":
        table.loc[test, "time"] = 1e5 * generator.random(len(test))
        table.loc[test, "event"] = 1 - table.loc[test, "event"]
    else:
        table.loc[test, "label"] = 1 - table.loc[test, "label"]
    return FeatureBlocks(imaging, omics, clinical), make_endpoint(endpoint.kind, table)


@pytest.mark.parametrize("kind", KINDS)
def test_test_patients_do_not_change_the_model(cohort: Simulated, kind: str) -> None:
    endpoint = cohort.endpoint(kind)
    patients = list(endpoint.table.index)
    train, test = patients[::2], patients[1::2]
    models = [
        fit_heec(blocks, labels, train, HORIZONS, FAST)
        for blocks, labels in ((cohort.blocks, endpoint), spoil(cohort, endpoint, test))
    ]
    assert models[0].boosters == models[1].boosters
    frame = cohort.blocks.frame(patients)
    first, second = (model.predict(frame) for model in models)
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_equal_to_the_test_labels_does_not_help(kind: str) -> None:
    """Constant in training, the truth in the test fold: it must not be found."""
    cohort = simulate(150, seed=3)
    endpoint = shuffled(cohort.endpoint(kind), seed=4)
    truth = endpoint.table["event" if kind == "survival" else "label"].astype(np.float32)
    splits = split(endpoint.table.index, 3)
    test = splits[(splits["fold"] == 0) & (splits["role"] == "test")]["patient_id"]
    leak = truth.where(truth.index.isin(test), 0.0)
    assert cohort.blocks.omics is not None
    assert cohort.blocks.clinical is not None
    honest = cohort.blocks
    leaking = replace(
        honest,
        omics=cohort.blocks.omics.assign(**{"mutation:LEAK": leak}),
        clinical=cohort.blocks.clinical.assign(leak=leak),
    )
    fold = splits[splits["fold"] == 0]
    plain, leaked = (
        run_folds(blocks, endpoint, fold, (12.0,), [Variant("heec")], FAST)
        for blocks in (honest, leaking)
    )
    pd.testing.assert_frame_equal(plain, leaked, check_exact=True)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_outcomes_give_chance(kind: str) -> None:
    cohort = simulate(300, seed=5)
    found = []
    for seed in range(10):
        endpoint = shuffled(cohort.endpoint(kind), seed)
        splits = split(endpoint.table.index, 2, seed)
        found.append(
            performance(
                run_folds(cohort.blocks, endpoint, splits, (12.0,), [Variant("heec")], FAST),
                endpoint,
            )
        )
    # A filter that saw all patients gives .65 and more (DESIGN section 8).
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)


# Cohorts too small to learn from.


@pytest.mark.parametrize("patients", [4, 8, 12, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_tiny_cohorts_get_a_defined_answer(kind: str, patients: int) -> None:
    cohort = simulate(patients, seed=6)
    endpoint = cohort.endpoint(kind)
    table = endpoint.table.copy()
    if kind == "survival":
        table["event"] = (np.arange(patients) < 3).astype(int)
    else:
        table["label"] = (np.arange(patients) == 0).astype(int)
    endpoint = make_endpoint(kind, table)
    splits = split(table.index, 2)
    predictions = run_folds(cohort.blocks, endpoint, splits, HORIZONS, parameters=FAST)
    assert predictions.notna().all(axis=None)
    assert len(predictions) == 5 * patients


@pytest.mark.parametrize("events", [0, 40])
def test_no_event_or_no_feature_gives_constant_risk(events: int) -> None:
    cohort = simulate(40, seed=7)
    table = cohort.survival.table.assign(event=(np.arange(40) < events).astype(int))
    endpoint = make_endpoint("survival", table)
    blocks = cohort.blocks
    if events:
        assert blocks.omics is not None
        blocks = FeatureBlocks(omics=blocks.omics.iloc[:0])
    model = fit_final(blocks, endpoint, HORIZONS, FAST)
    predicted = model.predict(blocks.frame(table.index))
    assert predicted["risk"].nunique() == 1
    if not events:
        assert (predicted["survival_36"] == 1).all()


def test_a_class_without_training_patients_gets_little_probability(cohort: Simulated) -> None:
    table = cohort.classification.table
    endpoint = replace(cohort.classification, classes=("A", "B", "C"))
    predicted = fit_final(cohort.blocks, endpoint, (), FAST).predict(
        cohort.blocks.frame(table.index)
    )
    assert list(predicted) == ["probability_A", "probability_B", "probability_C"]
    assert (predicted["probability_C"] < 0.02).all()
    assert roc_auc_score(table["label"], predicted["probability_B"]) > 0.8


def test_importing_the_models_is_cheap() -> None:
    heavy = {"lightgbm", "lifelines", "sklearn", "torch", "mlflow", "dagster", "matplotlib"}
    program = (
        "import sys, mm_assets.models.heec, mm_assets.models.extremum\n"
        f"print(*sorted({heavy!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert found.stdout.strip() == b""

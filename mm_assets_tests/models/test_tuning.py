"""The search for settings: it finds better ones, alike each time, from training patients alone."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.extremum import encode_extrema, of_all, of_fold, of_selected, patient_matrix
from mm_assets.models.features import FeatureBlocks, Variant
from mm_assets.models.folds import list_folds
from mm_assets.models.heec import fit_heec
from mm_assets.models.heec_folds import fit_final, run_folds
from mm_assets.models.heec_parameters import HeecParameters, TuningBudget
from mm_assets.models.pu import fit_tile_scorers, sample_for
from mm_assets.models.tuning import Attempt, tune
from mm_assets_tests.models.bags import simulate_bags, tile_table
from mm_assets_tests.models.simulation import Simulated, make_endpoint, shuffled, simulate, split

KINDS = ["survival", "classification"]
FAST = HeecParameters(
    imaging_features=10,
    omics_features=20,
    inner_folds=2,
    boosting=BoostingParameters(min_rounds=25, max_rounds=25),
    tuning=TuningBudget(trials=3),
)
SETTINGS = [
    "num_leaves", "leaf_size", "learning_rate", "feature_fraction", "lambda_l1", "lambda_l2",
    "imaging_features", "omics_features",
]  # fmt: skip


@pytest.fixture(scope="module")
def cohort() -> Simulated:
    return simulate(100)


# The search itself, with a made-up score.


def smooth(parameters: HeecParameters) -> Attempt:
    """Best at a learning rate of .1 and 16 leaves."""
    boosting = parameters.boosting
    distance = np.log(boosting.learning_rate / 0.1) ** 2 + np.log(boosting.num_leaves / 16) ** 2
    return Attempt(parameters, {}, -float(distance))


def test_the_search_starts_with_what_is_given_and_finds_better() -> None:
    start = replace(FAST, tuning=TuningBudget(trials=40))
    best, trials = tune(smooth, start)
    assert list(trials) == ["trial", "gain", "seconds", *SETTINGS]
    assert trials["trial"].tolist() == list(range(40))
    given = trials.iloc[0][SETTINGS].to_list()
    assert given == [4, 1.0, 0.05, 0.1, 0.0, 1.0, 10, 20]
    assert trials["gain"][0] == smooth(start).gain
    assert best.gain == trials["gain"].max() > 0.2 * trials["gain"][0]
    assert best.parameters.boosting.num_leaves > 8
    assert trials["imaging_features"].between(1, 40).all()
    again, same = tune(smooth, start)
    assert again == best
    pd.testing.assert_frame_equal(same.drop(columns="seconds"), trials.drop(columns="seconds"))
    _, other = tune(smooth, replace(start, seed=1))
    assert not other["gain"].equals(trials["gain"])


def test_of_equals_the_first_stays() -> None:
    best, _ = tune(lambda parameters: Attempt(parameters, {}, 1.0), FAST)
    assert best.parameters == FAST


@pytest.mark.parametrize("trials", [0, 1])
def test_without_a_budget_nothing_is_searched(trials: int) -> None:
    start = replace(FAST, tuning=TuningBudget(trials))
    best, table = tune(smooth, start)
    assert best.parameters == start
    assert table.empty


def test_time_ends_the_search() -> None:
    def slow(parameters: HeecParameters) -> Attempt:
        time.sleep(0.2)
        return smooth(parameters)

    _, trials = tune(slow, replace(FAST, tuning=TuningBudget(1000, seconds=0.5)))
    assert 1 <= len(trials) <= 4
    assert TuningBudget(5, 60.0).shared(12) == TuningBudget(5, 5.0)
    assert TuningBudget(5).shared(12) == TuningBudget(5)


def test_filters_stay_where_they_are_compared() -> None:
    quarter = FAST.with_filters(0.25)
    assert (quarter.imaging_features, quarter.omics_features) == (2, 5)
    best, trials = tune(smooth, quarter)
    assert not {"imaging_features", "omics_features"} & set(trials)
    assert (best.parameters.imaging_features, best.parameters.omics_features) == (2, 5)
    assert FAST.with_filters(None).omics_features is None


# Of the model.


@pytest.mark.parametrize("kind", KINDS)
def test_the_tuned_model_is_the_one_that_did_best_on_the_inner_folds(
    cohort: Simulated, kind: str
) -> None:
    endpoint = cohort.endpoint(kind)
    train = list(endpoint.table.index[:80])
    model, again = (fit_heec(cohort.blocks, endpoint, train, (), FAST) for _ in range(2))
    assert model.boosters == again.boosters
    assert len(model.trials) == 3
    best = model.trials.loc[model.trials["gain"].idxmax()]
    assert model.parameters.boosting.learning_rate == best["learning_rate"]
    assert len(model.preprocessor.imaging) == min(40, best["imaging_features"])
    assert len(model.preprocessor.omics) == min(60, best["omics_features"])
    plain = fit_heec(cohort.blocks, endpoint, train, (), replace(FAST, tuning=TuningBudget()))
    assert plain.trials.empty
    # Settings given as found need no search to give the same model.
    fixed = replace(model.parameters, tuning=TuningBudget())
    assert fit_heec(cohort.blocks, endpoint, train, (), fixed).boosters == model.boosters
    if best["trial"] == 0:
        assert plain.boosters == model.boosters


def test_every_search_is_handed_out_by_fold_and_variant(cohort: Simulated) -> None:
    endpoint = cohort.classification
    variants = [
        Variant("heec"),
        Variant("heec_omics", imaging=False, clinical=False),
        Variant("heec_filter_none", filter_factor=None),
    ]
    tried: list[pd.DataFrame] = []
    budget = replace(FAST, tuning=TuningBudget(2))
    splits = split(endpoint.table.index, 2)
    for processes in (1, 2):
        run_folds(
            cohort.blocks, endpoint, splits, (), variants, budget,
            processes=processes, log_trials=tried.append,
        )  # fmt: skip
    table = pd.concat(tried[:6])
    assert list(table.columns[:4]) == ["model", "repeat", "fold", "trial"]
    assert len(tried) == 12
    assert set(zip(table["model"], table["fold"], table["trial"], strict=True)) == {
        (variant.name, fold, trial) for variant in variants for fold in (0, 1) for trial in (0, 1)
    }
    assert table.loc[table["model"] == "heec_omics", "imaging_features"].isna().all()
    assert table.loc[table["model"] == "heec_filter_none", "omics_features"].isna().all()
    gains = [pd.concat(part)["gain"].to_list() for part in (tried[:6], tried[6:])]
    assert gains[0] == gains[1]


# Fold safety, with selection of tiles and tuning.


def imaging_by_fold(endpoint: Endpoint, splits: pd.DataFrame, seed: int):
    """Extrema over the tiles that each fold's scorer of this endpoint keeps."""
    bags = simulate_bags(len(endpoint.table), seed)
    tiles = dict(zip(endpoint.table.index, bags.tiles.values(), strict=True))
    scorers = fit_tile_scorers(sample_for(tiles.items(), endpoint, 0), endpoint, splits)
    manifest = pd.DataFrame({"slide_id": list(tiles), "patient_id": list(tiles)})
    extrema = {}
    for patient, values in tiles.items():
        table = tile_table(values)
        found = [of_all(encode_extrema([table], "tile"))]
        for (repeat, fold), scorer in scorers.items():
            kept = encode_extrema([table.filter(scorer.keep(values))], "tile")
            found.append(of_selected(kept, repeat, fold))
        extrema[patient] = pd.concat(found, ignore_index=True)

    def imaging_of(repeat: int, fold: int, selection: bool) -> pd.DataFrame:
        chosen = {slide: of_fold(e, repeat, fold, selection) for slide, e in extrema.items()}
        return patient_matrix(chosen, manifest)

    return imaging_of


def performance(predictions: pd.DataFrame, endpoint: Endpoint) -> float:
    """Harrell's C or ROC AUC, mean over folds."""
    values = []
    for _, fold in predictions.groupby("fold"):
        truth = endpoint.table.loc[fold["patient_id"]]
        if endpoint.kind == "survival":
            values.append(concordance_index(truth["time"], -fold["risk"], truth["event"]))
        else:
            values.append(roc_auc_score(truth["label"], fold["probability_B"]))
    return float(np.mean(values))


def permuted(kind: str, seed: int, patients: int, trials: int) -> float:
    """What selection, filters and tuning make of outcomes dealt to other patients."""
    cohort = simulate(patients, seed=seed)
    endpoint = shuffled(cohort.endpoint(kind), seed)
    splits = split(endpoint.table.index, 2, seed)
    imaging_of = imaging_by_fold(endpoint, splits, seed)
    predictions = run_folds(
        replace(cohort.blocks, imaging=imaging_of(-1, -1, True)),
        endpoint,
        splits,
        (),
        [Variant("heec")],
        replace(FAST, tuning=TuningBudget(trials)),
        imaging_of=imaging_of,
    )
    return performance(predictions, endpoint)


@pytest.mark.parametrize(
    "kind", ["survival", pytest.param("classification", marks=pytest.mark.stress)]
)
def test_shuffled_outcomes_give_chance_with_selection_and_tuning(kind: str) -> None:
    found = [permuted(kind, seed, patients=160, trials=2) for seed in range(2)]
    # Two cohorts of 160: a standard error of .033. A filter or scorer that saw the outcomes of the
    # test patients gives .65 and more.
    assert np.mean(found) == pytest.approx(0.5, abs=0.1), found


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_outcomes_give_chance_often(kind: str) -> None:
    found = [permuted(kind, seed, patients=300, trials=8) for seed in range(10, 24)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.03), found


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_test_patients_change_nothing(kind: str) -> None:
    """Test outcomes turned round, and a feature that is the truth in the test fold alone."""
    cohort = simulate(60, seed=3)
    endpoint = cohort.endpoint(kind)
    splits = split(endpoint.table.index, 2)
    splits = splits[splits["fold"] == 0]
    fold = list_folds(splits)[0]
    column = "event" if kind == "survival" else "label"
    table = endpoint.table.copy()
    table.loc[fold.test, column] = 1 - table.loc[fold.test, column]
    leak = table[column].astype(np.float32).where(table.index.isin(fold.test), 0.0)
    assert cohort.blocks.omics is not None
    leaking = replace(cohort.blocks, omics=cohort.blocks.omics.assign(**{"mutation:LEAK": leak}))
    tried: list[pd.DataFrame] = []

    def run(blocks: FeatureBlocks, outcomes: Endpoint) -> pd.DataFrame:
        # The fold's scorer is fitted anew, and must not have changed.
        imaging_of = imaging_by_fold(outcomes, splits, 3)
        return run_folds(
            replace(blocks, imaging=imaging_of(0, 0, True)), outcomes,
            splits, (), [Variant("heec")], FAST,
            imaging_of=imaging_of, log_trials=tried.append,
        )  # fmt: skip

    honest = run(cohort.blocks, endpoint)
    leaked = run(leaking, make_endpoint(kind, table))
    pd.testing.assert_frame_equal(honest, leaked, check_exact=True)
    first, second = (trials.drop(columns="seconds") for trials in tried)
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_the_final_model_is_tuned_on_all_patients(cohort: Simulated) -> None:
    final = fit_final(cohort.blocks, cohort.survival, (12.0,), FAST)
    everyone = list(cohort.survival.table.index)
    same = fit_heec(cohort.blocks, cohort.survival, everyone, (12.0,), FAST)
    assert final.boosters == same.boosters
    assert len(final.trials) == 3

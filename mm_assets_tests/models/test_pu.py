"""Tile scorers on simulated patients whose own tiles are known."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mm_assets.models.pu import (
    PuParameters,
    contrasts,
    fit_tile_scorer,
    fit_tile_scorers,
    kept_shares,
    sample_for,
)
from mm_assets.models.tile_scorers import TileScorer, dump_tile_scorers, load_tile_scorers
from mm_assets_tests.models.bags import DIMENSIONS, OWN_SHARE, SimulatedBags, simulate_bags
from mm_assets_tests.models.simulation import make_endpoint

METHODS = ("naive", "elkan_noto", "nnpu")


@pytest.fixture(scope="module")
def simulated() -> SimulatedBags:
    return simulate_bags()


def fit(simulated: SimulatedBags, train: list[str], **settings: object) -> TileScorer:
    parameters = PuParameters(**settings)  # type: ignore[arg-type]
    return fit_tile_scorer(simulated.bags(), simulated.endpoint, train, parameters)


def held_out(simulated: SimulatedBags, scorer: TileScorer, test: list[str]) -> pd.DataFrame:
    return pd.concat(
        pd.DataFrame(
            {
                "score": scorer.score(simulated.tiles[patient]),
                "kept": scorer.keep(simulated.tiles[patient]),
                "own": simulated.own[patient],
            }
        )
        for patient in test
    )


@pytest.mark.parametrize("method", METHODS)
def test_own_tiles_of_patients_never_seen_are_kept(simulated: SimulatedBags, method: str) -> None:
    train, test = simulated.patients[:30], simulated.patients[30:]
    found = held_out(simulated, fit(simulated, train, method=method, share=OWN_SHARE), test)
    assert roc_auc_score(found["own"], found["score"]) > 0.9
    assert found.loc[found["kept"], "own"].mean() > 0.85
    assert found["kept"].mean() == pytest.approx(OWN_SHARE, abs=0.08)


@pytest.mark.parametrize("method", ["elkan_noto", "nnpu"])
def test_the_estimated_prior_gives_the_share(simulated: SimulatedBags, method: str) -> None:
    scorer = fit(simulated, simulated.patients, method=method)
    assert scorer.classes == ("A", "B")
    assert scorer.priors == pytest.approx(1 - OWN_SHARE, abs=0.2)
    assert scorer.share == pytest.approx(OWN_SHARE, abs=0.2)


@pytest.mark.parametrize("method", ["naive", "nnpu"])
def test_a_class_without_tiles_of_its_own_adds_nothing_where_calibrated(method: str) -> None:
    simulated = simulate_bags(seed=1)
    rng = np.random.default_rng(1)
    plain = {
        patient: rng.normal(size=tiles.shape).astype(np.float16) * np.float16(1.2)
        for patient, tiles in simulated.tiles.items()
        if simulated.endpoint.table.loc[patient, "label"] == 1
    }
    own = simulated.own | {patient: np.zeros(60, bool) for patient in plain}
    lopsided = replace(simulated, tiles=dict(sorted((simulated.tiles | plain).items())), own=own)
    found = {
        calibrated: held_out(
            lopsided,
            fit(lopsided, lopsided.patients, method=method, calibrated=calibrated),
            lopsided.patients,
        )
        for calibrated in (True, False)
    }
    areas = {key: roc_auc_score(rows["own"], rows["score"]) for key, rows in found.items()}
    assert areas[True] > 0.95
    assert areas[True] > areas[False] + 0.02


def test_permuted_labels_leave_nothing_to_choose_by() -> None:
    simulated = simulate_bags(patients=60)
    rng = np.random.default_rng(0)
    real = fit(simulated, simulated.patients, method="naive")
    strongest = []
    for _ in range(5):
        label = rng.permutation(simulated.endpoint.table["label"])
        table = simulated.endpoint.table.assign(label=label)
        shuffled = replace(simulated, endpoint=replace(simulated.endpoint, table=table))
        strongest.append(fit(shuffled, shuffled.patients, method="naive").ratios.max())
    # Nats by which the least negative-like tiles are rarer among the negatives.
    assert real.ratios.max() > 1.5
    assert max(strongest) < 0.5


def test_chunks_and_order_do_not_change_the_scorer(simulated: SimulatedBags) -> None:
    parameters = PuParameters()
    whole = fit_tile_scorer(simulated.bags(), simulated.endpoint, simulated.patients, parameters)
    chunks = simulated.bags(chunk=7)
    by_chunk = sorted(chunks, key=lambda pair: len(pair[1]), reverse=True)
    streamed = fit_tile_scorer(
        iter(by_chunk), simulated.endpoint, simulated.patients[::-1], parameters
    )
    assert dump_tile_scorers({(0, 0): whole}) == dump_tile_scorers({(0, 0): streamed})


def test_nothing_of_the_test_patients_reaches_the_scorer_of_a_fold(
    simulated: SimulatedBags,
) -> None:
    test = simulated.patients[::4]
    table = simulated.endpoint.table.copy()
    table.loc[test, "label"] = 1 - table.loc[test, "label"]
    tiles = {p: t * 5 if p in test else t for p, t in simulated.tiles.items()}
    changed = replace(simulated, tiles=tiles, endpoint=replace(simulated.endpoint, table=table))
    both = []
    for data in (simulated, changed):
        sample = sample_for(data.bags(), data.endpoint, 0)
        scorers = fit_tile_scorers(sample, data.endpoint, data.splits(test))
        assert list(scorers) == [(0, 0), (-1, -1)]
        both.append(scorers)
    folds, finals = ([dump_tile_scorers({(0, 0): s[key]}) for s in both] for key in both[0])
    assert folds[0] == folds[1]
    assert finals[0] != finals[1]


def test_training_patients_are_treated_like_held_out_ones() -> None:
    simulated = simulate_bags(patients=60, effect=1.5)
    splits = simulated.splits(simulated.patients[::3])
    sample = sample_for(simulated.bags(), simulated.endpoint, 0)
    scorers = fit_tile_scorers(sample, simulated.endpoint, splits)
    shares = kept_shares(sample, scorers, splits).iloc[0]
    assert shares["train"] == pytest.approx(shares["test"], abs=0.08)
    assert shares["train"] == pytest.approx(shares["wanted"], abs=0.08)


def test_a_class_without_patients_in_a_fold(simulated: SimulatedBags) -> None:
    of_a = [p for p in simulated.patients if simulated.endpoint.table.loc[p, "label"] == 0]
    third = replace(simulated.endpoint, classes=("A", "B", "C"))
    found = fit_tile_scorer(simulated.bags(), third, simulated.patients)
    assert found.classes == ("A", "B")
    nothing = fit(simulated, of_a)
    assert nothing.classes == ()
    assert nothing.keep(simulated.tiles[of_a[0]]).all()


def test_nobody_to_learn_from_keeps_everything(simulated: SimulatedBags) -> None:
    tiles = simulated.tiles["P000"]
    for train in ([], ["unknown"], ["P000", "P001"]):
        assert fit(simulated, train).keep(tiles).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_tile_is_kept_and_no_tile_is_fine(simulated: SimulatedBags, dtype: type) -> None:
    scorer = fit(simulated, simulated.patients, share=0.01)
    assert scorer.keep(np.zeros((1, DIMENSIONS), dtype)).tolist() == [True]
    assert scorer.keep(np.zeros((0, DIMENSIONS), dtype)).shape == (0,)
    assert scorer.score(np.zeros((0, DIMENSIONS), dtype)).dtype == np.float32


def test_one_tile_a_patient_is_enough_to_fit(simulated: SimulatedBags) -> None:
    data = replace(simulated, tiles={p: t[:1] for p, t in simulated.tiles.items()})
    assert np.isfinite(fit(data, data.patients).score(data.tiles["P000"])).all()


def test_tiles_that_are_all_alike_are_all_kept(simulated: SimulatedBags) -> None:
    data = replace(simulated, tiles={p: np.ones_like(t) for p, t in simulated.tiles.items()})
    scorer = fit(data, data.patients)
    assert scorer.classes == ()
    assert scorer.keep(data.tiles["P000"]).all()


def test_bad_embeddings_are_refused(simulated: SimulatedBags) -> None:
    scorer = fit(simulated, simulated.patients)
    bad = simulated.tiles["P000"].copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        scorer.score(bad)
    with pytest.raises(ValueError, match="patient P000"):
        fit_tile_scorer([("P000", bad)], simulated.endpoint, simulated.patients)
    with pytest.raises(ValueError, match="dimension 5"):
        scorer.keep(np.zeros((2, 5), np.float16))


def test_scores_do_not_depend_on_the_other_tiles(simulated: SimulatedBags) -> None:
    scorer = fit(simulated, simulated.patients)
    tiles = simulated.tiles["P003"]
    np.testing.assert_allclose(scorer.score(tiles[5:9]), scorer.score(tiles)[5:9], rtol=1e-5)


def test_survival_contrasts_early_deaths_with_long_followed_patients() -> None:
    names = [f"P{i}" for i in range(6)]
    table = pd.DataFrame(
        {"time": [1.0, 2.0, 3.0, 40.0, 50.0, 60.0], "event": [1, 1, 1, 0, 1, 0]}, names
    )
    sides = contrasts(make_endpoint("survival", table), names)
    assert sides["high"].tolist() == [True, True, True, False, False, False]
    assert (sides["low"] == ~sides["high"]).all()


def test_scorers_of_a_file_score_the_same(simulated: SimulatedBags) -> None:
    sample = sample_for(simulated.bags(), simulated.endpoint, 0)
    made = fit_tile_scorers(sample, simulated.endpoint, simulated.splits(["P001", "P004"]))
    made[0, 1] = fit(simulated, [])
    data = dump_tile_scorers(made)
    assert data == dump_tile_scorers(made)
    read = load_tile_scorers(io.BytesIO(data))
    assert set(read) == set(made)
    tiles = simulated.tiles["P001"]
    for key in made:
        np.testing.assert_array_equal(read[key].score(tiles), made[key].score(tiles))
        np.testing.assert_array_equal(read[key].keep(tiles), made[key].keep(tiles))
        assert read[key].classes == made[key].classes


def test_another_file_is_refused_without_unpickling() -> None:
    other = io.BytesIO()
    np.savez(other, facts=np.array([{"a": 1}], dtype=object))
    for data in (b"", b"text", other.getvalue()):
        with pytest.raises(ValueError, match="materialize the tile scorer again"):
            load_tile_scorers(io.BytesIO(data))

"""Fits: what they learn, what they must not read, that they are repeatable and resumable."""

import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.porpoise.fitting import PorpoiseParameters, fit_porpoise
from mm_assets.models.porpoise.folds import Fits
from mm_assets.models.porpoise.model import BAG, Cohort, PorpoiseModel, pack_bag
from mm_assets.models.porpoise.networks import Kind
from mm_assets.models.porpoise.training import Training, TrainingParameters
from mm_assets_tests.models.porpoise.made_up import WIDTH, make_cohort, outcomes, patient_ids
from mm_assets_tests.models.simulation import split

KINDS: tuple[Kind, ...] = ("amil", "snn", "mmf")
QUICK = PorpoiseParameters(training=TrainingParameters(epochs=3))
STOPPED = replace(QUICK, early_stopping=True)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # The same bytes need the same number of threads.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(model: PorpoiseModel) -> bytes:
    """The network's weights."""
    buffer = io.BytesIO()
    torch.save(model.network.state_dict(), buffer)
    return buffer.getvalue()


def error(model: PorpoiseModel, cohort: Cohort, endpoint: Endpoint) -> float:
    """1 minus AUC or Harrell's C on all patients."""
    table = endpoint.table
    found = model.predict_patients(cohort, table.index.tolist())
    if endpoint.classes:
        return 1 - roc_auc_score(table["label"], found["probability_B"])
    return 1 - concordance_index(table["time"], -found["risk"], table["event"])


@pytest.mark.parametrize("task", ["survival", "classification"])
@pytest.mark.parametrize("kind", KINDS)
def test_eight_patients_are_learnt_by_heart(kind: Kind, task: str) -> None:
    cohort, endpoint = make_cohort(8), outcomes(task, 8)
    many = TrainingParameters(epochs=60, rate=1e-3, accumulate=8)
    names = endpoint.table.index.tolist()
    model = fit_porpoise(
        kind, cohort, endpoint, names, parameters=PorpoiseParameters(training=many)
    )
    loss = model.trained.curve[:, 0]
    assert loss[-1] < 0.5 * loss[0]
    # Four intervals leave pairs inside one interval undecided.
    assert error(model, cohort, endpoint) <= (0.2 if task == "survival" else 0)


def test_one_tile_in_a_thousand_is_found() -> None:
    """Bags of 1,000 tiles differ between the classes in one tile, and not in their mean."""
    rng = np.random.default_rng(0)
    names, planted, bags = patient_ids(36), {}, {}
    endpoint = outcomes("classification", 36)
    for name, label in endpoint.table["label"].items():
        tiles = rng.normal(scale=0.1, size=(1000, WIDTH))
        planted[name] = int(rng.integers(1000))
        if label:
            tiles[planted[name], :3] += 20
        bags[name] = [(tiles - tiles.mean(axis=0)).astype(np.float16)]
    cohort = Cohort(bags)
    learning = TrainingParameters(epochs=10, rate=2e-3, accumulate=4)
    parameters = PorpoiseParameters(training=learning)
    model = fit_porpoise("amil", cohort, endpoint, names[:24], parameters=parameters)
    found = model.predict_patients(cohort, names[24:])["probability_B"]
    assert roc_auc_score(endpoint.table.loc[found.index, "label"], found) == 1
    ill = [name for name in names[24:] if endpoint.table.loc[name, "label"]]
    weight = [model.attention(bags[name][0])[planted[name]] for name in ill]
    assert min(weight) > 0.5  # an average tile has .001


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind: Kind) -> None:
    cohort, endpoint = make_cohort(24), outcomes("survival", 24)
    names = endpoint.table.index.tolist()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(found))  # whatever the process drew before
        training = replace(QUICK.training, seed=seed)
        parameters = PorpoiseParameters(training=training)
        found.append(weights(fit_porpoise(kind, cohort, endpoint, names, parameters=parameters)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("parameters", [QUICK, STOPPED])
@pytest.mark.parametrize("kind", KINDS)
def test_test_patients_change_nothing(kind: Kind, parameters: PorpoiseParameters) -> None:
    cohort, endpoint = make_cohort(40), outcomes("survival", 40)
    names = endpoint.table.index.tolist()
    assert cohort.omics is not None
    turned = endpoint.table.copy()
    turned.loc[names[30:], "time"] *= 7
    turned.loc[names[30:], "event"] = 1 - turned["event"]
    omics = cohort.omics.copy()
    omics.loc[names[30:]] = 36_893.0
    other = Cohort({name: cohort.bags[name] for name in names[:30]}, omics)
    one = fit_porpoise(kind, cohort, endpoint, names[:30], (12.0,), parameters)
    two = fit_porpoise(
        kind, other, replace(endpoint, table=turned), names[:30], (12.0,), parameters
    )
    assert weights(one) == weights(two)
    assert one.risk_cut == two.risk_cut
    pd.testing.assert_frame_equal(
        one.predict_patients(other, names[:30]), two.predict_patients(other, names[:30])
    )


def test_early_stopping_keeps_the_best_epoch_of_inner_patients() -> None:
    cohort, endpoint = make_cohort(40), outcomes("survival", 40)
    seen: list[tuple[int, float]] = []
    parameters = PorpoiseParameters(True, TrainingParameters(epochs=40, rate=3e-3, patience=4))
    model = fit_porpoise(
        "snn",
        cohort,
        endpoint,
        endpoint.table.index.tolist(),
        parameters=parameters,
        on_epoch=lambda epoch, _, validation: seen.append((epoch, validation)),
    )
    validation = model.trained.curve[:, 1]
    assert model.trained.epoch == int(validation.argmin())
    assert len(validation) == model.trained.epoch + 1 + 4 < 40
    np.testing.assert_allclose([v for _, v in seen], validation, rtol=1e-6)
    # Fewer epochs than the best one give its weights: what came after left no trace.
    short = replace(parameters.training, epochs=model.trained.epoch + 1)
    again = fit_porpoise(
        "snn",
        cohort,
        endpoint,
        endpoint.table.index.tolist(),
        parameters=PorpoiseParameters(True, short),
    )
    assert weights(again) == weights(model)


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mm_assets_tests.models.porpoise.test_fitting import long_fit
long_fit(Path(sys.argv[1]), print)
"""


def long_fit(checkpoint: Path | None, note: object = None) -> PorpoiseModel:
    """Some seconds of training, with a word after every epoch."""
    cohort, endpoint = make_cohort(40, tiles=10), outcomes("survival", 40)
    training = TrainingParameters(epochs=12, accumulate=8)
    return fit_porpoise(
        "mmf",
        cohort,
        endpoint,
        endpoint.table.index.tolist(),
        (12.0,),
        PorpoiseParameters(True, replace(training, patience=12)),
        checkpoint=checkpoint,
        on_epoch=(lambda *epoch: print(*epoch, flush=True)) if note else None,
    )


def test_a_killed_training_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fit" / "fold0.pt"
    command = [sys.executable, "-c", KILLED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    saved = torch.load(file, weights_only=True)["state"]
    assert 4 <= len(saved["curve"]) < 12
    resumed, whole = long_fit(file), long_fit(None)
    assert weights(resumed) == weights(whole)
    np.testing.assert_array_equal(resumed.trained.curve, whole.trained.curve)
    assert resumed.risk_cut == whole.risk_cut
    # Done: a third attempt computes nothing.
    monkeypatch.delattr(Training, "learn_epoch")
    assert weights(long_fit(file)) == weights(whole)


def test_a_checkpoint_of_another_fit_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "fold.pt"
    cohort, endpoint = make_cohort(20), outcomes("survival", 20)
    names = endpoint.table.index.tolist()
    fit_porpoise("snn", cohort, endpoint, names[:15], parameters=QUICK, checkpoint=file)
    fresh = fit_porpoise("snn", cohort, endpoint, names, parameters=QUICK)
    found = fit_porpoise("snn", cohort, endpoint, names, parameters=QUICK, checkpoint=file)
    assert weights(found) == weights(fresh)
    # The same fit, prolonged: nothing of it is done again.
    longer = replace(QUICK, training=replace(QUICK.training, epochs=5))
    epochs: list[int] = []
    prolonged = fit_porpoise("snn", cohort, endpoint, names, parameters=longer, checkpoint=file)
    alone = fit_porpoise(
        "snn",
        cohort,
        endpoint,
        names,
        parameters=longer,
        on_epoch=lambda epoch, *_: epochs.append(epoch),
    )
    assert weights(prolonged) == weights(alone)
    assert epochs == [0, 1, 2, 3, 4]


def test_patients_without_a_modality() -> None:
    cohort, endpoint = make_cohort(20), outcomes("classification", 20)
    names = endpoint.table.index.tolist()
    assert cohort.omics is not None
    omics = cohort.omics.iloc[:15].copy()
    omics.iloc[14] = np.nan
    some = Cohort({name: cohort.bags[name] for name in names[5:18]}, omics)
    models = {kind: fit_porpoise(kind, some, endpoint, names, parameters=QUICK) for kind in KINDS}
    found = {kind: model.predict_patients(some, names) for kind, model in models.items()}
    assert found["amil"].index.tolist() == names[5:18]
    assert found["snn"].index.tolist() == names[:14]
    assert found["mmf"].index.tolist() == names[:18]
    for table in found.values():
        np.testing.assert_allclose(table.filter(like="probability").sum(axis=1), 1)
    # Patients with neither modality are not learnt from either.
    few = Cohort(some.bags, omics.iloc[:0])
    with pytest.raises(ValueError, match="porpoise_snn: 0 training patients"):
        fit_porpoise("snn", few, endpoint, names, parameters=QUICK)
    for lacking, reason in (
        (few, "no training patient has omics"),
        (Cohort(some.bags), "no training patient has omics"),
        (Cohort(omics=omics), "no training patient has tiles"),
    ):
        with pytest.raises(ValueError, match=reason):
            fit_porpoise("mmf", lacking, endpoint, names, parameters=QUICK)
    # A cohort without omics can still be predicted by a network that learnt from both.
    alone = models["mmf"].predict_patients(Cohort(some.bags), names)
    assert alone.index.tolist() == names[5:18]
    # Nor do slides have to be there, of one patient or of a whole step of the training.
    by_omics = models["mmf"].predict_patients(some, names[:1])
    pd.testing.assert_frame_equal(by_omics, found["mmf"].iloc[:1], atol=1e-6)
    rare = Cohort({names[0]: cohort.bags[names[0]]}, omics)
    steps = replace(QUICK, training=replace(QUICK.training, accumulate=4))
    fitted = fit_porpoise("mmf", rare, endpoint, names, parameters=steps)
    assert np.isfinite(fitted.trained.curve[:, 0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_predicts_from_one_table(kind: Kind) -> None:
    cohort, endpoint = make_cohort(20), outcomes("survival", 20)
    names = endpoint.table.index.tolist()
    model = fit_porpoise(kind, cohort, endpoint, names, (12.0,), QUICK)
    assert cohort.omics is not None
    frame = cohort.omics.assign(**{BAG: [pack_bag(cohort.bags[name]) for name in names]})
    frame.loc[names[3]] = np.nan
    frame[BAG] = frame[BAG].astype(object).where(frame.index != names[3], None)
    again: PorpoiseModel = pickle.loads(pickle.dumps(model))
    found = again.predict(frame[model.feature_names])
    assert found.index.tolist() == names
    assert found.loc[names[3]].isna().all()
    expected = model.predict_patients(cohort, names).drop(names[3])
    pd.testing.assert_frame_equal(found.drop(names[3]), expected, check_names=False, atol=1e-6)
    assert found.columns.tolist() == ["risk", "risk_cut", "survival_12"]
    if kind != "snn":
        with pytest.raises(ValueError, match="does not hold whole float16 embeddings of 12"):
            again.predict(frame.iloc[:1].assign(**{BAG: [b"abc"]}))
        narrow = Cohort({names[0]: [np.zeros((4, 3), np.float16)]}, cohort.omics)
        with pytest.raises(ValueError, match="patient P000 have 3 dimensions, not 12"):
            model.predict_patients(narrow, names[:1])
    with pytest.raises(ValueError, match="columns are absent"):
        again.predict(frame[[]])


def test_slides_of_one_patient_are_one_bag() -> None:
    cohort, endpoint = make_cohort(20), outcomes("classification", 20)
    names = endpoint.table.index.tolist()
    joined = Cohort({name: [np.concatenate(slides)] for name, slides in cohort.bags.items()})
    one, two = (
        fit_porpoise("amil", c, endpoint, names, parameters=QUICK) for c in (cohort, joined)
    )
    assert weights(one) == weights(two)


def test_outliers_of_training_patients_are_winsorised() -> None:
    cohort, endpoint = make_cohort(200), outcomes("survival", 200)
    assert cohort.omics is not None
    omics = cohort.omics.copy()
    omics.iloc[0, 0] = 36_893.0
    names = endpoint.table.index.tolist()
    model = fit_porpoise("snn", Cohort(omics=omics), endpoint, names, parameters=QUICK)
    assert model.scaler is not None
    scaled = model.scaler(omics)
    assert np.abs(scaled).max() < 5
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-4)
    holed = omics.copy()
    holed.iloc[5, 2] = np.nan
    median = model.scaler.fitted["median"].iloc[2]
    filled = holed.fillna({omics.columns[2]: median})
    np.testing.assert_array_equal(model.scaler(holed), model.scaler(filled))


@pytest.mark.parametrize("kind", KINDS)
def test_folds_predict_their_test_patients(kind: Kind, tmp_path: Path) -> None:
    cohort, endpoint = make_cohort(24), outcomes("survival", 24)
    splits = split(endpoint.table.index, 2)
    seen: list[tuple[object, ...]] = []
    fits = Fits(
        kind,
        cohort,
        endpoint,
        (12.0, 36.0),
        QUICK,
        checkpoints=tmp_path,
        on_epoch=lambda *epoch: seen.append(epoch[:2]),
    )
    table = fits.out_of_fold(splits)
    tests = splits[splits["role"] == "test"]
    assert set(zip(table["fold"], table["patient_id"], strict=True)) == set(
        zip(tests["fold"], tests["patient_id"], strict=True)
    )
    assert table.columns.tolist() == [
        *("model", "repeat", "fold", "patient_id"),
        *("risk", "risk_cut", "survival_12", "survival_36"),
    ]
    assert set(table["model"]) == {f"porpoise_{kind}"}
    names = ["repeat0_fold0", "repeat0_fold1"]
    assert seen == [(name, epoch) for name in names for epoch in range(3)]
    final = fits.final()
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["final", *names]
    assert len(final.predict_patients(cohort, patient_ids(24))) == 24

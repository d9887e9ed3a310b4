"""Leakage, tried for real: what should be refused is, and what cannot be helps nobody.

Tables on disk go through the platform's own readers, folds and models, as the assets call them.
Where the platform refuses, the last test of the file shows what it would have let in.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mm_assets.assets.cohort_level import run_cohort_stage
from mm_assets.assets.omics import table_stages, task_table_stages
from mm_assets.assets.porpoise import porpoise_stages
from mm_assets.assets.stage import Workspace
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.check import check_cohort
from mm_assets.cohort.clinical import Endpoint, make_endpoint, read_clinical
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.loading import load_config
from mm_assets.cohort.problems import CohortError
from mm_assets.cohort.splits import make_splits
from mm_assets.evaluation.metrics import harrell_c, nan_mean, roc_auc
from mm_assets.models.boosting import BoostingParameters
from mm_assets.models.clinical import run_clinical_folds
from mm_assets.models.features import FeatureBlocks, Variant
from mm_assets.models.heec_folds import run_folds
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.models.porpoise.fitting import PorpoiseParameters
from mm_assets.models.porpoise.folds import Fits
from mm_assets.models.porpoise.model import Cohort as NetworkCohort
from mm_assets.models.porpoise.training import TrainingParameters
from mm_assets.omics.filters import filter_folds, fit_filter
from mm_assets.omics.readers import read_omics
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.assets.test_porpoise import embedded
from mm_assets_tests.cohorts import patient_ids, write_yaml
from mm_assets_tests.models.simulation import shuffled

KINDS = ("classification", "survival")
GENES, HORIZON = 40, 24.0
# Enough to learn what is planted in a few genes; the published 20 epochs learn no more here.
NETWORK = PorpoiseParameters(training=TrainingParameters(epochs=8, rate=1e-3))
BOOSTED = HeecParameters(
    omics_features=20, inner_folds=3, boosting=BoostingParameters(min_rounds=25, max_rounds=50)
)
Spoil = Callable[[pd.DataFrame, pd.DataFrame], tuple[pd.DataFrame, pd.DataFrame]]


def write_cohort(
    folder: Path,
    patients: int = 120,
    spoil: Spoil | None = None,
    genes: int = GENES,
    **sections: Any,
) -> CohortConfig:
    """Clinical and omics tables, five genes of which carry the outcome, and the YAML.

    `spoil` changes the two tables before they are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = patient_ids(patients)
    signal = rng.normal(size=patients)
    death, censoring = rng.exponential(30 * np.exp(-1.5 * signal)), rng.exponential(80, patients)
    clinical = pd.DataFrame(
        {
            "patient_id": names,
            "age": rng.integers(35, 85, patients),
            "site": [f"site{number % 6}" for number in range(patients)],
            "subtype": np.where(signal + rng.normal(0, 0.5, patients) > 0, "ILC", "IDC"),
            "survival_months": np.minimum(death, censoring).round(3) + 0.01,
            "event": (death <= censoring).astype(int),
        }
    )
    values = rng.normal(size=(patients, genes))
    values[:, :5] += signal[:, None]
    omics = pd.DataFrame(values, columns=[f"G{gene}_rnaseq" for gene in range(genes)])
    omics.insert(0, "case_id", names)
    if spoil:
        clinical, omics = spoil(clinical, omics)
    clinical.to_csv(folder / "clinical.csv", index=False)
    omics.to_csv(folder / "omics.csv", index=False)
    return load_config(write_yaml(folder, **{"slides": None, **sections}))


def problems(config: CohortConfig) -> list[str]:
    """What `mm check` says."""
    return [f"{problem.severity}: {problem}" for problem in check_cohort(config)]


@dataclass(frozen=True)
class Read:
    """A cohort as its tables were read, and one task's endpoint and folds."""

    omics: pd.DataFrame
    clinical: pd.DataFrame
    endpoint: Endpoint
    splits: pd.DataFrame

    @classmethod
    def of(cls, config: CohortConfig, kind: str) -> "Read":
        """Through the platform's readers."""
        task = next(task for task in config.tasks if task.kind == kind)
        clinical, _ = read_clinical(config.clinical, config.tasks)
        endpoint = make_endpoint(clinical, task)
        splits, _ = make_splits(endpoint, clinical, config.evaluation)
        assert config.omics is not None
        return cls(read_omics(config.omics)[0], clinical[["age"]], endpoint, splits)

    def heec(self) -> pd.DataFrame:
        """Out-of-fold predictions of HEEC."""
        blocks = FeatureBlocks(None, self.omics, self.clinical)
        return run_folds(blocks, self.endpoint, self.splits, (), [Variant("heec")], BOOSTED)

    def clinical_model(self) -> pd.DataFrame:
        """Out-of-fold predictions of the clinical baseline."""
        return run_clinical_folds(self.clinical, self.endpoint, self.splits)

    def snn(self) -> pd.DataFrame:
        """Out-of-fold predictions of PORPOISE's omics network."""
        cohort = NetworkCohort(omics=self.omics)
        return Fits("snn", cohort, self.endpoint, parameters=NETWORK).out_of_fold(self.splits)

    def score(self, predictions: pd.DataFrame) -> float:
        """C-index or AUC, the mean over test folds."""
        found = []
        for _, rows in predictions.groupby(["repeat", "fold"]):
            truth = self.endpoint.table.loc[rows["patient_id"]]
            if self.endpoint.classes:
                positive = truth["label"].to_numpy(bool)
                found.append(roc_auc(positive, rows["probability_ILC"].to_numpy()))
            else:
                event, risk = truth["event"].to_numpy(bool), rows["risk"].to_numpy()
                found.append(harrell_c(truth["time"].to_numpy(), event, risk))
        return float(nan_mean(np.array(found)))


MODELS: dict[str, Callable[[Read], pd.DataFrame]] = {"heec": Read.heec, "snn": Read.snn}
# A sample of each campaign runs unmarked.
CASES = [
    pytest.param("survival", "heec"),
    pytest.param("survival", "snn"),
    pytest.param("classification", "heec", marks=pytest.mark.stress),
    pytest.param("classification", "snn", marks=pytest.mark.stress),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CohortConfig:
    """A cohort without leak."""
    return write_cohort(tmp_path_factory.mktemp("sound"))


# Shuffled labels.


def deals(config: CohortConfig, kind: str, model: str, count: int) -> list[float]:
    """Scores after the outcomes were dealt to other patients, folds drawn anew each time."""
    read, found = Read.of(config, kind), []
    for seed in range(count):
        endpoint = shuffled(read.endpoint, seed)
        endpoint = replace(endpoint, classes=read.endpoint.classes)
        splits, _ = make_splits(endpoint, read.clinical, config.evaluation)
        dealt = replace(read, endpoint=endpoint, splits=splits)
        found.append(dealt.score(MODELS[model](dealt)))
    return found


def test_the_omics_network_learns_nothing_from_shuffled_outcomes(config: CohortConfig) -> None:
    """HEEC and the clinical models have such tests of their own, beside those of their parts."""
    read = Read.of(config, "survival")
    assert read.score(read.snn()) > 0.7
    # The standard deviation of one deal is .08, that of their mean .04.
    assert np.mean(deals(config, "survival", "snn", 4)) == pytest.approx(0.5, abs=0.1)


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_outcomes_give_chance(config: CohortConfig, kind: str, model: str) -> None:
    found = deals(config, kind, model, 30)
    assert np.mean(found) == pytest.approx(0.5, abs=3 * np.std(found, ddof=1) / np.sqrt(30)), found


# A canary feature.


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_a_feature_equal_to_the_test_labels_changes_nothing(
    config: CohortConfig, kind: str, model: str
) -> None:
    """Constant in training, the truth in the test fold."""
    read = Read.of(config, kind)
    read = replace(read, splits=read.splits[read.splits["fold"] == 0])
    truth = read.endpoint.table["label" if read.endpoint.classes else "time"].astype(np.float32)
    test = read.splits.loc[read.splits["role"] == "test", "patient_id"]
    leak = truth.where(truth.index.isin(test), 0.0)
    leaking = replace(read, omics=read.omics.assign(**{"expression:LEAK": leak}))
    predict = MODELS[model]
    pd.testing.assert_frame_equal(predict(read), predict(leaking), check_exact=True)


def with_copies_of_the_outcome(
    clinical: pd.DataFrame, omics: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    noise = np.random.default_rng(1).normal(0, 0.01, len(omics))
    clinical = clinical.assign(followed=clinical["survival_months"] + noise)
    copies = {
        "LABEL_mut": (clinical["subtype"] == "ILC").astype(int),
        "MONTHS_rnaseq": clinical["survival_months"] + noise,
    }
    return clinical, omics.assign(**copies)


def test_a_copy_of_the_outcome_is_named(home: Path, tmp_path: Path) -> None:
    """A feature equal to all labels cannot be told from a perfect test; people are told of it."""
    clinical = {"table": "clinical.csv", "covariates": ["age", "followed"]}
    config = write_cohort(tmp_path / "told", spoil=with_copies_of_the_outcome, clinical=clinical)
    assert [line for line in problems(config) if "determines" in line] == [
        "warning: task survival: covariate 'followed' determines the outcome of the patients "
        "(leave it out of clinical.covariates, or the results mean nothing)"
    ]
    space = Workspace(
        config, ArtefactStore(uri=str(home / "store")), Tracking(), logging.getLogger()
    )
    stages = table_stages(config)
    for stage in [*stages, *(s for task in config.tasks for s in task_table_stages(config, task))]:
        produced = run_cohort_stage(stage, space, "").produced
        assert produced is not None
        for check in (check for check in produced.checks if check.name == "no_telltale"):
            copy = "mutation:LABEL" if "subtype" in stage.name else "expression:MONTHS"
            assert not check.passed
            assert check.note.endswith(f"mean nothing: {copy}")


def test_strong_biology_is_no_copy(config: CohortConfig) -> None:
    assert [line for line in problems(config) if "determines" in line] == []


# Duplicated patients across sites.


def with_a_second_id(
    clinical: pd.DataFrame, omics: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    twin = clinical[clinical["patient_id"] == "P007"].assign(patient_id="Q007", site="site9")
    row = omics[omics["case_id"] == "P007"].assign(case_id="Q007")
    return pd.concat([clinical, twin]), pd.concat([omics, row])


def test_one_person_under_two_ids_is_refused_by_omics(home: Path, tmp_path: Path) -> None:
    config = write_cohort(tmp_path / "twins", spoil=with_a_second_id)
    assert [line for line in problems(config) if line.startswith("error")] == [
        f"error: {tmp_path / 'twins' / 'omics.csv'}: patients with the same expression of every "
        "gene: P007, Q007 (one person is one patient: keep one id, in all tables)"
    ]
    space = Workspace(
        config, ArtefactStore(uri=str(home / "store")), Tracking(), logging.getLogger()
    )
    clinical, omics = table_stages(config)
    run_cohort_stage(clinical, space, "")
    with pytest.raises(CohortError, match="P007, Q007"):
        run_cohort_stage(omics, space, "")


def test_one_slide_under_two_patients_is_refused_by_its_tiles(home: Path, tmp_path: Path) -> None:
    """Whatever the files' headers say; two equal slides of one patient are no leak."""
    folder = tmp_path / "twins"
    (folder / "slides").mkdir(parents=True)
    slides = {"P000-A": 0, "P000-B": 0, "P001-A": 1, "P002-A": 2, "P003-A": 1}
    for slide in slides:
        (folder / "slides" / f"{slide}.tiff").touch()
    sections = {"slides": {"root": "slides", "patient_pattern": r"^(P\d+)"}, "porpoise": {}}
    config = write_cohort(folder, 24, **sections)
    space = Workspace(
        config, ArtefactStore(uri=str(home / "store")), Tracking(), logging.getLogger()
    )
    for stage in (table_stages(config)[0], task_table_stages(config, config.tasks[0])[0]):
        run_cohort_stage(stage, space, "")
    for slide, seed in slides.items():
        _store(space, slide, embedded(seed))
    with pytest.raises(CohortError) as refused:
        run_cohort_stage(porpoise_stages(config, config.tasks[0])[0], space, "")
    assert str(refused.value) == (
        "slides P001-A (patient P001), P003-A (patient P003): have the same pixels under different "
        "patients (one of them is misnamed, or one person has two ids: correct the manifest)"
    )


def _store(space: Workspace, slide: str, table: pa.Table) -> None:
    made_of = Provenance(TILES, slide, "1", {}, {})
    outputs = {
        "arrow": space.store.write_arrow(ArtefactRef("tiny", TILES, slide, "arrow"), table, made_of)
    }
    space.receipts.write(Receipt("tiny", TILES, slide, "done", made_of, outputs))


# Slides of one patient in two folds.


def given_folds(folder: Path, train: list[str], test: list[str]) -> dict[str, object]:
    """A folder of one given fold, as the section `evaluation`."""
    (folder / "splits").mkdir(parents=True)
    columns = {"train": pd.Series(train), "val": pd.Series(test)}
    pd.DataFrame(columns).to_csv(folder / "splits" / "splits_0.csv", index=False)
    return {"evaluation": {"splits": "splits"}}


def test_given_folds_with_a_patient_on_both_sides_are_refused(tmp_path: Path) -> None:
    names = patient_ids(120)
    folder = tmp_path / "both"
    config = write_cohort(folder, **given_folds(folder, names[:80], names[78:]))
    what = "2 patients in both train and val: P078, P079"
    assert sum(what in line and line.startswith("error") for line in problems(config)) == 2


def test_folds_of_slides_are_refused_and_rows_of_slides_are_one_patient(tmp_path: Path) -> None:
    """A clinical table with a row a slide, and folds that name slides."""

    def by_slide(clinical: pd.DataFrame, omics: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = clinical.loc[clinical.index.repeat(2)]
        return rows.assign(slide_id=[f"S{n}" for n in range(len(rows))]), omics

    folder, slides = tmp_path / "slides", [f"S{number}" for number in range(240)]
    config = write_cohort(folder, spoil=by_slide, **given_folds(folder, slides[:121], slides[121:]))
    found = [line for line in problems(config) if line.startswith("error")]
    assert any("no patient of train has the endpoint (ids must be those" in line for line in found)
    for repeat, fold in ((0, 0), (0, 1)):
        read = Read.of(config, "survival")
        rows = read.splits[(read.splits["repeat"] == repeat) & (read.splits["fold"] == fold)]
        assert sorted(rows["patient_id"]) == patient_ids(120)


@pytest.mark.parametrize("predict", [Read.heec, Read.snn, Read.clinical_model])
def test_models_refuse_folds_with_a_patient_on_both_sides(
    config: CohortConfig, predict: Callable[[Read], pd.DataFrame]
) -> None:
    """Whoever made the folds: the last word is with what fits the models."""
    read = Read.of(config, "survival")
    test = read.splits[read.splits["role"] == "test"].iloc[[0]]
    both = pd.concat([read.splits, test.assign(role="train")])
    with pytest.raises(ValueError, match="1 patients in both train and test"):
        predict(replace(read, splits=both))


# Omics scaled outside the folds.


@pytest.mark.parametrize(("kind", "model"), CASES)
def test_scaling_outside_the_folds_changes_nothing(
    config: CohortConfig, kind: str, model: str
) -> None:
    """Scaling is fitted in the fold, which undoes any that saw the test patients.

    LightGBM's bins are not quite free of scale: 0 has one of its own.
    """
    read = Read.of(config, kind)
    scaled = replace(read, omics=(read.omics - read.omics.mean()) / read.omics.std())
    one, two = MODELS[model](read), MODELS[model](scaled)
    column = one.columns[4]
    assert one[column].corr(two[column], method="spearman") > 0.98
    assert read.score(two) == pytest.approx(read.score(one), abs=0.01)
    if model == "snn":
        np.testing.assert_allclose(two[column], one[column], atol=1e-3)


# Features selected outside the folds.


def test_a_filter_of_other_patients_is_refused(config: CohortConfig) -> None:
    read = Read.of(config, "survival")
    blocks = FeatureBlocks(None, read.omics, read.clinical)
    everyone = fit_filter(read.omics, read.endpoint, read.endpoint.table.index.tolist(), 20)
    own = filter_folds(read.omics, read.endpoint, read.splits, 20)
    outside = [everyone.assign(fold=fold, repeat=0, fitted_on="") for fold in (0, 1)]
    folds = [own[own["fold"] == fold].assign(fold=1 - fold) for fold in (0, 1)]
    for filtered in (pd.concat(outside), pd.concat(folds)):
        with pytest.raises(ValueError, match="repeat 0, fold 0 was not fitted to the training"):
            run_folds(blocks, read.endpoint, read.splits, (), None, BOOSTED, filtered)


# What the refusals keep out.


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_would_have_made_results_of_nothing(tmp_path: Path, kind: str) -> None:
    """Shuffled outcomes: everybody under two ids, and genes chosen on all patients."""
    read = Read.of(write_cohort(tmp_path, genes=2000), kind)
    config = load_config(tmp_path / "defs.yaml")
    found: dict[str, list[float]] = {"sound": [], "twins": [], "chosen": []}
    for seed in range(6):
        endpoint = replace(shuffled(read.endpoint, seed), classes=read.endpoint.classes)
        splits, _ = make_splits(endpoint, read.clinical, config.evaluation)
        dealt = replace(read, endpoint=endpoint, splits=splits)
        found["sound"].append(dealt.score(dealt.heec()))
        chosen = fit_filter(read.omics, endpoint, endpoint.table.index.tolist(), 20)["feature"]
        picked = replace(dealt, omics=read.omics[chosen.tolist()])
        found["chosen"].append(picked.score(picked.heec()))
        twice = _everybody_twice(dealt, config)
        found["twins"].append(twice.score(twice.snn()))
    means = {name: float(np.mean(scores)) for name, scores in found.items()}
    assert means["sound"] == pytest.approx(0.5, abs=0.06), means
    assert means["chosen"] > 0.62, means
    assert means["twins"] > 0.62, means


def _everybody_twice(read: Read, config: CohortConfig) -> Read:
    """Each patient again under another id, which folds take for another person."""

    def doubled(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, table.rename(lambda name: name.replace("P", "Q"))]).sort_index()

    endpoint = replace(read.endpoint, table=doubled(read.endpoint.table))
    clinical = doubled(read.clinical)
    splits, _ = make_splits(endpoint, clinical, config.evaluation)
    return Read(doubled(read.omics), clinical, endpoint, splits)

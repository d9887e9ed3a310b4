"""The HEEC model: boosted trees on extremum vectors, filtered omics and clinical covariates.

Survival: four losses boosted on all features, ranks averaged, then averaged with the clinical
Cox model, which has one vote beside one vote of the trees for each of imaging and omics (DESIGN
section 7: unweighted averages beat fitted weights). A member that ranks the held-out patients of
the inner folds no better than chance loses its vote. Classification: the average of three softmax
boosters, which gives .005 more AUC than one (IDC against ILC in TCGA-BRCA, three draws of folds).

Fold safety: filter, encoding, number of rounds, reference ranks and calibration are fitted on the
training patients of a fold. The filter is fitted anew in every inner fold, because features chosen
with the outcomes of held-out patients make any number of rounds look good.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.splits import inner_split
from mm_assets.models.boosting import (
    Boosters,
    BoostingParameters,
    Chosen,
    InnerFold,
    choose_rounds,
    one_thread,
    predict_text,
)
from mm_assets.models.calibration import QuantileMap, SurvivalCurve, cox_slope, probability_columns
from mm_assets.models.clinical import MIN_EVENTS, ClinicalModel
from mm_assets.models.features import FeatureBlocks, Preprocessor, Variant, default_variants
from mm_assets.models.folds import Fold, list_folds
from mm_assets.models.losses import Floats, Labels, Outcome, bind_losses, log_prior, softmax
from mm_assets.omics.filters import ALL_PATIENTS

MIN_PATIENTS = 10
TREES, CLINICAL = "trees", "clinical"
Sites = pd.Series | None
InnerFolds = list[tuple[list[str], list[str]]]
Progress = Callable[[int, int], None]
ImagingOf = Callable[[int, int, bool], pd.DataFrame]


@dataclass(frozen=True)
class HeecParameters:
    """Settings of a fit.

    Attributes
    ----------
    imaging_features, omics_features
        Features kept by the univariate filter of each block; None keeps all that vary.
    """

    imaging_features: int | None = 200
    omics_features: int | None = 600
    inner_folds: int = 5
    seed: int = 0
    boosting: BoostingParameters = field(default_factory=BoostingParameters)


@dataclass(frozen=True)
class HeecModel:
    """A fitted model; picklable, without open handles.

    Attributes
    ----------
    boosters
        LightGBM's text by loss; empty where there were too few patients to learn from.
    references
        Place of a score among the held-out scores of the training patients, by loss (survival).
    votes
        Weight of the trees and of the clinical Cox model (survival).
    prior
        Log frequencies of the classes in training (classification).
    curve
        Survival from the combined risk.
    """

    classes: tuple[str, ...]
    preprocessor: Preprocessor
    boosters: dict[str, str]
    references: dict[str, QuantileMap]
    clinical: ClinicalModel | None
    votes: dict[str, float]
    prior: Floats
    curve: SurvivalCurve | None

    @property
    def feature_names(self) -> list[str]:
        """Columns that `predict` reads."""
        return self.preprocessor.inputs

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predict patients.

        Parameters
        ----------
        frame
            Raw features, at least the columns `feature_names`; missing values are allowed.

        Returns
        -------
        DataFrame
            Columns risk (0 to 1, higher = worse) and survival_<h>, or probability_<class>; index
            as `frame`.

        Raises
        ------
        ValueError
            If columns are absent.
        """
        absent = [name for name in self.feature_names if name not in frame]
        if absent:
            raise ValueError(f"{len(absent)} features are absent, e.g. {absent[0]}")
        matrix = self.preprocessor.transform(frame)
        scores = {name: predict_text(text, matrix) for name, text in self.boosters.items()}
        if self.curve is None:
            members = list(scores.values()) or [np.zeros((len(frame), 1))]
            logits = self.prior + np.mean(members, axis=0)
            return pd.DataFrame(softmax(logits), frame.index, probability_columns(self.classes))
        if self.clinical is not None:
            scores[CLINICAL] = self.clinical.score(frame)
        places = {name: self.references[name](score) for name, score in scores.items()}
        risk = _combine(places, self.votes, len(frame))
        return self.curve(risk).set_index(frame.index)


def fit_heec(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    train: Sequence[str],
    horizons: Sequence[float] = (),
    parameters: HeecParameters | None = None,
    filtered_omics: pd.DataFrame | None = None,
    sites: Sites = None,
) -> HeecModel:
    """Fit HEEC to training patients.

    Parameters
    ----------
    blocks
        Raw features; all of them are read, so choose with `Variant.select`.
    train
        Training patients, all of them in `endpoint.table`.
    filtered_omics
        `fit_filter` of `blocks.omics` on `train`, where it is known.
    sites
        Site by patient; inner folds then keep sites apart too.
    """
    train, parameters = sorted(train), parameters or HeecParameters()
    table = endpoint.table.loc[train]
    preprocessor = _preprocessor(blocks, endpoint, train, parameters, filtered_omics)
    scores: dict[str, Floats] = {}
    boosters: dict[str, str] = {}
    clinical = None
    if preprocessor.names and _can_learn(table, endpoint):
        inner = _inner_folds(endpoint, train, parameters, sites)
        with one_thread():
            chosen = _inner_scores(blocks, endpoint, train, inner, parameters)
            boosters = _grow(preprocessor, blocks.frame(train), endpoint, chosen, parameters)
        scores = {name: choice.scores for name, choice in chosen.items()}
        if endpoint.kind == "survival" and blocks.clinical is not None:
            scores[CLINICAL] = _inner_clinical(blocks.clinical, endpoint, train, inner)
            clinical = ClinicalModel.fit(blocks.clinical.reindex(train), endpoint)
    if endpoint.kind == "classification":
        labels = Labels(table["label"].to_numpy(np.int64), len(endpoint.classes))
        return HeecModel(
            endpoint.classes, preprocessor, boosters, {}, None, {}, log_prior(labels), None
        )
    outcome = Outcome.of(table)
    references = {name: QuantileMap.fit(score) for name, score in scores.items()}
    places = {name: references[name](score) for name, score in scores.items()}
    votes = _votes(blocks, places, outcome)
    curve = SurvivalCurve.fit(_combine(places, votes, len(train)), outcome, horizons)
    return HeecModel((), preprocessor, boosters, references, clinical, votes, np.zeros(0), curve)


def fit_final(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    horizons: Sequence[float] = (),
    parameters: HeecParameters | None = None,
    filtered_omics: pd.DataFrame | None = None,
    sites: Sites = None,
) -> HeecModel:
    """HEEC fitted to all patients of the task, with the rows repeat = fold = -1 of the filter."""
    known = _filter_of(filtered_omics, ALL_PATIENTS, ALL_PATIENTS)
    patients = endpoint.table.index.to_list()
    return fit_heec(blocks, endpoint, patients, horizons, parameters, known, sites)


def run_folds(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    splits: pd.DataFrame,
    horizons: Sequence[float] = (),
    variants: Sequence[Variant] | None = None,
    parameters: HeecParameters | None = None,
    filtered_omics: pd.DataFrame | None = None,
    sites: Sites = None,
    progress: Progress | None = None,
    processes: int = 1,
    imaging_of: ImagingOf | None = None,
) -> pd.DataFrame:
    """Out-of-fold predictions of HEEC and its ablations.

    Parameters
    ----------
    splits
        Columns repeat, fold, patient_id, role.
    variants
        By default `default_variants`.
    filtered_omics
        Result of `filter_folds` with `parameters.omics_features` features; used where a variant
        reads all omics, other variants fit their filter here.
    progress
        Called with fits done and fits in all.
    processes
        Fits at once; the result does not depend on it.
    imaging_of
        Imaging features of all patients as a fold selects them, by repeat, fold and whether there
        is selection; by default those of `blocks`. A selection that learned from outcomes must
        have learned from those of the fold's training patients alone.

    Returns
    -------
    DataFrame
        Columns model, repeat, fold, patient_id, then those of `HeecModel.predict`, sorted.
    """
    variants = default_variants(blocks) if variants is None else variants
    tasks = [(fold, variant) for fold in list_folds(splits) for variant in variants]

    def read_by(fold: Fold, variant: Variant) -> FeatureBlocks:
        if imaging_of is None or not variant.imaging:
            return variant.select(blocks)
        imaging = imaging_of(fold.repeat, fold.fold, variant.selection)
        return variant.select(replace(blocks, imaging=imaging))

    def predict(fold: Fold, variant: Variant, chosen: FeatureBlocks) -> pd.DataFrame:
        known = None
        if chosen.omics is blocks.omics:
            known = _filter_of(filtered_omics, fold.repeat, fold.fold)
        model = fit_heec(chosen, endpoint, fold.train, horizons, parameters, known, sites)
        return fold.label(model.predict(chosen.frame(fold.test)), variant.name)

    tables = []
    # Not in threads: LightGBM 4.7 keeps its number of threads in a global and crashes (a write
    # past its per-thread buffers) when two boosters of different settings work at once.
    fits = Parallel(processes, return_as="generator")(
        delayed(predict)(fold, variant, read_by(fold, variant)) for fold, variant in tasks
    )
    for done, table in enumerate(fits, start=1):
        tables.append(table)
        if progress:
            progress(done, len(tasks))
    order = ["model", "repeat", "fold", "patient_id"]
    return pd.concat(tables, ignore_index=True).sort_values(order, ignore_index=True)


def _filter_of(filtered: pd.DataFrame | None, repeat: int, fold: int) -> pd.DataFrame | None:
    """The rows of one fold."""
    if filtered is None:
        return None
    return filtered[(filtered["repeat"] == repeat) & (filtered["fold"] == fold)]


def _can_learn(table: pd.DataFrame, endpoint: Endpoint) -> bool:
    if len(table) < MIN_PATIENTS:
        return False
    if endpoint.kind == "survival":
        return bool(table["event"].sum() >= MIN_EVENTS)
    return bool((table["label"].value_counts() >= 2).sum() >= 2)


def _preprocessor(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    train: Sequence[str],
    parameters: HeecParameters,
    filtered_omics: pd.DataFrame | None = None,
) -> Preprocessor:
    keep = parameters.imaging_features, parameters.omics_features
    return Preprocessor.fit(blocks, endpoint, train, *keep, filtered_omics)


def _inner_folds(
    endpoint: Endpoint, train: list[str], parameters: HeecParameters, sites: Sites
) -> InnerFolds:
    """Inner folds of at least five patients each, as far as there are so many."""
    folds = int(np.clip(len(train) // 5, 2, parameters.inner_folds))
    return list(inner_split(train, endpoint, folds, parameters.seed, sites))


def _inner_scores(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    train: list[str],
    inner: InnerFolds,
    parameters: HeecParameters,
) -> dict[str, Chosen]:
    """Rounds of every loss and the held-out scores of all training patients, in their order."""
    folds = []
    for fitted, held in inner:
        preprocessor = _preprocessor(blocks, endpoint, fitted, parameters)
        folds.append(
            InnerFold(
                train=preprocessor.transform(blocks.frame(fitted)),
                held=preprocessor.transform(blocks.frame(held)),
                rows=np.searchsorted(train, held),
                train_losses=bind_losses(endpoint, fitted, fitted),
                held_losses=bind_losses(endpoint, fitted, held),
            )
        )
    return choose_rounds(folds, parameters.boosting, parameters.seed)


def _inner_clinical(
    covariates: pd.DataFrame, endpoint: Endpoint, train: list[str], inner: InnerFolds
) -> Floats:
    """Held-out linear predictors of the clinical Cox model for all training patients."""
    score = np.zeros(len(train))
    for fitted, held in inner:
        model = ClinicalModel.fit(covariates.reindex(fitted), endpoint)
        score[np.searchsorted(train, held)] = model.score(covariates.reindex(held))
    return score


def _grow(
    preprocessor: Preprocessor,
    frame: pd.DataFrame,
    endpoint: Endpoint,
    chosen: Mapping[str, Chosen],
    parameters: HeecParameters,
) -> dict[str, str]:
    """Boosters of the chosen numbers of rounds on all training patients, as text."""
    patients = frame.index.to_list()
    losses = bind_losses(endpoint, patients, patients)
    matrix = preprocessor.transform(frame)
    boosters = Boosters(matrix, losses, parameters.boosting, parameters.seed)
    for name, choice in chosen.items():
        boosters.advance(name, choice.rounds)
    return {name: boosters.text(name) for name in chosen}


def _votes(
    blocks: FeatureBlocks, places: Mapping[str, Floats], outcome: Outcome
) -> dict[str, float]:
    """Weights of the trees and of the clinical Cox model, from held-out places."""
    if CLINICAL not in places:
        return {TREES: 1.0}
    votes = {TREES: float((blocks.imaging is not None) + (blocks.omics is not None))}
    votes[CLINICAL] = 1.0
    useful = {
        name: vote
        for name, vote in votes.items()
        if cox_slope(_combine(places, {name: 1.0}, len(outcome.time)), outcome) > 0
    }
    return useful or votes


def _combine(places: Mapping[str, Floats], votes: Mapping[str, float], patients: int) -> Floats:
    """Weighted mean of places; the trees' place is the mean over their losses."""
    trees = [place for name, place in places.items() if name != CLINICAL]
    means = {TREES: np.mean(trees, axis=0)} if trees else {TREES: np.full(patients, 0.5)}
    if CLINICAL in places:
        means[CLINICAL] = places[CLINICAL]
    total = np.zeros(patients)
    for name, vote in votes.items():
        total += vote * means[name]
    return total / sum(votes.values())

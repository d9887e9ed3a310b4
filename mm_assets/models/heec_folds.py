"""HEEC fold by fold: out-of-fold predictions of the model and its variants, and the final model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from joblib import Parallel, delayed

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.features import FeatureBlocks, Variant, default_variants
from mm_assets.models.folds import Fold, list_folds
from mm_assets.models.heec import HeecModel, Sites, fit_heec, for_blocks, judge_settings
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.models.tuning import Range, search_space
from mm_assets.omics.filters import ALL_PATIENTS, patients_digest

Progress = Callable[[int, int], None]
ImagingOf = Callable[[int, int, bool], pd.DataFrame]
FINAL = Variant("heec")


@dataclass(frozen=True, order=True)
class Search:
    """A variant in a fold, or the final model, whose settings are searched for."""

    model: str
    repeat: int = ALL_PATIENTS
    fold: int = ALL_PATIENTS


Settings = Mapping[Search, Mapping[str, float]]


def fit_final(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    horizons: Sequence[float] = (),
    parameters: HeecParameters | None = None,
    filtered_omics: pd.DataFrame | None = None,
    sites: Sites = None,
    settings: Settings | None = None,
) -> HeecModel:
    """HEEC fitted to all patients of the task, with the rows repeat = fold = -1 of the filter."""
    patients = endpoint.table.index.to_list()
    known = _filter_of(filtered_omics, ALL_PATIENTS, ALL_PATIENTS, patients)
    found = (settings or {}).get(Search(FINAL.name))
    return fit_heec(blocks, endpoint, patients, horizons, parameters, known, sites, found)


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
    log_trials: Callable[[pd.DataFrame], None] | None = None,
    settings: Settings | None = None,
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
    log_trials
        Called with `HeecModel.trials` of every variant and fold whose settings were searched for,
        columns model, repeat and fold in front.
    settings
        Found elsewhere, in place of searches.

    Returns
    -------
    DataFrame
        Columns model, repeat, fold, patient_id, then those of `HeecModel.predict`, sorted.

    Raises
    ------
    ValueError
        When a patient is on both sides of a fold, or a fold's filter was fitted to others than its
        training patients.
    """
    variants = default_variants(blocks) if variants is None else variants
    tasks = [(fold, variant) for fold in list_folds(splits) for variant in variants]

    def predict(
        fold: Fold, variant: Variant, chosen: FeatureBlocks
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        known = None
        own = _of_variant(parameters or HeecParameters(), variant)
        found = (settings or {}).get(Search(variant.name, fold.repeat, fold.fold))
        if chosen.omics is blocks.omics and variant.filter_factor == 1:
            known = _filter_of(filtered_omics, fold.repeat, fold.fold, fold.train)
        model = fit_heec(chosen, endpoint, fold.train, horizons, own, known, sites, found)
        predicted = fold.label(model.predict(chosen.frame(fold.test)), variant.name)
        return predicted, label_trials(model, variant.name, fold.repeat, fold.fold)

    tables = []
    # Not in threads: LightGBM 4.7 keeps its number of threads in a global and crashes (a write
    # past its per-thread buffers) when two boosters of different settings work at once.
    fits = Parallel(processes, return_as="generator")(
        delayed(predict)(fold, variant, _read_by(blocks, imaging_of, fold, variant))
        for fold, variant in tasks
    )
    for done, (table, trials) in enumerate(fits, start=1):
        tables.append(table)
        if log_trials and len(trials):
            log_trials(trials)
        if progress:
            progress(done, len(tasks))
    order = ["model", "repeat", "fold", "patient_id"]
    return pd.concat(tables, ignore_index=True).sort_values(order, ignore_index=True)


def searches(
    blocks: FeatureBlocks,
    splits: pd.DataFrame,
    variants: Sequence[Variant],
    parameters: HeecParameters,
) -> dict[Search, dict[str, Range]]:
    """Every search of `run_folds` and `fit_final`, and the values it chooses from."""

    def space(variant: Variant) -> dict[str, Range]:
        return search_space(for_blocks(_of_variant(parameters, variant), variant.select(blocks)))

    folds = list_folds(splits)
    found = {Search(v.name, f.repeat, f.fold): space(v) for f in folds for v in variants}
    return found | {Search(FINAL.name): space(FINAL)}


def judge_search(
    search: Search,
    settings: Mapping[str, float],
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    splits: pd.DataFrame,
    variants: Sequence[Variant],
    parameters: HeecParameters,
    sites: Sites = None,
    imaging_of: ImagingOf | None = None,
) -> float:
    """What settings gain on the inner folds of one search; higher is better.

    Parameters are those of `run_folds`. Nobody but the training patients of the fold is read.
    """
    if search == Search(FINAL.name):
        train, variant, chosen = endpoint.table.index.to_list(), FINAL, blocks
    else:
        (variant,) = (v for v in variants if v.name == search.model)
        (fold,) = (
            f for f in list_folds(splits) if (f.repeat, f.fold) == (search.repeat, search.fold)
        )
        train, chosen = fold.train, _read_by(blocks, imaging_of, fold, variant)
    own = _of_variant(parameters, variant)
    return judge_settings(chosen, endpoint, train, own, settings, sites)


def label_trials(
    model: HeecModel, name: str, repeat: int = ALL_PATIENTS, fold: int = ALL_PATIENTS
) -> pd.DataFrame:
    """`HeecModel.trials` with columns model, repeat and fold in front."""
    trials = model.trials.copy()
    for column, value in (("fold", fold), ("repeat", repeat), ("model", name)):
        trials.insert(0, column, value)
    return trials


def _read_by(
    blocks: FeatureBlocks, imaging_of: ImagingOf | None, fold: Fold, variant: Variant
) -> FeatureBlocks:
    """What a variant reads in a fold."""
    if imaging_of is None or not variant.imaging:
        return variant.select(blocks)
    imaging = imaging_of(fold.repeat, fold.fold, variant.selection)
    return variant.select(replace(blocks, imaging=imaging))


def _of_variant(parameters: HeecParameters, variant: Variant) -> HeecParameters:
    parameters = replace(parameters, clinical=variant.clinical_use)
    if variant.filter_factor == 1:
        return parameters
    return parameters.with_filters(variant.filter_factor)


def _filter_of(
    filtered: pd.DataFrame | None, repeat: int, fold: int, train: Sequence[str]
) -> pd.DataFrame | None:
    """The rows of one fold."""
    if filtered is None:
        return None
    rows = filtered[(filtered["repeat"] == repeat) & (filtered["fold"] == fold)]
    if set(rows["fitted_on"]) != {patients_digest(train)}:
        raise ValueError(
            f"the omics filter of repeat {repeat}, fold {fold} was not fitted to the training "
            "patients of that fold: make it anew with these folds"
        )
    return rows.drop(columns="fitted_on")

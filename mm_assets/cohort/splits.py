"""Folds: patient-level, stratified by endpoint, and site-preserving."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.config import EvaluationConfig
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.tables import listing, read_table

UNKNOWN_SITE = "(unknown)"
PRESERVE_SITES = "evaluation.preserve_sites"
_RESTARTS = 50
_FINE = 0.3  # weight of balancing the finer strata beside size and outcome, when dealing sites
_SPLIT_FILE = re.compile(r"^splits_(\d+)\.csv$")
Codes = NDArray[np.int64]
Severity = Literal["error", "warning"]


def make_splits(
    endpoint: Endpoint, clinical: pd.DataFrame, evaluation: EvaluationConfig
) -> tuple[pd.DataFrame, list[Problem]]:
    """Draw the folds of every repeat.

    Folds are balanced in size and in strata: the class, or the event by tertile of time. With
    `preserve_sites` and a ``site`` column all patients of a site are in the same test fold
    (Howard et al., Nat Commun 2021), patients of unknown site counting as one site. When there
    are fewer sites than folds, folds are drawn on patients, with a warning.

    Returns
    -------
    DataFrame
        Columns repeat, fold (int64), patient_id, role (``train`` or ``test``).
    list of Problem
        Warnings.

    Raises
    ------
    CohortError
        When there are fewer patients than folds.
    """
    patients = endpoint.table.index
    if len(patients) < evaluation.folds:
        raise CohortError(
            [
                Problem(
                    "evaluation.folds",
                    f"{len(patients)} patients cannot make {evaluation.folds} folds",
                    "lower evaluation.folds",
                )
            ]
        )
    sites, problems = _sites(endpoint, clinical, evaluation)
    drawn: list[pd.DataFrame] = []
    for repeat in range(evaluation.repeats):
        generator = np.random.default_rng([evaluation.seed, repeat])
        fold = _draw(endpoint, sites, evaluation.folds, generator)
        drawn.extend(_roles(repeat, number, patients, fold) for number in range(evaluation.folds))
    return pd.concat(drawn, ignore_index=True), problems


def inner_split(
    patients: Sequence[str],
    endpoint: Endpoint,
    folds: int,
    seed: int,
    sites: "pd.Series[str] | None" = None,
) -> Iterator[tuple[list[str], list[str]]]:
    """Split training patients again, for tuning and early stopping.

    Parameters
    ----------
    patients
        Training patients of one outer fold.
    sites
        Site by patient_id. When given, and there are at least `folds` sites among `patients`,
        inner folds preserve sites too.

    Yields
    ------
    tuple of list of str
        Inner training and validation patients, `folds` times.
    """
    chosen = replace(endpoint, table=endpoint.table.loc[sorted(patients)])
    index = chosen.table.index
    groups = None
    if sites is not None:
        codes = pd.factorize(sites.reindex(index).fillna(UNKNOWN_SITE))[0].astype(np.int64)
        groups = codes if codes.max() + 1 >= folds else None
    fold = _draw(chosen, groups, folds, np.random.default_rng(seed))
    for number in range(folds):
        yield list(index[fold != number]), list(index[fold == number])


def read_splits(folder: Path, endpoint: Endpoint) -> tuple[pd.DataFrame, list[Problem]]:
    """Read given folds: files ``splits_<k>.csv`` whose columns train and val hold patient ids.

    ``val`` is the test set. Patients without the endpoint are left out. When the test sets of
    the files overlap (Monte-Carlo folds), every file is a repeat of one fold.

    Returns
    -------
    DataFrame
        As from `make_splits`.
    list of Problem
        Errors: a patient on both sides of a fold, a side without patients. Warnings: patients
        left out, patients in no test set.

    Raises
    ------
    CohortError
        When the folder or its files are missing or unreadable.
    """
    files = sorted(
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _SPLIT_FILE.match(path.name))
    )
    if not files:
        raise CohortError(
            [Problem(str(folder), "no files splits_<k>.csv", "check evaluation.splits")]
        )
    problems: list[Problem] = []
    unknown: set[str] = set()
    folds = []
    for number, (_, path) in enumerate(files):
        roles, strangers, found = _read_fold(path, endpoint)
        unknown |= strangers
        problems += found
        folds.append(roles.assign(repeat=0, fold=number))
    splits = pd.concat(folds, ignore_index=True)[["repeat", "fold", "patient_id", "role"]]
    test = splits.loc[splits["role"] == "test", "patient_id"]
    if test.duplicated().any():
        splits = splits.assign(repeat=splits["fold"], fold=0)
    absent = endpoint.table.index.difference(pd.Index(test))
    notes = (
        (unknown, "patients of the folds have no usable endpoint and are left out"),
        (absent, "patients have the endpoint but are in no test set"),
    )
    problems += [
        Problem(str(folder), f"{len(who)} {what}: {listing(sorted(who))}", severity="warning")
        for who, what in notes
        if len(who)
    ]
    return splits, problems


def check_splits(
    splits: pd.DataFrame, clinical: pd.DataFrame, endpoint: Endpoint | None = None
) -> list[Problem]:
    """What is wrong with folds.

    Errors: a patient on both sides of a fold. Warnings: a site on both sides, test folds of very
    different size, and, where `endpoint` is given, a side without events or without a class.
    """
    located = splits.assign(site=splits["patient_id"].map(clinical.get("site", {})))
    problems = [
        Problem(f"repeat {repeat}, fold {fold}", text, severity=severity)
        for (repeat, fold), rows in located.groupby(["repeat", "fold"])
        for severity, text in _fold_defects(rows, endpoint)
    ]
    sizes = splits[splits["role"] == "test"].groupby(["repeat", "fold"]).size()
    if sizes.max() > 2 * sizes.min():
        problems.append(
            Problem(
                "folds",
                f"test folds hold {sizes.min()} to {sizes.max()} patients",
                "a large site cannot be divided: fewer folds, or preserve_sites: false",
                "warning",
            )
        )
    return problems


def _fold_defects(rows: pd.DataFrame, endpoint: Endpoint | None) -> Iterator[tuple[Severity, str]]:
    severities: dict[str, Severity] = {"patient_id": "error", "site": "warning"}
    for column, severity in severities.items():
        sides = rows.groupby(column)["role"].nunique()
        both = sides.index[sides > 1]
        if len(both):
            yield severity, f"{column} in both train and test: {listing(both)}"
    if endpoint is None:
        return
    outcomes = rows.join(endpoint.table, on="patient_id")
    for role, side in outcomes.groupby("role"):
        if endpoint.kind == "survival":
            if not side["event"].sum():
                yield "warning", f"no events in {role}"
        else:
            found = set(side["label"].dropna().astype(int))
            absent = [name for code, name in enumerate(endpoint.classes) if code not in found]
            if absent:
                yield "warning", f"no patients of {listing(absent)} in {role}"


def _sites(
    endpoint: Endpoint, clinical: pd.DataFrame, evaluation: EvaluationConfig
) -> tuple[Codes | None, list[Problem]]:
    """Site of each patient as a number, or None when folds are drawn on patients."""
    if not evaluation.preserve_sites or "site" not in clinical:
        return None, []
    sites = clinical["site"].reindex(endpoint.table.index)
    codes, names = pd.factorize(sites.fillna(UNKNOWN_SITE))
    if len(names) < evaluation.folds:
        what = f"{len(names)} sites cannot make {evaluation.folds} site-preserving folds"
        fix = "folds are drawn on patients; lower evaluation.folds to preserve sites"
        return None, [Problem(PRESERVE_SITES, what, fix, "warning")]
    problems = []
    if sites.isna().any():
        what = f"{int(sites.isna().sum())} patients have no site; they count as one site"
        problems.append(Problem("clinical table", what, severity="warning"))
    return codes.astype(np.int64), problems


def _strata(endpoint: Endpoint) -> tuple[Codes, Codes]:
    """Outcome of each patient, class or event, and the finer event by tertile of time."""
    if endpoint.kind == "classification":
        labels = endpoint.table["label"].to_numpy(np.int64)
        return labels, labels
    event = endpoint.table["event"].to_numpy(np.int64)
    place = endpoint.table["time"].rank(pct=True).to_numpy()
    return event, event * 3 + np.ceil(place * 3).astype(np.int64) - 1


def _draw(
    endpoint: Endpoint, sites: Codes | None, folds: int, generator: np.random.Generator
) -> Codes:
    """Test fold of every patient."""
    outcome, strata = _strata(endpoint)
    if sites is None:
        fold = np.empty(len(strata), np.int64)
        shuffled = np.lexsort((generator.random(len(strata)), strata))
        # Dealing the strata out one after the other keeps sizes within one of each other.
        fold[shuffled] = np.arange(len(strata)) % folds
        return fold
    traits = np.column_stack([np.ones(len(sites)), _one_hot(outcome), _FINE * _one_hot(strata)])
    load = np.zeros((sites.max() + 1, traits.shape[1]))
    np.add.at(load, sites, traits)
    drawn = [_deal_sites(load, folds, generator) for _ in range(_RESTARTS)]
    return min(drawn, key=lambda pair: pair[0])[1][sites]


def _one_hot(codes: Codes) -> NDArray[np.float64]:
    return (codes[:, None] == np.unique(codes)).astype(np.float64)


def _deal_sites(
    load: NDArray[np.float64], folds: int, generator: np.random.Generator
) -> tuple[float, Codes]:
    """Deal sites to folds, roughly large ones first, each where the imbalance then is least.

    A random order and few restarts rather than an optimum, on purpose: the best partition is the
    same for every seed, and repeats would then repeat nothing.

    Parameters
    ----------
    load
        What each site adds to its fold, shape [sites, traits]; the first trait is its size.

    Returns
    -------
    tuple
        Imbalance (chi-square of all traits against equal folds) and fold of each site.
    """
    target = load.sum(axis=0) / folds
    held = np.zeros((folds, load.shape[1]))
    fold = np.empty(len(load), np.int64)
    order = np.argsort(-load[:, 0] * generator.lognormal(size=len(load)))
    for site in order:
        # Least for a fold that is still empty, so that none stays so.
        change = ((2 * held + load[site]) * load[site] / target).sum(axis=1)
        fold[site] = generator.choice(np.flatnonzero(change <= change.min() + 1e-12))
        held[fold[site]] += load[site]
    return float(((held - target) ** 2 / target).sum()), fold


def _roles(repeat: int, number: int, patients: pd.Index, fold: Codes) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repeat": repeat,
            "fold": number,
            "patient_id": patients.to_numpy(),
            "role": np.where(fold == number, "test", "train"),
        }
    )


def _read_fold(path: Path, endpoint: Endpoint) -> tuple[pd.DataFrame, set[str], list[Problem]]:
    """Roles of one file, its patients without endpoint, and what is wrong with it."""
    table = read_table(path, text=("train", "val"))
    absent = [column for column in ("train", "val") if column not in table]
    if absent:
        what, fix = f"no column {listing(absent)}", "columns train and val hold patient ids"
        raise CohortError([Problem(str(path), what, fix)])
    sides = {
        role: set(table[column].dropna().str.strip())
        for role, column in (("train", "train"), ("test", "val"))
    }
    problems = []
    if both := sides["train"] & sides["test"]:
        what = f"{len(both)} patients in both train and val: {listing(sorted(both))}"
        problems.append(Problem(str(path), what, "a patient is on one side of a fold"))
    known = set(endpoint.table.index)
    for role, side in sides.items():
        if not side & known:
            fix = "ids must be those of the clinical table"
            problems.append(Problem(str(path), f"no patient of {role} has the endpoint", fix))
    rows = [(p, role) for role, side in sides.items() for p in sorted(side & known)]
    return (
        pd.DataFrame(rows, columns=["patient_id", "role"]),
        (sides["train"] | sides["test"]) - known,
        problems,
    )

"""Omics tables of a cohort: one row a patient, one column a feature of a modality."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mm_assets.cohort.config import OmicsConfig
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.tables import clean_text, listing, non_numeric, read_table, table_columns
from mm_assets.omics.cbioportal import read_study

SUFFIXES = {"_rnaseq": "expression", "_cnv": "copy_number", "_mut": "mutation"}
_MOST_CELLS = 20
_TELLING_VALUES = 10  # different expression values of a patient that no second person shares


def read_omics(config: OmicsConfig) -> tuple[pd.DataFrame, list[Problem]]:
    """Read expression, copy number and mutation, as far as the source has them.

    Values are taken as they are: nothing is scaled, filled or filtered, for that has to be
    fitted on training patients. Only columns with one value for all patients are dropped.

    Returns
    -------
    DataFrame
        Indexed by patient_id (str, unique, sorted); float32 columns ``<modality>:<gene>`` with
        modality ``expression``, ``copy_number`` or ``mutation``; NaN where not measured. Patients
        of whom nothing was measured are not in it.
    list of Problem
        Errors: cells that are no finite number, rows of one patient that disagree, two patients
        with the same expression throughout, no column that varies. Warnings: constant columns,
        several samples of a patient.

    Raises
    ------
    CohortError
        When there is no table to speak of, or a gene has two columns.
    """
    path = Path(config.path)
    if config.kind == "wide":
        table, problems = _read_wide(path, config.patient_id)
    else:
        table, problems = read_study(path)
    table = table.dropna(how="all")
    varying = table.loc[:, table.min() < table.max()]
    constant = table.columns.difference(varying.columns)
    if len(constant):
        what = f"{len(constant)} columns have one value for all patients: {listing(constant)}"
        problems.append(Problem(str(path), what, "they are dropped", "warning"))
    if varying.empty:
        problems.append(Problem(str(path), "no column differs between patients", "check the file"))
    problems += _twins(varying, path)
    return varying.sort_index(), problems


def _twins(table: pd.DataFrame, path: Path) -> Iterator[Problem]:
    """Patients who share every expression value: one person, who would be in train and test.

    Copy number and mutations are too coarse to tell people apart.
    """
    expression = table.loc[:, table.columns.str.startswith("expression:")]
    known = expression[expression.nunique(axis=1) >= _TELLING_VALUES]
    rows = pd.Series([row.tobytes() for row in known.to_numpy()], known.index, dtype=object)
    for _, same in rows[rows.duplicated(keep=False)].groupby(rows):
        what = f"patients with the same expression of every gene: {listing(sorted(same.index))}"
        yield Problem(str(path), what, "one person is one patient: keep one id, in all tables")


def _read_wide(path: Path, patient_column: str) -> tuple[pd.DataFrame, list[Problem]]:
    """PORPOISE's table: a row a slide, columns ``<gene>_rnaseq``, ``_cnv`` and ``_mut``."""
    names = {column: _feature_name(column) for column in table_columns(path)}
    missing = [] if patient_column in names else [f"patient column {patient_column!r}"]
    if not any(names.values()):
        missing.append(f"omics column (names end in {', '.join(SUFFIXES)})")
    if missing:
        fix = "set omics.patient_id" if patient_column not in names else "check omics.path"
        raise CohortError([Problem(str(path), f"has no {what}", fix) for what in missing])
    raw = read_table(
        path,
        wanted=lambda name: name == patient_column or bool(names[name]),
        text=(patient_column,),
    )
    patients = clean_text(raw[patient_column])
    problems = [
        Problem(f"{path}, line {line}", "no patient id", "fill it in or delete the row")
        for line in patients.index[patients.isna()]
    ]
    values, cells = _numbers(raw.drop(columns=patient_column), path)
    values = values.rename(columns=names)
    rows = values[patients.notna()].groupby(patients.dropna().astype(str).rename("patient_id"))
    differing = (rows.max() > rows.min()).any(axis=1)
    if differing.any():
        who = listing(differing.index[differing])
        what = f"rows of one patient have different omics: {who}"
        problems.append(Problem(str(path), what, "one set of values a patient"))
    return rows.first(), problems + cells


def _feature_name(column: str) -> str:
    """``<modality>:<gene>`` of a wide table's column, empty for other columns."""
    for suffix, modality in SUFFIXES.items():
        if column.endswith(suffix) and column != suffix:
            return f"{modality}:{column.removesuffix(suffix)}"
    return ""


def _numbers(raw: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """All columns as float32; cells that are no finite number become NaN and are reported."""
    wrong = []
    for column in raw.columns[[not pd.api.types.is_numeric_dtype(t) for t in raw.dtypes]]:
        cells = non_numeric(raw[column])
        wrong += [(line, column, f"{cell!r} is not a number") for line, cell in cells.items()]
        raw[column] = pd.to_numeric(raw[column], errors="coerce")
    values = pd.DataFrame(raw.to_numpy(np.float32), index=raw.index, columns=raw.columns)
    for row, position in np.argwhere(np.isinf(values.to_numpy())):
        wrong.append((values.index[row], values.columns[position], "is infinite"))
    problems = [
        Problem(f"{path}, line {line}, column {column}", what, "a number, or empty if not measured")
        for line, column, what in wrong[:_MOST_CELLS]
    ]
    if len(wrong) > _MOST_CELLS:
        columns = list(dict.fromkeys(column for _, column, _ in wrong))
        what = f"{len(wrong)} cells are not finite numbers, in columns {listing(columns)}"
        problems.append(Problem(str(path), what, "numbers, or empty if not measured"))
    return values, problems

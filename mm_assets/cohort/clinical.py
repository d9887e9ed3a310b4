"""The clinical table, one row a patient, and the endpoints defined on it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from mm_assets.cohort.config import ClassificationTask, ClinicalConfig, SurvivalTask
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.tables import clean_text, listing, read_table, table_columns

OMICS_SUFFIXES = ("_rnaseq", "_cnv", "_mut")
DEFAULT_COVARIATES = ("age", "sex")
PATIENT_FILE, SAMPLE_FILE = "data_clinical_patient.txt", "data_clinical_sample.txt"
# cBioPortal's own attribute names, found where the YAML maps nothing else.
_CBIOPORTAL_COLUMNS = {"patient_id": "PATIENT_ID", "age": "AGE", "sex": "SEX"}
_STATUS = {"LIVING": 0, "ALIVE": 0, "CENSORED": 0, "DECEASED": 1, "DEAD": 1}
# Tissue source site: the second field of a TCGA barcode.
_TCGA_BARCODE = re.compile(r"^TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}$")


@dataclass(frozen=True)
class Endpoint:
    """What a task predicts, for the patients who have it.

    Attributes
    ----------
    kind
        ``classification`` or ``survival``.
    classes
        Class names; empty for survival.
    table
        Indexed by patient_id, sorted. Classification: ``label`` (int64, index into `classes`).
        Survival: ``time`` (float64, months above 0) and ``event`` (int64, 1 = observed).
    excluded
        Columns patient_id and reason: patients of the clinical table without a usable endpoint.
    """

    kind: Literal["classification", "survival"]
    classes: tuple[str, ...]
    table: pd.DataFrame
    excluded: pd.DataFrame


def read_clinical(
    config: ClinicalConfig, tasks: Sequence[ClassificationTask | SurvivalTask] = ()
) -> tuple[pd.DataFrame, list[Problem]]:
    """Read the clinical table: a CSV or zip, or the clinical files of a cBioPortal study folder.

    Omics columns of a wide table (``*_rnaseq``, ``*_cnv``, ``*_mut``) are left unread. Rows of
    one patient are merged: where they disagree about a covariate, the site or an endpoint of
    `tasks`, that is an error; other columns in which they disagree describe slides or samples
    and are dropped. Without a `site` column, TCGA patients get the site of their barcode.

    Returns
    -------
    DataFrame
        Indexed by patient_id (str, unique, sorted); ``site`` is str where there is one.
    list of Problem
        Errors and warnings.

    Raises
    ------
    CohortError
        When there is no table to speak of: no file, not readable, no patient column.
    """
    path = Path(config.table)
    if path.is_dir():
        raw, columns = _read_study(path, config)
    else:
        columns = {"patient_id": "patient_id", "site": "site"} | config.columns
        raw = read_table(
            path,
            wanted=lambda name: not name.endswith(OMICS_SUFFIXES),
            text=(columns["patient_id"], columns["site"]),
        )
    table = _renamed(raw, columns, config, path)
    missing = table.index[table["patient_id"].isna()]
    problems = [
        Problem(f"{path}, line {line}", "no patient id", "fill it in or delete the row")
        for line in missing
    ]
    essential = {"site", *(config.covariates or DEFAULT_COVARIATES)}
    essential |= {column for task in tasks for column in endpoint_columns(task)}
    table, conflicts = _one_row_a_patient(table.drop(missing), essential, path)
    if "site" not in table and len(table):
        codes = table.index.to_series().str.extract(_TCGA_BARCODE, expand=False)
        table = table.assign(site=codes) if codes.notna().all() else table
    return table, problems + conflicts


def endpoint_columns(task: ClassificationTask | SurvivalTask) -> tuple[str, ...]:
    """Columns of the clinical table that define the task's endpoint."""
    if isinstance(task, ClassificationTask):
        return (task.column,)
    return (task.time, task.event or task.censored or "")


def make_endpoint(clinical: pd.DataFrame, task: ClassificationTask | SurvivalTask) -> Endpoint:
    """The task's endpoint, with the patients it cannot use and why.

    Raises
    ------
    CohortError
        When a column of the task is not in the clinical table.
    """
    absent = [column for column in endpoint_columns(task) if column not in clinical]
    if absent:
        raise CohortError(
            [
                Problem(
                    f"task {task.name}",
                    f"the clinical table has no column {column!r}",
                    f"it has: {', '.join(map(str, clinical.columns))}",
                )
                for column in absent
            ]
        )
    if isinstance(task, ClassificationTask):
        table, reasons = _labels(clinical, task)
        kind: Literal["classification", "survival"] = "classification"
        classes = tuple(task.classes)
    else:
        table, reasons = _times(clinical, task)
        kind, classes = "survival", ()
    excluded = pd.DataFrame(
        {"patient_id": reasons.index.astype(str), "reason": reasons.to_numpy(dtype=str)}
    ).astype(str)
    return Endpoint(kind, classes, table, excluded)


def covariate_columns(
    clinical: pd.DataFrame, config: ClinicalConfig, task: ClassificationTask | SurvivalTask
) -> list[str]:
    """Clinical columns that models of `task` may use: never those of its endpoint."""
    chosen = config.covariates if config.covariates is not None else DEFAULT_COVARIATES
    barred = set(endpoint_columns(task))
    return [column for column in chosen if column in clinical and column not in barred]


def _read_study(folder: Path, config: ClinicalConfig) -> tuple[pd.DataFrame, dict[str, str]]:
    """Patient table of a cBioPortal study, joined with its sample table if there is one."""
    text = ("PATIENT_ID", "SAMPLE_ID", config.columns.get("site", "site"))
    raw = read_table(folder / PATIENT_FILE, text=text)
    samples = folder / SAMPLE_FILE
    if samples.is_file() and "PATIENT_ID" in raw and "PATIENT_ID" in table_columns(samples):
        per_sample = read_table(samples, text=text)
        fresh = per_sample.columns.difference(raw.columns.drop("PATIENT_ID"))
        lines = raw.index
        raw = raw.assign(line=lines).merge(per_sample[fresh], on="PATIENT_ID", how="left")
        raw = raw.set_index("line")
    for column in raw.columns[raw.columns.str.endswith("_STATUS")]:
        raw[column] = _events_of_status(raw[column])
    known = {ours: theirs for ours, theirs in _CBIOPORTAL_COLUMNS.items() if theirs in raw}
    return raw, {"patient_id": "PATIENT_ID", "site": "site"} | known | config.columns


def _events_of_status(status: pd.Series) -> pd.Series:
    """0/1 for a column of ``1:DECEASED`` or ``DECEASED``; any other column unchanged."""
    texts = status.astype("str").str.strip().str.upper()
    numbers = texts.str.extract(r"^([01]):", expand=False).astype(float)
    numbers = numbers.fillna(texts.map(_STATUS))
    return status if (numbers.isna() & status.notna()).any() else numbers


def _renamed(
    raw: pd.DataFrame, columns: dict[str, str], config: ClinicalConfig, path: Path
) -> pd.DataFrame:
    """Columns under our names; a mapped column takes the place of one that has its name."""
    absent = {
        ours: theirs
        for ours, theirs in columns.items()
        if theirs not in raw and (ours in config.columns or ours == "patient_id")
    }
    if absent:
        raise CohortError(
            [
                Problem(
                    str(path),
                    f"has no column {theirs!r} for {ours!r}",
                    f"map it under clinical.columns; the table has: {listing(list(raw.columns))}",
                )
                for ours, theirs in absent.items()
            ]
        )
    mapped = {ours: theirs for ours, theirs in columns.items() if theirs in raw}
    renamed = raw.drop(columns=[*{*mapped.values(), *(set(mapped) & set(raw.columns))}])
    named = raw[list(mapped.values())].set_axis(list(mapped), axis=1)
    table = pd.concat([named, renamed], axis=1)
    for column in ("patient_id", "site"):
        if column in table:
            table[column] = clean_text(table[column])
    return table


def _one_row_a_patient(
    table: pd.DataFrame, essential: set[str], path: Path
) -> tuple[pd.DataFrame, list[Problem]]:
    """Merge the rows of each patient; values may be missing in some of them."""
    rows = table.groupby("patient_id")
    merged = rows.first()
    differing = rows.nunique() > 1
    problems: list[Problem] = []
    dropped: list[str] = []
    for column in differing.columns[differing.any()]:
        patients = differing.index[differing[column]]
        if column in essential:
            problems.append(
                Problem(
                    str(path),
                    f"rows of one patient disagree about {column!r}: {listing(patients)}",
                    "one value a patient",
                )
            )
        else:
            dropped.append(column)
    noted = [column for column in dropped if table[column].duplicated().any()]
    if noted:
        problems.append(
            Problem(
                str(path),
                f"columns dropped, for rows of one patient disagree: {listing(noted)}",
                "not needed unless a task or covariate should use them",
                "warning",
            )
        )
    merged.index = merged.index.astype(str)
    return merged.drop(columns=dropped).sort_index(), problems


def _labels(
    clinical: pd.DataFrame, task: ClassificationTask
) -> tuple[pd.DataFrame, "pd.Series[str]"]:
    names = clinical[task.column].map(_class_name, na_action="ignore")
    codes = names.map({name: code for code, name in enumerate(task.classes)})
    reasons = "class " + names[codes.isna()].astype("str") + " is not one of the task's"
    reasons[names[codes.isna()].isna()] = f"no {task.column}"
    usable = codes.dropna()
    return usable.astype("int64").to_frame("label"), reasons


def _class_name(value: object) -> str:
    """Class as text; 2.0, which pandas makes of 2 beside missing values, is ``2``."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _times(clinical: pd.DataFrame, task: SurvivalTask) -> tuple[pd.DataFrame, "pd.Series[str]"]:
    column = task.event or task.censored or ""
    time = pd.to_numeric(clinical[task.time], errors="coerce").astype(float)
    flag = pd.to_numeric(clinical[column], errors="coerce").astype(float)
    reasons = pd.Series("", index=clinical.index, dtype=object)
    # Later assignments win: the most basic defect is the one named.
    reasons[~flag.isin([0, 1])] = f"{column} is neither 0 nor 1"
    reasons[clinical[column].isna()] = f"no {column}"
    reasons[np.isinf(time)] = f"{task.time} is infinite"
    reasons[time <= 0] = f"{task.time} is not above 0"
    reasons[time.isna()] = f"{task.time} is not a number"
    reasons[clinical[task.time].isna()] = f"no {task.time}"
    usable = reasons.index[reasons == ""]
    event = flag if task.event else 1 - flag
    table = pd.DataFrame({"time": time[usable], "event": event[usable].astype("int64")})
    return table, reasons[reasons != ""]

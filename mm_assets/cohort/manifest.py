"""The manifest: which slide files there are and whose they are."""

import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mm_assets.cohort.config import SLIDE_ID_PATTERN, SlidesConfig
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.sources import absolute, is_remote, leads_outside, list_files, list_slides
from mm_assets.cohort.tables import clean_text, listing, read_table

COLUMNS = ["slide_id", "patient_id", "path", "site", "mpp"]
MPP_RANGE = (0.02, 100.0)
_REQUIRED = COLUMNS[:3]


def read_manifest(slides: SlidesConfig) -> tuple[pd.DataFrame, list[Problem]]:
    """List the cohort's slides, from its manifest or by looking under its root.

    Returns
    -------
    DataFrame
        Columns slide_id, patient_id, path (absolute or ``s3://``), site (str or missing), mpp
        (float64, micrometres per pixel, NaN where not given); sorted by slide_id. Rows with
        problems are not in it.
    list of Problem
        Errors: one for each row that cannot be right. Warnings: rows whose file has not arrived;
        without a manifest, files whose name makes no slide or patient id.

    Raises
    ------
    CohortError
        When the root or the manifest is missing or unreadable.
    """
    try:
        if slides.manifest:
            table, problems = _read_rows(slides, Path(slides.manifest))
        else:
            table, problems = _scan(slides)
    except OSError as error:
        what = f"slides cannot be listed: {error}"
        raise CohortError([Problem(slides.root, what, "check slides.root")]) from error
    table = table.reindex(columns=COLUMNS).sort_values("slide_id", ignore_index=True)
    return table.astype({"mpp": float, **dict.fromkeys(COLUMNS[:4], "str")}), problems


def _read_rows(slides: SlidesConfig, manifest: Path) -> tuple[pd.DataFrame, list[Problem]]:
    table = read_table(manifest, wanted=COLUMNS.__contains__, text=COLUMNS)
    absent = [column for column in _REQUIRED if column not in table]
    if absent:
        what = f"has no column {listing(absent)}"
        raise CohortError([Problem(str(manifest), what, f"it needs {', '.join(_REQUIRED)}")])
    for column in table:
        table[column] = clean_text(table[column])
    wrong = list(_defects(table, slides.root))
    problems = [
        Problem(f"{manifest}, line {line}", what, fix)
        for line, what, fix in sorted(wrong, key=lambda defect: int(str(defect[0])))
    ]
    table = table.drop(index=list({line for line, _, _ in wrong}))
    table = table.assign(
        path=[absolute(slides.root, path) for path in table["path"]],
        mpp=pd.to_numeric(table["mpp"]) if "mpp" in table else np.nan,
    )
    arrived = table["path"].map(_file_test(slides.root)).astype(bool)
    problems += [
        Problem(
            f"{manifest}, line {row.Index}", f"{row.slide_id} waits for {row.path}", "", "warning"
        )
        for row in table[~arrived].itertuples()
    ]
    return table[arrived], problems


def _defects(table: pd.DataFrame, root: str) -> Iterator[tuple[Hashable, str, str]]:
    """Line, defect and remedy of every row that cannot be right."""
    for column in _REQUIRED:
        for line in table.index[table[column].isna()]:
            yield line, f"no {column}", "fill it in or delete the row"
    for line, slide in table["slide_id"].dropna().items():
        if not SLIDE_ID_PATTERN.match(slide):
            yield line, f"slide_id {slide!r}", "use letters, digits, '.', '_' and '-' only"
    for column, fix in (
        ("slide_id", "slide ids must differ"),
        ("path", "one row a file"),
    ):
        given = table[column].dropna()
        for value, rows in given[given.duplicated(keep=False)].groupby(given):
            lines = ", ".join(map(str, rows.index))
            for line in rows.index:
                yield line, f"{column} {value!r} is on lines {lines}", fix
    for line, path in table["path"].dropna().items():
        if leads_outside(root, path):
            yield line, f"path {path!r} leads outside {root}", "move the slide under slides.root"
    if "mpp" in table:
        low, high = MPP_RANGE
        for line, text in table["mpp"].dropna().items():
            number = pd.to_numeric(text, errors="coerce")
            if not low <= number <= high:
                yield line, f"mpp {text!r} is no resolution", "micrometres per pixel, such as 0.25"


def _file_test(root: str) -> Callable[[str], bool]:
    """Tells whether a file exists; one listing answers for a whole S3 prefix."""
    if is_remote(root):
        return {file.path for file in list_files(root)}.__contains__
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    return lambda path: Path(path).is_file()


def _scan(slides: SlidesConfig) -> tuple[pd.DataFrame, list[Problem]]:
    pattern = re.compile(slides.patient_pattern)
    rows, problems = [], []
    for file in list_slides(slides.root):
        slide = PurePosixPath(file.path).stem
        match = pattern.search(slide)
        patient = next((group for group in match.groups() if group), "") if match else ""
        if leads_outside(slides.root, file.path):
            what, fix = f"is a link out of {slides.root}", "move the slide under slides.root"
            problems.append(Problem(file.path, what, fix))
        elif not SLIDE_ID_PATTERN.match(slide):
            fix = "use letters, digits, '.', '_' and '-' only"
            problems.append(Problem(file.path, "left out for its name", fix, "warning"))
        elif not patient:
            what, fix = "left out: no patient id in its name", "see slides.patient_pattern"
            problems.append(Problem(file.path, what, fix, "warning"))
        else:
            rows.append({"slide_id": slide, "patient_id": patient, "path": file.path})
    table = pd.DataFrame(rows, columns=_REQUIRED)
    repeated = table["slide_id"].duplicated(keep=False)
    problems += [
        Problem(str(row.path), f"slide id {row.slide_id!r} is there twice", "rename one of them")
        for row in table[repeated].itertuples()
    ]
    return table[~repeated], problems

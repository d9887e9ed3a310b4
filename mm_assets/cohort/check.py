"""Everything that is wrong with a cohort's inputs, found before any work."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pandas as pd

from mm_assets.cohort.clinical import Endpoint, covariate_columns, make_endpoint, read_clinical
from mm_assets.cohort.config import (
    ClassificationTask,
    CohortConfig,
    OmicsConfig,
    SurvivalTask,
    is_path,
)
from mm_assets.cohort.folders import mm_home
from mm_assets.cohort.manifest import read_manifest
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.cohort.sources import is_file, list_files, stamps
from mm_assets.cohort.splits import PRESERVE_SITES, check_splits, make_splits, read_splits
from mm_assets.cohort.tables import listing
from mm_assets.encoders.catalogue import weights_file
from mm_assets.files import publish

Result = TypeVar("Result")
# Findings about omics are remembered for as long as neither the files nor this number change.
_FINDINGS_VERSION = 3
SYNTHETIC_ONLY = "MM_SYNTHETIC_ONLY"


def check_cohort(config: CohortConfig) -> list[Problem]:
    """Read every input of a cohort and list what is wrong; nothing is computed or started.

    Parameters
    ----------
    config
        With absolute paths, as from `load_config`.

    Returns
    -------
    list of Problem
        Errors first.
    """
    problems: list[Problem] = []
    clinical = _collect(problems, lambda: read_clinical(config.clinical, config.tasks))
    if clinical is not None:
        problems += _covariate_problems(config, clinical)
        for task in config.tasks:
            problems += _task_problems(config, clinical, task)
    if config.slides:
        problems += _slide_problems(config, clinical)
    if config.omics:
        problems += _omics_problems(config.omics, clinical)
    problems += _file_problems(config)
    problems += _foreign_problems(config)
    return sorted(problems, key=lambda problem: problem.severity)


def _foreign_problems(config: CohortConfig) -> Iterator[Problem]:
    """Real data where only synthetic data may be: a test account, say."""
    if os.environ.get(SYNTHETIC_ONLY):
        from mm_assets.synthetic.recognition import foreign_inputs

        for where, what in foreign_inputs(config).items():
            fix = f"{SYNTHETIC_ONLY} is set: only what `mm demo create` wrote may be used here"
            yield Problem(where, what, fix)


def _collect(
    problems: list[Problem], read: Callable[[], tuple[Result, list[Problem]]]
) -> Result | None:
    """Result of `read`; its problems are added, and so are those that leave no result."""
    try:
        result, found = read()
    except CohortError as error:
        problems += error.problems
        return None
    problems += found
    return result


def _covariate_problems(config: CohortConfig, clinical: pd.DataFrame) -> Iterator[Problem]:
    for column in config.clinical.covariates or ():
        if column not in clinical:
            what = f"the clinical table has no column {column!r}"
            yield Problem("clinical.covariates", what, f"it has: {', '.join(clinical.columns)}")


def _task_problems(
    config: CohortConfig, clinical: pd.DataFrame, task: ClassificationTask | SurvivalTask
) -> list[Problem]:
    problems: list[Problem] = []
    endpoint = _collect(problems, lambda: (make_endpoint(clinical, task), []))
    if endpoint is None:
        return problems
    where = f"task {task.name}"
    for reason, rows in endpoint.excluded.groupby("reason"):
        what = f"left out, {reason}: {len(rows)} of {len(clinical)} patients"
        problems.append(Problem(where, f"{what}, {listing(rows['patient_id'])}", "", "warning"))
    if lacks := _lacks(endpoint):
        given = clinical[task.column if isinstance(task, ClassificationTask) else task.time]
        values = listing([repr(value) for value in given.dropna().unique()])
        return [*problems, Problem(where, lacks, f"the column holds: {values}")]
    problems += _telltale_covariates(config, clinical, task, endpoint)
    problems += _fold_problems(config, clinical, endpoint, where)
    return problems


def _lacks(endpoint: Endpoint) -> str:
    """What an endpoint must have and does not have, empty when it is complete."""
    if endpoint.kind == "survival":
        return "" if endpoint.table["event"].any() else "no patient has an event"
    present = set(endpoint.table["label"])
    absent = [name for code, name in enumerate(endpoint.classes) if code not in present]
    return f"no patient is of class {listing(absent)}" if absent else ""


def _telltale_covariates(
    config: CohortConfig,
    clinical: pd.DataFrame,
    task: ClassificationTask | SurvivalTask,
    endpoint: Endpoint,
) -> Iterator[Problem]:
    """Covariates that give the outcome away: by few values between them, or by their order."""
    from mm_assets.evaluation.telltale import telltale_features

    columns = covariate_columns(clinical, config.clinical, task)
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(clinical[name])]
    told = telltale_features(clinical, endpoint, numeric)
    if endpoint.kind == "classification":
        told += [name for name in columns if _determines(clinical[name], endpoint.table["label"])]
    for column in dict.fromkeys(told):
        what = f"covariate {column!r} determines the outcome of the patients"
        fix = "leave it out of clinical.covariates, or the results mean nothing"
        yield Problem(f"task {task.name}", what, fix, "warning")


def _determines(covariate: pd.Series, labels: "pd.Series[int]") -> bool:
    """Whether a covariate of few values has one class of patients a value."""
    values = covariate[labels.index].dropna()
    groups = labels[values.index].groupby(values.to_numpy())
    return bool(1 < groups.ngroups <= len(values) / 4 and groups.nunique().max() == 1)


def _fold_problems(
    config: CohortConfig, clinical: pd.DataFrame, endpoint: Endpoint, where: str
) -> list[Problem]:
    problems: list[Problem] = []
    evaluation = config.evaluation
    given = evaluation.splits
    if given:
        splits = _collect(problems, lambda: read_splits(Path(given), endpoint))
    else:
        one = evaluation.model_copy(update={"repeats": 1})
        splits = _collect(problems, lambda: make_splits(endpoint, clinical, one))
    if splits is not None:
        # Folds that were never meant to keep sites apart, or could not be, need not be told off.
        could_not = any(problem.where == PRESERVE_SITES for problem in problems)
        meant = evaluation.preserve_sites and not given and not could_not
        preserved = clinical if meant else clinical.drop(columns="site", errors="ignore")
        problems += [
            Problem(f"{where}, {problem.where}", problem.what, problem.fix, problem.severity)
            for problem in check_splits(splits, preserved, endpoint)
        ]
    return problems


def _slide_problems(config: CohortConfig, clinical: pd.DataFrame | None) -> list[Problem]:
    problems: list[Problem] = []
    slides = config.slides
    assert slides is not None
    manifest = _collect(problems, lambda: read_manifest(slides))
    if manifest is None:
        return problems
    if manifest.empty:
        what = "no slides yet"
        problems.append(Problem(slides.manifest or slides.root, what, severity="warning"))
    if clinical is not None:
        # A slide that drops into a scanned folder before its patient's row must not stop the rest.
        strangers = manifest[~manifest["patient_id"].isin(clinical.index)]
        problems += [
            Problem(
                f"{slides.manifest or slides.root}, slide {row.slide_id}",
                f"patient {row.patient_id!r} is not in the clinical table",
                "add the patient or remove the slide",
                "error" if slides.manifest else "warning",
            )
            for row in strangers.itertuples()
        ]
    return problems


def _omics_problems(omics: OmicsConfig, clinical: pd.DataFrame | None) -> list[Problem]:
    problems: list[Problem] = []
    patients = _collect(problems, lambda: _omics_findings(omics))
    if patients is None or clinical is None:
        return problems
    without = clinical.index.difference(pd.Index(patients))
    if len(without) == len(clinical):
        what = f"no patient of the clinical table is in it, but {listing(patients)}"
        fix = f"the clinical table has {listing(clinical.index)}"
        problems.append(Problem(omics.path, what, fix))
    elif len(without):
        what = f"{len(without)} of {len(clinical)} patients have no omics: {listing(without)}"
        problems.append(Problem(omics.path, what, severity="warning"))
    return problems


def _omics_findings(omics: OmicsConfig) -> tuple[list[str], list[Problem]]:
    """Patients with omics, and the reader's problems.

    Reading takes seconds and every process that loads the cohort asks, so the answer is kept
    until a file changes.
    """
    from mm_assets.omics.readers import read_omics

    path = Path(omics.path)
    files = [file.path for file in list_files(str(path))] if path.is_dir() else [str(path)]
    identity = json.dumps([_FINDINGS_VERSION, omics.model_dump(), stamps(files)], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    kept = mm_home() / "cache" / "checks" / f"{digest}.json"
    try:
        found = json.loads(kept.read_text("utf-8"))
        return found["patients"], [Problem(**problem) for problem in found["problems"]]
    except (OSError, ValueError):
        table, problems = read_omics(omics)
    patients = table.index.tolist()
    _keep(kept, {"patients": patients, "problems": [asdict(problem) for problem in problems]})
    return patients, problems


def _keep(path: Path, findings: dict[str, object]) -> None:
    # With a read-only home the next process simply reads the tables again.
    with suppress(OSError):
        publish(path, json.dumps(findings).encode())


def _file_problems(config: CohortConfig) -> Iterator[Problem]:
    """Files named in the YAML that are read later only."""
    attainable = config.evaluation.attainable
    if attainable and not Path(attainable).is_file():
        yield Problem("evaluation.attainable", f"no such file: {attainable}", "check the path")
    for key, weights in _weights(config).items() if config.slides else ():
        if not is_path(weights):
            continue
        try:
            path = weights_file(weights)
            if not is_file(path):
                yield Problem(key, f"no such file: {path}", "check the path")
        except OSError as error:
            yield Problem(key, f"{weights} cannot be looked up: {error}", "check the address")


def _weights(config: CohortConfig) -> dict[str, str]:
    """Key in the YAML -> the weights it names."""
    weights = {"imaging.weights": config.imaging.weights} | {
        f"imaging.also.{further.name}.weights": further.weights for further in config.imaging.also
    }
    if config.hipt is not None:
        weights["hipt.tile_weights"] = config.hipt.tile_weights
        weights["hipt.region_weights"] = config.hipt.region_weights
    return weights

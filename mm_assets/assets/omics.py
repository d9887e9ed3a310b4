"""Stages of the tables: `clinical`, `omics`, and per task `splits_T`, `filtered_omics_T`."""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from mm_assets.assets.checks import (
    clinical_checks,
    omics_checks,
    splits_checks,
    telltale_check,
)
from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.cohort.clinical import endpoint_columns, make_endpoint
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.cohort.problems import refuse_errors
from mm_assets.resources.digest import file_digest
from mm_assets.resources.store import COHORT

CLINICAL, OMICS = "clinical", "omics"


def splits_name(task: Task) -> str:
    """Asset name of a task's folds."""
    return f"splits_{task.name}"


def filtered_omics_name(task: Task) -> str:
    """Asset name of a task's in-fold omics filter."""
    return f"filtered_omics_{task.name}"


def source_digests(*paths: str | None) -> dict[str, str]:
    """File name -> sha256 of each file; a folder contributes every file under it."""
    digests = {}
    for root in (Path(path) for path in paths if path):
        files = sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]
        for file in files:
            name = str(file.relative_to(root.parent))
            digests[name] = file_digest(file)
    return digests


def table_stages(config: CohortConfig) -> list[CohortStage]:
    """`clinical` and, where the cohort has it, `omics`."""
    stages = [
        CohortStage(
            outputs=(CLINICAL,),
            upstream=(),
            group="omics",
            code_version="1",
            description="The clinical table, validated and typed, one row a patient.",
            kinds=frozenset({"pandas"}),
            parameters={
                **config.clinical.model_dump(exclude={"table"}),
                "endpoints": [list(endpoint_columns(task)) for task in config.tasks],
            },
            sources=lambda w: source_digests(w.config.clinical.table),
            run=_clinical,
            checks=("patients_unique", "remarks"),
        )
    ]
    if config.omics:
        stages.append(
            CohortStage(
                outputs=(OMICS,),
                upstream=(CLINICAL,),
                group="omics",
                code_version="1",
                description="Expression, copy number and mutation, one row a patient.",
                kinds=frozenset({"pandas"}),
                compute=Compute(cpu=1, memory_gib=8),
                parameters=config.omics.model_dump(exclude={"path"}),
                sources=lambda w: source_digests(w.config.omics.path if w.config.omics else None),
                run=_omics,
                checks=("overlap", "remarks"),
            )
        )
    return stages


def task_table_stages(config: CohortConfig, task: Task) -> list[CohortStage]:
    """`splits_T` and, where the cohort has omics, `filtered_omics_T`."""
    evaluation = config.evaluation.model_dump(
        exclude={"splits", "attainable", "bootstrap", "learning_curve"}
    )
    stages = [
        CohortStage(
            outputs=(splits_name(task),),
            upstream=(CLINICAL,),
            group="omics",
            code_version="1",
            description="Patient-level folds: given ones, or stratified and site-preserving.",
            kinds=frozenset({"pandas"}),
            parameters={"task": task.model_dump(), "evaluation": evaluation},
            sources=lambda w: source_digests(w.config.evaluation.splits),
            run=lambda job: _splits(job, task),
            checks=("patients_apart", "sites_apart", "fold_sizes", "remarks"),
        )
    ]
    if config.omics:
        stages.append(
            CohortStage(
                outputs=(filtered_omics_name(task),),
                upstream=(CLINICAL, OMICS, splits_name(task)),
                group="omics",
                code_version="2",
                description="Per fold, the features that a univariate test on the training "
                "patients keeps, with statistics, winsor limits and medians.",
                kinds=frozenset({"pandas"}),
                compute=Compute(cpu=2, memory_gib=8),
                parameters={
                    "task": task.model_dump(),
                    "keep": config.evaluation.omics_features,
                },
                run=lambda job: _filtered_omics(job, task),
                checks=("no_telltale",),
            )
        )
    return stages


def _clinical(job: Job) -> Produced:
    from mm_assets.cohort.clinical import read_clinical

    config = job.workspace.config
    table, problems = read_clinical(config.clinical, config.tasks)
    refuse_errors(problems)
    return Produced(
        _write_table(job, CLINICAL, table),
        {"patients": len(table), "columns": len(table.columns)},
        clinical_checks(table, problems),
    )


def _omics(job: Job) -> Produced:
    from mm_assets.omics.readers import read_omics

    config = job.workspace.config
    assert config.omics is not None
    table, problems = read_omics(config.omics)
    refuse_errors(problems)
    modalities = table.columns.str.split(":").str[0].value_counts()
    return Produced(
        _write_table(job, OMICS, table),
        {"patients": len(table), **{str(k): int(v) for k, v in modalities.items()}},
        omics_checks(table, read_table(job, CLINICAL), problems),
    )


def _splits(job: Job, task: Task) -> Produced:
    from mm_assets.cohort.splits import make_splits, read_splits

    config = job.workspace.config
    clinical = read_table(job, CLINICAL)
    endpoint = make_endpoint(clinical, task)
    given = config.evaluation.splits
    if given:
        splits, problems = read_splits(Path(given), endpoint)
    else:
        splits, problems = make_splits(endpoint, clinical, config.evaluation)
    refuse_errors(problems)
    patients = int(splits["patient_id"].nunique())
    summary: dict[str, Any] = {
        "patients": patients,
        "excluded": len(endpoint.excluded),
        "folds": int(splits["fold"].nunique()),
        "repeats": int(splits["repeat"].nunique()),
    }
    if endpoint.kind == "survival":
        summary["events"] = int(endpoint.table["event"].sum())
    return Produced(
        _write_table(job, splits_name(task), splits),
        summary,
        splits_checks(
            splits,
            clinical,
            problems,
            preserve_sites=config.evaluation.preserve_sites and not given,
        ),
    )


def _filtered_omics(job: Job, task: Task) -> Produced:
    from mm_assets.evaluation.telltale import telltale_features
    from mm_assets.omics.filters import filter_folds

    endpoint, omics = make_endpoint(read_table(job, CLINICAL), task), read_table(job, OMICS)
    kept = filter_folds(
        omics,
        endpoint,
        read_table(job, splits_name(task)),
        job.workspace.config.evaluation.omics_features,
    )
    best = kept[kept["fold"] == -1].nsmallest(10, "rank")
    return Produced(
        _write_table(job, filtered_omics_name(task), kept),
        {
            "folds": int(kept.loc[kept["fold"] >= 0, "fold"].nunique()),
            "best_features": json.dumps(best["feature"].tolist()),
            "best": dg.MetadataValue.md(
                best[["feature", "statistic", "p_value", "q_value"]].to_markdown(index=False)
            ),
        },
        (telltale_check(telltale_features(omics, endpoint, best["feature"].tolist())),),
    )


def read_table(job: Job, asset: str) -> Any:
    """A whole-cohort table made upstream."""
    return job.workspace.store.read_table(job.ref(asset, "parquet", COHORT))


def _write_table(job: Job, asset: str, table: Any) -> dict[str, str]:
    digest = job.workspace.store.write_table(
        job.ref(asset, "parquet"), table, job.provenance[asset]
    )
    return {"parquet": digest}

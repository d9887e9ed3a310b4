"""Stages that judge and explain: `evaluation_T` and `cohort_report`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.checks import evaluation_checks
from mm_assets.assets.models import heec_name, weights_stamp
from mm_assets.assets.omics import CLINICAL, read_table, source_digests, splits_name
from mm_assets.assets.partitions import is_quarantine
from mm_assets.assets.progress import Progress
from mm_assets.assets.slides import markdown_image
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, SurvivalTask, Task
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT, ArtefactRef, ArtefactStore

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.evaluation.comparison import Evaluation
    from mm_assets.evaluation.report import TaskReport

REPORT = "cohort_report"


def evaluation_name(task: str) -> str:
    """Asset name of a task's evaluation."""
    return f"evaluation_{task}"


def main_metric(task: Task) -> str:
    """The metric a task is judged by."""
    return "c_index" if isinstance(task, SurvivalTask) else "auc"


def read_results(store: ArtefactStore, cohort: str, task: str) -> "pd.DataFrame":
    """The evaluation's table of metrics."""
    return store.read_table(_table_ref(cohort, task, "metrics"))


def _table_ref(cohort: str, task: str, table: str) -> ArtefactRef:
    return ArtefactRef(cohort, evaluation_name(task), f"{COHORT}.{table}", "parquet")


def evaluation_stage(config: CohortConfig, task: Task, models: list[str]) -> CohortStage:
    """`evaluation_T`."""
    return CohortStage(
        outputs=(evaluation_name(task.name),),
        upstream=(CLINICAL, splits_name(task), *models),
        group="reports",
        code_version="1",
        description="Out-of-fold metrics with intervals, paired comparisons, ablations, subgroups.",
        kinds=frozenset({"scikit-learn"}),
        parameters={
            "task": task.model_dump(),
            "bootstrap": config.evaluation.bootstrap,
            "seed": config.evaluation.seed,
        },
        sources=lambda c: source_digests(c.evaluation.attainable),
        run=lambda job: _evaluate(job, task, models),
        checks=("better_than_chance", "calibration"),
    )


def _evaluate(job: Job, task: Task, models: list[str]) -> Produced:
    import pandas as pd

    from mm_assets.evaluation.comparison import evaluate

    config = job.workspace.config
    clinical = read_table(job, CLINICAL)
    progress = Progress(f"{config.cohort}/{evaluation_name(task.name)}", 0, job.workspace.log)
    evaluation = evaluate(
        pd.concat([read_table(job, model) for model in models], ignore_index=True),
        make_endpoint(clinical, task),
        read_table(job, splits_name(task)),
        clinical,
        horizons=task.horizons if isinstance(task, SurvivalTask) else (),
        bootstrap=config.evaluation.bootstrap,
        seed=config.evaluation.seed,
        progress=progress.update,
    )
    name = evaluation_name(task.name)
    outputs = {
        f"{table}.parquet": job.workspace.store.write_table(
            _table_ref(config.cohort, task.name, table), frame, job.provenance[name]
        )
        for table, frame in evaluation.tables().items()
    }
    report = _task_report(job, task, evaluation)
    from mm_assets.evaluation.report import render_task_report

    html = render_task_report(report).encode()
    outputs["html"] = job.workspace.store.write_bytes(
        job.ref(name, "html"), html, job.provenance[name]
    )
    for model in models:
        _attach(job, task, job.upstream[model][COHORT], evaluation, html)
    return Produced(
        outputs,
        _shown(job, task, evaluation, report),
        evaluation_checks(evaluation, main_metric(task), _judged_model(models, task)),
    )


def _judged_model(models: list[str], task: Task) -> str:
    """The full model where the cohort has more than clinical data, else the baseline."""
    asset = heec_name(task) if heec_name(task) in models else models[0]
    return asset.removesuffix(f"_{task.name}")


def _attach(
    job: Job, task: Task, receipt: Receipt, evaluation: "Evaluation", html: bytes
) -> None:
    """Give a model's MLflow run its share of the evaluation."""
    model = receipt.asset.removesuffix(f"_{task.name}")
    family = set(str(receipt.metadata["models"]).split(", "))
    metrics = evaluation.metrics[evaluation.metrics["model"].isin(family)]
    per_fold = evaluation.per_fold[evaluation.per_fold["model"].isin(family)]
    run_id = str(receipt.metadata["mlflow_run"])
    job.workspace.tracking.attach(run_id, model, metrics, per_fold, {"report/report.html": html})

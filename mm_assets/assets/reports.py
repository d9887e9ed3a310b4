"""Stages that judge and explain: `evaluation_T` and `cohort_report`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.checks import evaluation_checks
from mm_assets.assets.heec_inputs import heec_name
from mm_assets.assets.learning_curve import learning_curve_stages
from mm_assets.assets.models import weights_stamp
from mm_assets.assets.omics import CLINICAL, read_table, source_digests, splits_name
from mm_assets.assets.porpoise import networks
from mm_assets.assets.progress import Progress
from mm_assets.assets.promotion import out_of_fold_file, settle
from mm_assets.assets.report_facts import (
    follow_up,
    patient_flow,
    quarantined,
    report_provenance,
    slide_flow,
)
from mm_assets.assets.slides import markdown_image
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.assets.tiles import TILES
from mm_assets.assets.wording import (
    endpoint_in_words,
    is_single_modality,
    model_descriptions,
    model_names,
)
from mm_assets.cohort.clinical import Endpoint, make_endpoint
from mm_assets.cohort.config import CohortConfig, SurvivalTask, Task
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT, ArtefactRef, ArtefactStore

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.evaluation.comparison import Evaluation
    from mm_assets.evaluation.options import OptionComparison
    from mm_assets.evaluation.report import TaskReport

REPORT = "cohort_report"
PROMOTIONS = "promotions"
CARD = "model_card.md"


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
        upstream=(CLINICAL, splits_name(task), *models, *_learning_curve(config, task)),
        group="reports",
        code_version="2",
        description="Out-of-fold metrics with intervals, paired comparisons, ablations, subgroups.",
        kinds=frozenset({"scikit-learn"}),
        parameters={
            "task": task.model_dump(),
            "bootstrap": config.evaluation.bootstrap,
            "seed": config.evaluation.seed,
            "promotion_margin": config.evaluation.promotion_margin,
        },
        sources=lambda w: source_digests(w.config.evaluation.attainable),
        run=lambda job: _evaluate(job, task, models),
        checks=("better_than_chance", "calibration"),
    )


def _learning_curve(config: CohortConfig, task: Task) -> tuple[str, ...]:
    """Asset of the task's learning curve, where the cohort has one."""
    return tuple(stage.name for stage in learning_curve_stages(config, task))


def _evaluate(job: Job, task: Task, models: list[str]) -> Produced:
    import pandas as pd

    from mm_assets.evaluation.comparison import evaluate
    from mm_assets.evaluation.report import render_task_report

    config = job.workspace.config
    clinical = read_table(job, CLINICAL)
    endpoint = make_endpoint(clinical, task)
    progress = Progress(f"{config.cohort}/{evaluation_name(task.name)}", 0, job.workspace.log)
    curve = _learning_curve(config, task)
    evaluation = evaluate(
        pd.concat([read_table(job, model) for model in models], ignore_index=True),
        endpoint,
        read_table(job, splits_name(task)),
        clinical,
        horizons=task.horizons if isinstance(task, SurvivalTask) else (),
        bootstrap=config.evaluation.bootstrap,
        seed=config.evaluation.seed,
        learning=read_table(job, curve[0]) if curve else None,
        progress=progress.update,
    )
    name = evaluation_name(task.name)
    outputs = {
        f"{table}.parquet": job.workspace.store.write_table(
            _table_ref(config.cohort, task.name, table), frame, job.provenance[name]
        )
        for table, frame in evaluation.tables().items()
    }
    promotions = settle(job, task, models, endpoint, main_metric(task))
    outputs[f"{PROMOTIONS}.parquet"] = job.workspace.store.write_table(
        _table_ref(config.cohort, task.name, PROMOTIONS), promotions, job.provenance[name]
    )
    report = _task_report(job, task, models, evaluation, endpoint)
    html = render_task_report(report).encode()
    outputs["html"] = job.workspace.store.write_bytes(
        job.ref(name, "html"), html, job.provenance[name]
    )
    for model in models:
        receipt = job.upstream[model][COHORT]
        card = _model_card(job, task, receipt, evaluation, promotions)
        _attach(job, task, receipt, evaluation, {"report/report.html": html, CARD: card})
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
    job: Job, task: Task, receipt: Receipt, evaluation: "Evaluation", files: Mapping[str, bytes]
) -> None:
    """Give a model's MLflow run its share of the evaluation."""
    model = _model_name(receipt, task)
    family = set(str(receipt.metadata["models"]).split(", "))
    metrics = evaluation.metrics[evaluation.metrics["model"].isin(family)]
    per_fold = evaluation.per_fold[evaluation.per_fold["model"].isin(family)]
    run_id = str(receipt.metadata["mlflow_run"])
    files = {**files, **out_of_fold_file(job, receipt.asset)}
    job.workspace.tracking.attach(run_id, model, metrics, per_fold, files)


def _model_card(
    job: Job, task: Task, receipt: Receipt, evaluation: "Evaluation", promotions: "pd.DataFrame"
) -> bytes:
    """The model's card, which is also the description of the registered version."""
    from mm_assets.evaluation.model_card import ModelCard, render_model_card

    model, facts = _model_name(receipt, task), receipt.metadata
    registered = job.workspace.tracking.version(
        str(facts["registered_model"]), int(str(facts["version"]))
    )
    card = render_model_card(
        ModelCard(
            name=registered.name,
            version=registered.version,
            description=model_descriptions(task, networks(job.workspace.config)).get(model, model),
            endpoint=endpoint_in_words(task),
            metrics=evaluation.metrics[evaluation.metrics["model"] == model],
            weights=str(facts["weights"]),
            outcome=str(promotions.set_index("model")["outcome"][registered.name]),
        )
    )
    job.workspace.tracking.describe(registered, card)
    return card.encode()


def _model_name(receipt: Receipt, task: Task) -> str:
    return receipt.asset.removesuffix(f"_{task.name}")


def _task_report(
    job: Job, task: Task, models: list[str], evaluation: "Evaluation", endpoint: Endpoint
) -> "TaskReport":
    from mm_assets.evaluation.report import TaskReport

    config = job.workspace.config
    full = _judged_model(models, task)
    evaluated = tuple(dict.fromkeys(evaluation.metrics["model"]))
    only = _only_modality(config, evaluated)
    single = tuple(m for m in evaluated if is_single_modality(m) or (only and m == full))
    return TaskReport(
        cohort=config.cohort,
        task=task.name,
        endpoint=endpoint_in_words(task),
        evaluation=evaluation,
        full_model=full,
        single_models=single,
        excluded=endpoint.excluded,
        flow=tuple(patient_flow(job, evaluation, endpoint)),
        follow_up=follow_up(endpoint),
        classes=endpoint.classes,
        options=tuple(_options(evaluated, full)),
        names=model_names(task, networks(config), only),
        descriptions=model_descriptions(task, networks(config)),
        attainable=_attainable(config, task),
        weights=weights_stamp(job) or None if config.slides else None,
        registered=_registered(job, task, models),
        provenance=report_provenance(job, task, models),
    )


def _only_modality(config: CohortConfig, evaluated: Sequence[str]) -> str:
    """What HEEC reads where that is one modality, which then is no ablation; else empty."""
    inputs = {"imaging": config.slides, "omics": config.omics}
    there = [modality for modality, given in inputs.items() if given]
    return there[0] if len(there) == 1 and f"heec_{there[0]}" not in evaluated else ""


def _options(evaluated: Sequence[str], full: str) -> "Iterator[OptionComparison]":
    """The groups of variants that were evaluated, each with its default."""
    from mm_assets.evaluation.options import OptionComparison
    from mm_assets.models.variants import GROUPS

    for group in GROUPS.values():
        options = {model: words for model, words in group.described() if model in evaluated}
        # Where the slides are all there is, the full model is the one on slides alone.
        reference = group.reference if group.reference in evaluated else full
        if options:
            yield OptionComparison(group.question, reference, options)


def _attainable(config: CohortConfig, task: Task) -> dict[str, float]:
    """Best attainable value of the main metric, which only a synthetic cohort knows."""
    if config.evaluation.attainable is None:
        return {}
    best = json.loads(Path(config.evaluation.attainable).read_text()).get(task.name)
    return {best["metric"]: float(best["value"])} if best else {}


def _registered(job: Job, task: Task, models: list[str]) -> "pd.DataFrame":
    import pandas as pd

    promotions = job.workspace.store.read_table(
        _table_ref(job.workspace.config.cohort, task.name, PROMOTIONS)
    )
    outcomes = promotions.set_index("model")["outcome"]
    rows = []
    for model in models:
        facts = job.upstream[model][COHORT].metadata
        rows.append(
            {
                "model": facts["registered_model"],
                "version": facts["version"],
                "alias": _aliases(job, facts),
                "url": facts["mlflow_url"],
                "outcome": outcomes[str(facts["registered_model"])],
            }
        )
    return pd.DataFrame(rows, columns=["model", "version", "alias", "url", "outcome"])


def _aliases(job: Job, facts: Mapping[str, Any]) -> str:
    try:
        found = job.workspace.tracking.version(facts["registered_model"], facts["version"])
    except LookupError:
        return "no longer registered"
    return ", ".join(found.aliases)


def _shown(job: Job, task: Task, evaluation: "Evaluation", report: "TaskReport") -> dict[str, Any]:
    """Metadata of the evaluation: verdict, table and forest plot for the UI."""
    from mm_assets.evaluation.plots import metric_forest

    metric = main_metric(task)
    rows = evaluation.metrics[evaluation.metrics["metric"] == metric]
    best = rows.set_index("model")["value"]
    forest = metric_forest(evaluation.metrics, metric, report.plot_context, "small")
    return {
        "verdict": report.verdict,
        "weights": report.weights or "",
        f"{metric} of {report.full_model}": float(best[report.full_model]),
        "protocol": str(rows["protocol"].iloc[0]),
        "results": dg.MetadataValue.md(
            rows[["model", "value", "low", "high", "patients", "events"]]
            .round(3)
            .to_markdown(index=False)
        ),
        "forest": dg.MetadataValue.md(markdown_image(forest, task.name)),
    }


def cohort_report_stage(config: CohortConfig, models: Mapping[str, list[str]]) -> CohortStage:
    """`cohort_report`; `models` are the model assets of each task."""
    per_task = [
        asset
        for task in config.tasks
        for asset in (splits_name(task), *models[task.name], evaluation_name(task.name))
    ]
    slides = ("slide", TILES) if config.slides else ()
    return CohortStage(
        outputs=(REPORT,),
        upstream=(CLINICAL, *slides, *per_task),
        group="reports",
        code_version="2",
        description="One self-contained page for people.",
        kinds=frozenset({"html"}),
        parameters={"tasks": [task.model_dump() for task in config.tasks]},
        run=lambda job: _cohort_report(job, models),
    )


def _cohort_report(job: Job, models: Mapping[str, list[str]]) -> Produced:
    from mm_assets.evaluation.report import CohortReport, render_cohort_report

    config = job.workspace.config
    reports = tuple(_stored_task_report(job, task, models[task.name]) for task in config.tasks)
    html = render_cohort_report(
        CohortReport(
            cohort=config.cohort,
            created=f"{datetime.now(UTC):%Y-%m-%d}",
            tasks=reports,
            flow=tuple(slide_flow(job)),
            quarantined=quarantined(job),
            provenance={"mm_assets": version("mm-assets"), "Dagster run": job.dagster_run_id},
        )
    ).encode()
    ref = job.ref(REPORT, "html")
    digest = job.workspace.store.write_bytes(ref, html, job.provenance[REPORT])
    local = job.workspace.store.local_path(ref)
    return Produced(
        {"html": digest},
        {
            **{f"verdict {report.task}": report.verdict for report in reports},
            **({"report": dg.MetadataValue.path(str(local))} if local else {}),
        },
    )


def _stored_task_report(job: Job, task: Task, models: list[str]) -> "TaskReport":
    from dataclasses import fields

    from mm_assets.evaluation.comparison import Evaluation

    config = job.workspace.config
    tables = {
        field.name: job.workspace.store.read_table(_table_ref(config.cohort, task.name, field.name))
        for field in fields(Evaluation)
    }
    endpoint = make_endpoint(read_table(job, CLINICAL), task)
    return _task_report(job, task, models, Evaluation(**tables), endpoint)

"""Stages that train: `clinical_cox_T` (or `clinical_logistic_T`) and `heec_T`.

Each writes out-of-fold predictions of the model and its ablations, and registers the final model,
fitted on all patients of the task, with its whole lineage.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.heec_inputs import (
    heec_compute,
    heec_inputs,
    heec_name,
    heec_parameters,
    heec_processes,
)
from mm_assets.assets.heec_settings import (
    best_settings,
    heec_settings_name,
    searches_elsewhere,
)
from mm_assets.assets.omics import CLINICAL, OMICS, filtered_omics_name, read_table, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.assets.tiles import HIPT, TILES
from mm_assets.cohort.clinical import covariate_columns, make_endpoint
from mm_assets.cohort.config import CohortConfig, SurvivalTask, Task

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.resources.model_run import Predictor, RunFacts
    from mm_assets.resources.tracking import RegisteredModel

EXAMPLE_ROWS = 5


def clinical_name(task: Task) -> str:
    """Asset name of the clinical baseline: Cox for survival, logistic regression for classes."""
    return f"clinical_{'cox' if isinstance(task, SurvivalTask) else 'logistic'}_{task.name}"


def model_stages(config: CohortConfig, task: Task) -> list[CohortStage]:
    """The models that the cohort's inputs allow."""
    stages = []
    if config.clinical.covariates != []:
        stages.append(_clinical_stage(config, task))
    if config.slides or config.omics:
        stages.append(_heec_stage(config, task))
    return stages


def weights_stamp(job: Job, asset: str = TILES) -> str:
    """Encoder and weights behind the embeddings of an asset; empty without slides."""
    receipts = job.workspace.receipts.read_all(job.workspace.config.cohort, asset)
    stamps = {
        f"{r.metadata['encoder']} {r.metadata['weights']}"
        for r in receipts.values()
        if r.state == "done"
    }
    return ", ".join(sorted(stamps))


def _clinical_stage(config: CohortConfig, task: Task) -> CohortStage:
    return CohortStage(
        outputs=(clinical_name(task),),
        upstream=(CLINICAL, splits_name(task)),
        group="models",
        code_version="3",
        description="Baseline on clinical covariates alone.",
        kinds=frozenset({"lifelines", "mlflow"}),
        parameters={"task": task.model_dump(), "covariates": config.clinical.covariates},
        elsewhere="training",
        run=lambda job: _train_clinical(job, task),
    )


def _train_clinical(job: Job, task: Task) -> Produced:
    from mm_assets.models.clinical import ClinicalModel, run_clinical_folds

    config = job.workspace.config
    clinical = read_table(job, CLINICAL)
    endpoint = make_endpoint(clinical, task)
    covariates = clinical[covariate_columns(clinical, config.clinical, task)]
    name = clinical_name(task)
    progress = Progress(f"{config.cohort}/{name}", 0, job.workspace.log)
    predictions = run_clinical_folds(
        covariates,
        endpoint,
        read_table(job, splits_name(task)),
        prediction_months(task),
        progress.update,
    )
    final = ClinicalModel.fit(covariates.loc[endpoint.table.index], endpoint, horizons(task))
    trained = endpoint.table.index.tolist()
    return register_model(job, task, name, final, predictions, covariates, trained)


def _heec_stage(config: CohortConfig, task: Task) -> CohortStage:
    upstream = [CLINICAL, splits_name(task)]
    if config.omics:
        upstream += [OMICS, filtered_omics_name(task)]
    if config.slides:
        upstream.append(extremum_name(task))
    if searches_elsewhere(config):
        upstream.append(heec_settings_name(task))
    return CohortStage(
        outputs=(heec_name(task),),
        upstream=tuple(upstream),
        group="models",
        code_version="5",
        description="HEEC: LightGBM on extremum vectors, in-fold filtered omics and clinical "
        "covariates, with its ablations.",
        kinds=frozenset({"lightgbm", "mlflow"}),
        compute=heec_compute(),
        parameters=heec_parameters(config, task),
        elsewhere="training",
        run=lambda job: _train_heec(job, task),
    )


def _train_heec(job: Job, task: Task) -> Produced:
    import pandas as pd

    from mm_assets.models.heec_folds import fit_final, label_trials, run_folds

    config, name = job.workspace.config, heec_name(task)
    read = heec_inputs(job, task)
    tried: list[pd.DataFrame] = []
    settings, searched = None, None
    if searches_elsewhere(config):
        searched = read_table(job, heec_settings_name(task))
        settings = best_settings(searched)
    predictions = run_folds(
        read.blocks,
        read.endpoint,
        read.splits,
        prediction_months(task),
        read.variants,
        read.parameters,
        read.filtered,
        read.sites,
        Progress(f"{config.cohort}/{name}", 0, job.workspace.log).update,
        heec_processes(config, task),
        read.imaging_of,
        tried.append,
        settings,
    )
    final = fit_final(
        read.blocks,
        read.endpoint,
        horizons(task),
        read.parameters,
        read.filtered,
        read.sites,
        settings,
    )
    if searched is None:
        trials = pd.concat([*tried, label_trials(final, "heec")], ignore_index=True)
    else:
        trials = searched.drop(columns="best")
    trained = read.endpoint.table.index.tolist()
    frame = read.blocks.frame(trained)
    return register_model(job, task, name, final, predictions, frame, trained, trials)


def horizons(task: Task) -> Sequence[float]:
    """Months at which a final model predicts survival; none for classes."""
    return task.horizons if isinstance(task, SurvivalTask) else ()


def prediction_months(task: Task) -> Sequence[float]:
    """Months at which the models of the folds predict survival; none for classes."""
    return task.prediction_months if isinstance(task, SurvivalTask) else ()


def register_model(
    job: Job,
    task: Task,
    name: str,
    final: "Predictor",
    predictions: "pd.DataFrame",
    frame: "pd.DataFrame",
    trained: Sequence[str],
    trials: "pd.DataFrame | None" = None,
    live: str | None = None,
) -> Produced:
    """Store the out-of-fold predictions and register the final model.

    Parameters
    ----------
    frame
        Rows that `final` reads, some of which become its example.
    trained, trials, live
        Patients that `final` was fitted to, what tuning tried, and the run opened for the
        training, as in `ModelRun`.
    """
    digest = job.workspace.store.write_table(
        job.ref(name, "parquet"), predictions, job.provenance[name]
    )
    example = frame[list(final.feature_names)].head(EXAMPLE_ROWS)
    model = _log_model(job, task, name, final, example, trained, trials, live)
    metadata: dict[str, Any] = {
        "models": ", ".join(predictions["model"].unique()),
        "patients": int(predictions["patient_id"].nunique()),
        "registered_model": model.name,
        "version": model.version,
        "mlflow_run": model.run_id,
        "mlflow_url": model.url,
        "weights": _weights_read(job, task),
    }
    shown = {**metadata, "mlflow": dg.MetadataValue.url(model.url)}
    return Produced({"parquet": digest}, shown)


def _weights_read(job: Job, task: Task) -> str:
    """Stamp of the encoder weights, where the model reads slides."""
    if extremum_name(task) in job.upstream:
        return weights_stamp(job)
    embedded = (a for a in job.upstream if a == HIPT or a.startswith(TILES))
    return next((weights_stamp(job, asset) for asset in embedded), "")


def _log_model(
    job: Job,
    task: Task,
    name: str,
    final: "Predictor",
    example: "pd.DataFrame",
    trained: Sequence[str],
    trials: "pd.DataFrame | None",
    live: str | None,
) -> "RegisteredModel":
    from mm_assets.resources.lineage import lineage_of_provenance, to_json
    from mm_assets.resources.model_run import ModelRun

    cohort, store = job.workspace.config.cohort, job.workspace.store
    lineage = lineage_of_provenance(store, cohort, job.provenance[name])
    return job.workspace.tracking.log_model(
        ModelRun(
            **vars(replace(run_facts(job, task, name), lineage=to_json(lineage))),
            predictor=final,
            input_example=example,
            trained=trained,
            trials=trials,
            live=live,
        )
    )


def run_facts(job: Job, task: Task, name: str) -> "RunFacts":
    """What MLflow is told of a model before it is trained."""
    from mm_assets.resources.model_run import RunFacts

    provenance, cohort = job.provenance[name], job.workspace.config.cohort
    return RunFacts(
        cohort=cohort,
        task=task.name,
        model=name.removesuffix(f"_{task.name}"),
        dagster_run_id=job.dagster_run_id,
        asset_key=f"{cohort}/{name}",
        code_version=provenance.code_version,
        upstream=provenance.inputs,
        splits_digest=next(iter(provenance.inputs[splits_name(task)].values())),
        parameters=provenance.parameters,
        weights=_weights_read(job, task),
    )

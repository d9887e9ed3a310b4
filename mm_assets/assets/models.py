"""Stages that train: `clinical_cox_T` (or `clinical_logistic_T`) and `heec_T`.

Each writes out-of-fold predictions of the model and its ablations, and registers the final model,
fitted on all patients of the task, with its whole lineage.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.compute import Compute
from mm_assets.assets.extremum import extremum_name, selects
from mm_assets.assets.omics import CLINICAL, OMICS, filtered_omics_name, read_table, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.assets.tiles import HIPT, TILES
from mm_assets.cohort.clinical import covariate_columns, make_endpoint
from mm_assets.cohort.config import CohortConfig, SurvivalTask, Task

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.models.features import FeatureBlocks, Variant
    from mm_assets.models.heec_parameters import HeecParameters
    from mm_assets.resources.model_run import Predictor, RunFacts
    from mm_assets.resources.tracking import RegisteredModel

EXAMPLE_ROWS = 5
HEEC_COMPUTE = Compute(cpu=2, memory_gib=8)


def clinical_name(task: Task) -> str:
    """Asset name of the clinical baseline: Cox for survival, logistic regression for classes."""
    return f"clinical_{'cox' if isinstance(task, SurvivalTask) else 'logistic'}_{task.name}"


def heec_name(task: Task) -> str:
    """Asset name of HEEC."""
    return f"heec_{task.name}"


def without_genes_label(task: Task) -> str:
    """Suffix of the model that reads no feature of the task's `without_genes`."""
    return "_".join(["no", *(gene.lower() for gene in task.without_genes)])


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
    return CohortStage(
        outputs=(heec_name(task),),
        upstream=tuple(upstream),
        group="models",
        code_version="5",
        description="HEEC: LightGBM on extremum vectors, in-fold filtered omics and clinical "
        "covariates, with its ablations.",
        kinds=frozenset({"lightgbm", "mlflow"}),
        compute=HEEC_COMPUTE,
        parameters={
            "task": task.model_dump(),
            "covariates": config.clinical.covariates,
            "omics_features": config.evaluation.omics_features,
            "preserve_sites": config.evaluation.preserve_sites,
            "compare": list(config.evaluation.compare),
            "tuning": config.heec.tuning.model_dump(),
        },
        run=lambda job: _train_heec(job, task),
    )


def _train_heec(job: Job, task: Task) -> Produced:
    import pandas as pd

    from mm_assets.models.heec_folds import fit_final, label_trials, run_folds

    config = job.workspace.config
    clinical = read_table(job, CLINICAL)
    endpoint = make_endpoint(clinical, task)
    blocks = feature_blocks(job, task, clinical)
    filtered = read_table(job, filtered_omics_name(task)) if config.omics else None
    sites = clinical["site"] if config.evaluation.preserve_sites and "site" in clinical else None
    name = heec_name(task)
    splits, variants = read_table(job, splits_name(task)), _variants(config, blocks, task)
    processes = HEEC_COMPUTE.overridden(config.compute.get(name)).cpu
    parameters = _parameters(config, len(variants), splits, processes)
    progress = Progress(f"{config.cohort}/{name}", 0, job.workspace.log)
    tried: list[pd.DataFrame] = []
    predictions = run_folds(
        blocks,
        endpoint,
        splits,
        prediction_months(task),
        variants,
        parameters,
        filtered,
        sites,
        progress.update,
        processes,
        # Folds come one after the other: two matrices, with and without selection.
        lru_cache(2)(partial(_imaging_matrix, job, task)) if config.slides else None,
        tried.append,
    )
    final = fit_final(blocks, endpoint, horizons(task), parameters, filtered, sites)
    trials = pd.concat([*tried, label_trials(final, "heec")], ignore_index=True)
    trained = endpoint.table.index.tolist()
    frame = blocks.frame(trained)
    return register_model(job, task, name, final, predictions, frame, trained, trials)


def _parameters(
    config: CohortConfig, variants: int, splits: "pd.DataFrame", processes: int
) -> "HeecParameters":
    """Settings of every fit; the time for tuning is shared among all searches."""
    from mm_assets.models.heec_parameters import HeecParameters, TuningBudget

    folds = len(splits[["repeat", "fold"]].drop_duplicates())
    # The final model is fitted after the folds, by one process.
    searches = variants * folds / processes + 1
    budget = TuningBudget(config.heec.tuning.trials, config.heec.tuning.seconds)
    return HeecParameters(
        omics_features=config.evaluation.omics_features, tuning=budget.shared(searches)
    )


def _variants(config: CohortConfig, blocks: "FeatureBlocks", task: Task) -> "list[Variant]":
    from mm_assets.models.features import Variant, default_variants
    from mm_assets.models.variants import compared_variants

    variants = default_variants(blocks)
    if task.without_genes and blocks.omics is not None:
        genes = tuple(task.without_genes)
        variants.append(Variant(f"heec_{without_genes_label(task)}", without_genes=genes))
    compare = config.evaluation.compare
    return variants + compared_variants(compare, blocks, task.kind, selects(config))


def feature_blocks(
    job: Job, task: Task, clinical: "pd.DataFrame", selection: bool = True
) -> "FeatureBlocks":
    """What the cohort has of each patient; of the slides what the final model's selection keeps."""
    from mm_assets.models.features import FeatureBlocks
    from mm_assets.omics.filters import ALL_PATIENTS

    config = job.workspace.config
    columns = covariate_columns(clinical, config.clinical, task)
    imaging = None
    if config.slides:
        imaging = _imaging_matrix(job, task, ALL_PATIENTS, ALL_PATIENTS, selection)
    return FeatureBlocks(
        imaging=imaging,
        omics=read_table(job, OMICS) if config.omics else None,
        clinical=clinical[columns] if columns else None,
    )


def _imaging_matrix(
    job: Job, task: Task, repeat: int, fold: int, selection: bool = True
) -> "pd.DataFrame":
    """Extrema of all patients as the selection of a fold gives them."""
    from mm_assets.cohort.manifest import read_manifest
    from mm_assets.models.extremum import of_fold, patient_matrix

    assert job.workspace.config.slides is not None
    manifest, _ = read_manifest(job.workspace.config.slides)
    name = extremum_name(task)
    by_slide = {
        slide: of_fold(
            job.workspace.store.read_table(job.ref(name, "parquet", slide)), repeat, fold, selection
        )
        for slide in job.upstream[name]
    }
    return patient_matrix(by_slide, manifest)


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

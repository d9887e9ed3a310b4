"""Stage `learning_curve_T`: cheap models fitted to parts of the training patients."""

from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.heec_inputs import feature_blocks, heec_compute
from mm_assets.assets.omics import CLINICAL, OMICS, read_table, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task


def learning_curve_name(task: Task) -> str:
    """Asset name of a task's learning curve."""
    return f"learning_curve_{task.name}"


def learning_curve_stages(config: CohortConfig, task: Task) -> list[CohortStage]:
    """`learning_curve_T`, where the configuration asks for it and there is a model to fit."""
    settings = config.evaluation.learning_curve
    inputs = config.slides or config.omics or config.clinical.covariates != []
    if settings is None or not inputs:
        return []
    upstream = [CLINICAL, splits_name(task)]
    if config.omics:
        upstream.append(OMICS)
    if config.slides:
        upstream.append(extremum_name(task))
    return [
        CohortStage(
            outputs=(learning_curve_name(task),),
            upstream=tuple(upstream),
            group="reports",
            code_version="1",
            description="Out-of-fold predictions of HEEC (slides without selection) and the "
            "clinical baseline, fitted to parts of the training patients.",
            kinds=frozenset({"lightgbm"}),
            compute=heec_compute(),
            parameters={
                "task": task.model_dump(),
                "learning_curve": settings.model_dump(),
                "covariates": config.clinical.covariates,
                "omics_features": config.evaluation.omics_features,
                "preserve_sites": config.evaluation.preserve_sites,
                "seed": config.evaluation.seed,
            },
            elsewhere="training",
            run=lambda job: _learning_curve(job, task),
        )
    ]


def _learning_curve(job: Job, task: Task) -> Produced:
    from mm_assets.models.heec_parameters import HeecParameters
    from mm_assets.models.learning_curve import list_parts, run_learning_curve

    config = job.workspace.config
    settings = config.evaluation.learning_curve
    assert settings is not None
    clinical = read_table(job, CLINICAL)
    name = learning_curve_name(task)
    predictions = run_learning_curve(
        feature_blocks(job, task, clinical, selection=False),
        make_endpoint(clinical, task),
        read_table(job, splits_name(task)),
        list_parts(settings.shares, settings.draws),
        seed=config.evaluation.seed,
        parameters=HeecParameters(omics_features=config.evaluation.omics_features),
        sites=clinical["site"] if config.evaluation.preserve_sites and "site" in clinical else None,
        progress=Progress(f"{config.cohort}/{name}", 0, job.workspace.log).update,
        processes=heec_compute().overridden(config.compute.get(name)).cpu,
    )
    digest = job.workspace.store.write_table(
        job.ref(name, "parquet"), predictions, job.provenance[name]
    )
    fits = len(predictions[["share", "draw", "model", "repeat", "fold"]].drop_duplicates())
    return Produced({"parquet": digest}, {"fits": fits})

"""What HEEC and the search for its settings read, and what they need."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from mm_assets.assets.compute import Compute
from mm_assets.assets.extremum import extremum_name, selects
from mm_assets.assets.omics import CLINICAL, OMICS, filtered_omics_name, read_table, splits_name
from mm_assets.assets.stage import Job, Workspace
from mm_assets.cohort.clinical import Endpoint, covariate_columns, make_endpoint
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.store import COHORT, ArtefactRef

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.models.features import FeatureBlocks, Variant
    from mm_assets.models.heec_folds import ImagingOf
    from mm_assets.models.heec_parameters import HeecParameters


@dataclass(frozen=True)
class HeecInputs:
    """Arguments of `mm_assets.models.heec_folds`, under their names there."""

    blocks: "FeatureBlocks"
    endpoint: Endpoint
    splits: "pd.DataFrame"
    variants: "Sequence[Variant]"
    parameters: "HeecParameters"
    filtered: "pd.DataFrame | None"
    sites: "pd.Series[Any] | None"
    imaging_of: "ImagingOf | None"


def heec_name(task: Task) -> str:
    """Asset name of HEEC."""
    return f"heec_{task.name}"


def heec_compute() -> Compute:
    """What HEEC needs."""
    return Compute(cpu=2, memory_gib=8)


def heec_processes(config: CohortConfig, task: Task) -> int:
    """Fits at once."""
    return heec_compute().overridden(config.compute.get(heec_name(task))).cpu


def heec_parameters(config: CohortConfig, task: Task) -> dict[str, Any]:
    """What of the configuration changes HEEC."""
    return {
        "task": task.model_dump(),
        "covariates": config.clinical.covariates,
        "omics_features": config.evaluation.omics_features,
        "preserve_sites": config.evaluation.preserve_sites,
        "compare": list(config.evaluation.compare),
        "tuning": config.heec.tuning.model_dump(),
    }


def heec_inputs(job: Job, task: Task) -> HeecInputs:
    """Everything that the models of the folds read."""
    config = job.workspace.config
    clinical = read_table(job, CLINICAL)
    blocks = feature_blocks(job, task, clinical)
    splits, variants = read_table(job, splits_name(task)), _variants(config, blocks, task)
    return HeecInputs(
        blocks=blocks,
        endpoint=make_endpoint(clinical, task),
        splits=splits,
        variants=variants,
        parameters=_parameters(config, task, len(variants), splits),
        filtered=read_table(job, filtered_omics_name(task)) if config.omics else None,
        sites=clinical["site"] if config.evaluation.preserve_sites and "site" in clinical else None,
        # Folds come one after the other: two matrices, with and without selection.
        imaging_of=lru_cache(2)(partial(_imaging_matrix, job, task)) if config.slides else None,
    )


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


def count_searches(workspace: Workspace, task: Task) -> int | None:
    """Searches for settings: of every variant in every fold, and of the final model.

    None as long as the tables are not made; slides need not be.
    """
    import pandas as pd

    from mm_assets.models.features import FeatureBlocks
    from mm_assets.models.folds import list_folds

    config, store = workspace.config, workspace.store
    names = (CLINICAL, splits_name(task), *((OMICS,) if config.omics else ()))
    refs = [ArtefactRef(config.cohort, name, COHORT, "parquet") for name in names]
    if not all(map(store.exists, refs)):
        return None
    clinical, splits, *omics = map(store.read_table, refs)
    columns = covariate_columns(clinical, config.clinical, task)
    levels = ("region", "tile", *(("nucleus",) if config.nuclei is not None else ()))
    imaging = pd.DataFrame(columns=[f"{level}:min:0000" for level in levels])
    blocks = FeatureBlocks(
        imaging=imaging if config.slides else None,
        omics=omics[0] if omics else None,
        clinical=clinical[columns] if columns else None,
    )
    return len(list_folds(splits)) * len(_variants(config, blocks, task)) + 1


def without_genes_label(task: Task) -> str:
    """Suffix of the model that reads no feature of the task's `without_genes`."""
    return "_".join(["no", *(gene.lower() for gene in task.without_genes)])


def _parameters(
    config: CohortConfig, task: Task, variants: int, splits: "pd.DataFrame"
) -> "HeecParameters":
    """Settings of every fit; the time for tuning is shared among all searches."""
    from mm_assets.models.heec_parameters import HeecParameters, TuningBudget

    folds = len(splits[["repeat", "fold"]].drop_duplicates())
    # The final model is fitted after the folds, by one process.
    searches = variants * folds / heec_processes(config, task) + 1
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

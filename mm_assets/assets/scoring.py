"""How the registered model of each family is given the patients of the cohort."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.heec_inputs import feature_blocks, heec_name
from mm_assets.assets.hipt import hipt_name
from mm_assets.assets.models import clinical_name, model_stages
from mm_assets.assets.omics import CLINICAL, OMICS, read_table
from mm_assets.assets.porpoise import StoredBags, networks
from mm_assets.assets.stage import Job
from mm_assets.assets.tiles import HIPT
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scorer:
    """What a model reads of a patient, and how it is asked.

    Attributes
    ----------
    reads
        Tables and per-slide assets. A model that needs one of several is asked for patients of
        whom there is any.
    score
        From a job that has `reads` upstream, patients and the registered predictor to the
        predictions, indexed by those of the patients whom it can read. Importable by name: it is
        called in a process of its own.
    """

    reads: tuple[str, ...]
    score: Callable[[Job, Sequence[str], Any], "pd.DataFrame"]


def scorers(config: CohortConfig, task: Task) -> dict[str, Scorer]:
    """Scorer of every model asset of the task."""
    tables = (CLINICAL, *((OMICS,) if config.omics else ()))
    slides = (extremum_name(task),) if config.slides else ()
    on_features = {
        clinical_name(task): Scorer((CLINICAL,), _score_clinical),
        heec_name(task): Scorer((*tables, *slides), partial(_score_heec, task)),
    }
    found = {stage.name: on_features[stage.name] for stage in model_stages(config, task)}
    reads = {network.name(task): network.reads for network in networks(config)}
    if config.slides and config.hipt is not None:
        reads[hipt_name(task)] = (HIPT,)
    return found | {name: Scorer(read, _network(read)) for name, read in reads.items()}


def _score_clinical(job: Job, patients: Sequence[str], model: Any) -> "pd.DataFrame":
    clinical = read_table(job, CLINICAL)
    found: pd.DataFrame = model.predict(clinical.reindex(patients, columns=model.feature_names))
    return found


def _score_heec(task: Task, job: Job, patients: Sequence[str], model: Any) -> "pd.DataFrame":
    frame = feature_blocks(job, task, read_table(job, CLINICAL)).frame(list(patients))
    # Features that this cohort has no longer are missing values.
    found: pd.DataFrame = model.predict(frame.reindex(columns=list(model.feature_names)))
    return found


def _network(reads: Sequence[str]) -> Callable[[Job, Sequence[str], Any], "pd.DataFrame"]:
    slides = next((asset for asset in reads if asset != OMICS), None)
    return partial(_score_network, slides, OMICS in reads)


def _score_network(
    slides: str | None, omics: bool, job: Job, patients: Sequence[str], model: Any
) -> "pd.DataFrame":
    from mm_assets.models.porpoise.model import Cohort

    with TemporaryDirectory() as copies:
        cohort = Cohort(
            StoredBags(job, slides, Path(copies)) if slides else {},
            read_table(job, OMICS) if omics else None,
        )
        found: pd.DataFrame = model.predict_patients(cohort, patients)
    return found

"""Stage of predictions: the champion's, for every patient of the cohort.

Nothing is trained here, and nothing of the training's state is used: the model comes from the
registry, the features from the artefacts as they are now.
"""

import io
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.checks import all_scored
from mm_assets.assets.compute import Compute
from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.models import feature_blocks, heec_name
from mm_assets.assets.omics import CLINICAL, OMICS, read_table
from mm_assets.assets.promotion import OUT_OF_FOLD
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import CohortStage, Job, Produced, Workspace
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.resources.tracking import RegisteredModel


def predictions_name(task: Task) -> str:
    """Asset name of a task's predictions."""
    return f"predictions_{task.name}"


def predictions_stage(config: CohortConfig, task: Task, evaluation: str) -> CohortStage:
    """`predictions_T`; follows the evaluation, which settles who is champion."""
    tables = (CLINICAL, *((OMICS,) if config.omics else ()))
    slides = (extremum_name(task),) if config.slides else ()
    return CohortStage(
        outputs=(predictions_name(task),),
        upstream=(*tables, *slides, evaluation),
        group="reports",
        code_version="1",
        description="What the champion of HEEC predicts for every patient, also those without an "
        "endpoint. Patients whose artefacts were made otherwise than the model's are refused.",
        kinds=frozenset({"lightgbm", "mlflow"}),
        compute=Compute(cpu=1, memory_gib=8),
        sources=lambda workspace: {"champion": _champion_version(workspace, task)},
        run=lambda job: _predict(job, task),
        checks=("all_scored",),
    )


def _champion(workspace: Workspace, task: Task) -> "RegisteredModel":
    cohort, model = workspace.config.cohort, heec_name(task).removesuffix(f"_{task.name}")
    return workspace.tracking.version(f"{cohort}.{task.name}.{model}")


def _champion_version(workspace: Workspace, task: Task) -> str:
    try:
        return str(_champion(workspace, task).version)
    except LookupError:
        return "none yet"


def _predict(job: Job, task: Task) -> Produced:
    import pandas as pd

    from mm_assets.resources.inference import predict_apart

    champion = _champion(job.workspace, task)
    patients = _patients(job, task)
    refused = _refused(job, task, champion, patients)
    clinical = read_table(job, CLINICAL)
    blocks = feature_blocks(job, task, clinical)
    frame = blocks.frame(patients.index.difference(refused.index).tolist())
    if frame.empty:
        found = pd.DataFrame()
    else:
        found = predict_apart(job.workspace.tracking, champion, frame)
    trained = _trained(job, champion)
    table = pd.DataFrame(
        {
            "model": champion.name,
            "version": champion.version,
            "in_training": None if trained is None else patients.index.isin(trained),
            "has_endpoint": patients.index.isin(make_endpoint(clinical, task).table.index),
            **{column: patients[column] for column in patients},
            **{column: found[column].reindex(patients.index) for column in found},
            "refused": refused.reindex(patients.index).fillna(""),
        },
        index=patients.index,
    ).reset_index()
    name = predictions_name(task)
    digest = job.workspace.store.write_table(job.ref(name, "parquet"), table, job.provenance[name])
    return Produced({"parquet": digest}, _shown(table, champion), (all_scored(refused),))


def _shown(table: "pd.DataFrame", champion: "RegisteredModel") -> dict[str, Any]:
    return {
        "registered_model": champion.name,
        "version": champion.version,
        "mlflow": dg.MetadataValue.url(champion.url),
        "patients": len(table),
        "in training": int(table["in_training"].fillna(False).sum()),
        "refused": int((table["refused"] != "").sum()),
    }


def _patients(job: Job, task: Task) -> "pd.DataFrame":
    """Every patient of whom anything is known, and the data versions of what is.

    Returns
    -------
    Indexed by patient_id, sorted. Columns slides (how many are encoded), then the data version of
    each table that holds the patient and one over the extremum vectors, None without.
    """
    import pandas as pd

    versions = {
        asset: pd.Series(job.upstream[asset][COHORT].digest, read_table(job, asset).index)
        for asset in (CLINICAL, OMICS)
        if asset in job.upstream
    }
    by_patient = _slides(job, task)
    digests = {
        patient: bytes_digest(canonical_json({s: r.digest for s, r in sorted(slides.items())}))
        for patient, slides in by_patient.items()
    }
    versions[extremum_name(task)] = pd.Series(digests, dtype=object)
    counts = pd.Series({patient: len(slides) for patient, slides in by_patient.items()}, dtype=int)
    table = pd.DataFrame(versions).astype(object).sort_index().rename_axis("patient_id")
    table = table.where(table.notna(), None)
    table.insert(0, "slides", counts.reindex(table.index).fillna(0).astype(int))
    return table


def _slides(job: Job, task: Task) -> dict[str, dict[str, Receipt]]:
    """Patient -> encoded slides."""
    found: dict[str, dict[str, Receipt]] = {}
    if job.workspace.config.slides:
        rows = manifest_rows(job.workspace.config)
        for slide, receipt in job.upstream[extremum_name(task)].items():
            if slide in rows:  # else it was taken out of the manifest since
                found.setdefault(rows[slide].patient_id, {})[slide] = receipt
    return found


def _refused(
    job: Job, task: Task, champion: "RegisteredModel", patients: "pd.DataFrame"
) -> "pd.Series":
    """Patient -> why the model cannot read what is known of the patient."""
    import pandas as pd

    from mm_assets.resources.lineage import from_json, lineage_of_provenance
    from mm_assets.resources.recipe import Recipe

    workspace = job.workspace
    recipe = Recipe(from_json(workspace.tracking.lineage(champion)))
    provenance = job.provenance[predictions_name(task)]
    tree = lineage_of_provenance(workspace.store, workspace.config.cohort, provenance)
    objections = {
        (node.asset, node.name): recipe.objection(node, table=node.asset in (CLINICAL, OMICS))
        for node in tree.inputs
        if recipe.reads(node.asset)
    }
    slides = _slides(job, task)
    reasons: dict[str, str] = {}
    for patient in patients.index:
        read = [(asset, COHORT) for asset in (CLINICAL, OMICS) if _has(patients, patient, asset)]
        read += [(extremum_name(task), slide) for slide in slides.get(patient, ())]
        found = [objections[key] for key in read if objections.get(key)]
        if found:
            reasons[patient] = found[0]
    return pd.Series(reasons, dtype=object)


def _has(patients: "pd.DataFrame", patient: str, asset: str) -> bool:
    return asset in patients and isinstance(patients.loc[patient, asset], str)


def _trained(job: Job, champion: "RegisteredModel") -> "set[str] | None":
    """Patients that the final model was fitted to: those who have out-of-fold predictions.

    None of a model that was never evaluated.
    """
    import pandas as pd

    file = job.workspace.tracking.read_file(champion.run_id, OUT_OF_FOLD)
    return None if file is None else set(pd.read_parquet(io.BytesIO(file))["patient_id"])

"""Stage of predictions: those of every champion of a task, for every patient of the cohort.

Nothing is trained here, and nothing of the training's state is used: the models come from the
registry, the features from the artefacts as they are now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.champions import TABLES, Champion, champion_version
from mm_assets.assets.checks import all_scored
from mm_assets.assets.compute import Compute
from mm_assets.assets.omics import CLINICAL, read_table
from mm_assets.assets.scoring import scorers
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT

if TYPE_CHECKING:
    import pandas as pd

# What there is of the patients in an asset: patient -> slide id or ``cohort`` -> receipt.
Holdings = dict[str, dict[str, Receipt]]


def predictions_name(task: Task) -> str:
    """Asset name of a task's predictions."""
    return f"predictions_{task.name}"


def predictions_stage(config: CohortConfig, task: Task, evaluation: str) -> CohortStage:
    """`predictions_T`; follows the evaluation, which settles who is champion."""
    models = scorers(config, task)
    read = dict.fromkeys(asset for scorer in models.values() for asset in scorer.reads)
    return CohortStage(
        outputs=(predictions_name(task),),
        upstream=(*dict.fromkeys((CLINICAL, *read)), evaluation),
        group="reports",
        code_version="2",
        description="What the champion of every model predicts for every patient, also those "
        "without an endpoint. Patients whose artefacts were made otherwise than the model's are "
        "refused.",
        kinds=frozenset({"mlflow"}),
        compute=Compute(cpu=1, memory_gib=8),
        sources=lambda workspace: {
            asset: champion_version(workspace, task, asset) for asset in models
        },
        elsewhere="processing",
        run=lambda job: _predict(job, task),
        checks=("all_scored",),
    )


@dataclass(frozen=True)
class _Asked:
    """A champion and what it is asked for.

    Attributes
    ----------
    refused
        Patient -> why its artefacts cannot be read.
    patients
        Those who are not refused and of whom there is anything that it reads.
    """

    champion: Champion
    refused: dict[str, str]
    patients: list[str]


def _predict(job: Job, task: Task) -> Produced:
    import pandas as pd

    from mm_assets.resources.inference import predict_apart

    models = scorers(job.workspace.config, task)
    champions = {
        asset: champion
        for asset, scorer in models.items()
        if (champion := _champion(job, task, asset, scorer.reads))
    }
    if not champions:
        raise dg.Failure(
            f"no model of {task.name} is registered: run `mm materialize "
            f"{job.workspace.config.cohort}`",
            allow_retries=False,
        )
    holdings = {asset: _holdings(job, asset) for each in champions.values() for asset in each.reads}
    asked = {asset: _asked(champion, holdings) for asset, champion in champions.items()}
    wanted = {
        asset: (each.champion.registered, partial(models[asset].score, job, each.patients))
        for asset, each in asked.items()
        if each.patients
    }
    scored = predict_apart(job.workspace.tracking, list(wanted.values()))
    found = dict(zip(wanted, scored, strict=True))
    endpoint = make_endpoint(read_table(job, CLINICAL), task)
    parts = [
        _rows(each, holdings, found.get(asset, pd.DataFrame())) for asset, each in asked.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    table.insert(4, "has_endpoint", table["patient_id"].isin(endpoint.table.index))
    name = predictions_name(task)
    digest = job.workspace.store.write_table(job.ref(name, "parquet"), table, job.provenance[name])
    return Produced({"parquet": digest}, _shown(table, asked), (all_scored(table),))


def _champion(job: Job, task: Task, asset: str, reads: Sequence[str]) -> Champion | None:
    try:
        return Champion(job.workspace, task, asset, reads)
    except ValueError as error:
        job.workspace.log.warning(f"{error}; it is left out")
        return None


def _holdings(job: Job, asset: str) -> Holdings:
    """What an upstream asset holds of each patient."""
    receipts = job.upstream[asset]
    if asset in TABLES:
        return {patient: dict(receipts) for patient in read_table(job, asset).index}
    rows = manifest_rows(job.workspace.config)
    found: Holdings = {}
    for slide, receipt in sorted(receipts.items()):
        if slide in rows:  # else it was taken out of the manifest since
            found.setdefault(rows[slide].patient_id, {})[slide] = receipt
    return found


def _asked(champion: Champion, holdings: dict[str, Holdings]) -> _Asked:
    known = sorted({patient for asset in champion.reads for patient in holdings[asset]})
    reasons = {
        patient: champion.refusal(
            (asset, name) for asset in champion.reads for name in holdings[asset].get(patient, ())
        )
        for patient in known
    }
    refused = {patient: reason for patient, reason in reasons.items() if reason}
    return _Asked(champion, refused, [patient for patient in known if patient not in refused])


def _rows(asked: _Asked, holdings: dict[str, Holdings], found: "pd.DataFrame") -> "pd.DataFrame":
    """One row a patient of the cohort, whatever the model makes of it.

    Returns
    -------
    Columns patient_id, model, version, in_training (None: not known), slides (how many it reads),
    a data version an asset (None where it does not read the asset or that holds nothing), the
    predictions, refused (why) and lacks (what it would read, where nothing of it is there).
    """
    import pandas as pd

    champion = asked.champion
    patients = pd.Index(sorted(set().union(*holdings.values())), name="patient_id")
    held = {
        asset: {patient: each for patient, each in of.items() if asset in champion.reads}
        for asset, of in holdings.items()
    }
    slides = [
        sum(len(held[asset].get(patient, ())) for asset in held if asset not in TABLES)
        for patient in patients
    ]
    unread = ~patients.isin([*found.index, *asked.refused])
    trained = champion.trained
    predicted: dict[str, Any] = {str(column): found[column].reindex(patients) for column in found}
    return pd.DataFrame(
        {
            "model": champion.registered.name,
            "version": champion.registered.version,
            "in_training": None if trained is None else patients.isin(list(trained)),
            "slides": slides,
            **{
                asset: [_version(asset, of.get(patient)) for patient in patients]
                for asset, of in held.items()
            },
            **predicted,
            "refused": [asked.refused.get(patient, "") for patient in patients],
            "lacks": [" or ".join(champion.reads) if each else "" for each in unread],
        },
        index=patients,
    ).reset_index()


def _version(asset: str, held: dict[str, Receipt] | None) -> str | None:
    """Data version of a table, or one over the slides of a patient."""
    if not held:
        return None
    if asset in TABLES:
        return held[COHORT].digest
    return bytes_digest(canonical_json({slide: each.digest for slide, each in held.items()}))


def _shown(table: "pd.DataFrame", asked: dict[str, _Asked]) -> dict[str, Any]:
    """Metadata: what became of the patients, a line a model."""
    models = [each.champion.registered for each in asked.values()]
    return {
        "patients": int(table["patient_id"].nunique()),
        **{model.name: _counts(table[table["model"] == model.name]) for model in models},
        "mlflow": dg.MetadataValue.md(
            "\n".join(f"- [{m.name} version {m.version}]({m.url})" for m in models)
        ),
    }


def _counts(rows: "pd.DataFrame") -> str:
    refused, lacking = int((rows["refused"] != "").sum()), int((rows["lacks"] != "").sum())
    trained = rows["in_training"]
    seen = "unknown" if trained.isna().any() else int(trained.sum())
    return (
        f"version {rows['version'].iloc[0]}: {len(rows) - refused - lacking} scored, "
        f"{refused} refused, {lacking} without anything it reads, {seen} in training"
    )

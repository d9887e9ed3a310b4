"""Stage of evidence: what on a slide, and which genes and covariates, made the prediction."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.champions import champion_by_slide
from mm_assets.assets.compute import Compute
from mm_assets.assets.extremum import extremum_name
from mm_assets.assets.heec_inputs import heec_name
from mm_assets.assets.omics import CLINICAL, OMICS
from mm_assets.assets.slides import manifest_rows, markdown_image, open_local_slide
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    from mm_assets.explain.document import EvidenceDocument
    from mm_assets.wsi.slide import Slide

CROPS, TABLE_ROWS = 12, 10


def evidence_name(task: Task) -> str:
    """Asset name of a task's evidence."""
    return f"evidence_{task.name}"


def evidence_stage(config: CohortConfig, task: Task, evaluation: str) -> SlideStage:
    """`evidence_T`; follows the evaluation, which settles who is champion."""
    tables = (CLINICAL, *((OMICS,) if config.omics else ()))
    return SlideStage(
        outputs=(evidence_name(task),),
        upstream=("slide", extremum_name(task), heec_name(task), *tables),
        group="reports",
        after=(evaluation,),
        code_version="2",
        description="What the champion's prediction of the slide's patient rests on: JSON for "
        "a viewer, GeoJSON for QuPath, heat map and crops. Patients with an endpoint were seen "
        "by that model in training.",
        kinds=frozenset({"lightgbm", "geojson"}),
        compute=Compute(cpu=1, memory_gib=6, chunk=200),
        patient_upstream=(extremum_name(task),),
        sources=partial(champion_by_slide, task=task, asset=heec_name(task)),
        slides_at_once=2,
        isolated=True,
        worker=partial(_evidence_worker, task=task),
    )


@contextmanager
def _evidence_worker(workspace: Workspace, task: Task) -> Iterator[SlideWorker]:
    from mm_assets.assets.explainer import PatientExplainer

    rows = manifest_rows(workspace.config)
    explainer = PatientExplainer(workspace, task)

    def work(job: Job) -> Mapping[str, Produced]:
        row = rows[job.name]
        document = explainer.explain(row.patient_id)
        with open_local_slide(job, row) as slide:
            return {evidence_name(task): write_evidence(job, evidence_name(task), document, slide)}

    yield work


def write_evidence(job: Job, asset: str, document: "EvidenceDocument", slide: "Slide") -> Produced:
    """Store the parts of a slide's evidence."""
    import json

    from mm_assets.explain.crops import with_crops
    from mm_assets.explain.document import SlideFrame
    from mm_assets.explain.geojson import instance_features
    from mm_assets.explain.pictures import draw_evidence, png_bytes, small_picture, thumbnail

    found = document.on_slide(job.name)
    document, crops = with_crops(document, slide, job.name, CROPS)
    frame = SlideFrame(slide_id=job.name, width=slide.width, height=slide.height, mpp=slide.mpp)
    document = document.model_copy(update={"slide": frame})
    picture, downsample = thumbnail(slide)
    shapes = instance_features(found, slide.width, slide.height, document.towards)
    parts = {
        "json": document.to_json(),
        "geojson": json.dumps(shapes).encode(),
        "png": png_bytes(draw_evidence(picture, found, downsample)),
        **crops,
    }
    _forget_crops(job, asset)
    outputs = {part: _put(job, asset, part, data) for part, data in parts.items()}
    inline = markdown_image(small_picture(picture, found, downsample), job.name)
    return Produced(outputs, _shown(job, asset, document, inline))


def _put(job: Job, asset: str, part: str, data: bytes) -> str:
    """Write ``<slide>.<part>``; a part may have a dot, as crops have."""
    inner, _, extension = part.rpartition(".")
    name = f"{job.name}.{inner}" if inner else job.name
    ref = job.ref(asset, extension, name)
    return job.workspace.store.write_bytes(ref, data, job.provenance[asset])


def _forget_crops(job: Job, asset: str) -> None:
    """Remove the crops of an earlier version, which may have had more of them."""
    before = job.workspace.receipts.read(job.workspace.config.cohort, asset, job.name)
    for part in before.outputs if before else ():
        inner, _, extension = part.rpartition(".")
        if inner:
            job.workspace.store.delete(job.ref(asset, extension, f"{job.name}.{inner}"))


def _shown(job: Job, asset: str, document: "EvidenceDocument", picture: str) -> dict[str, Any]:
    """Metadata for the UI: the model, the strongest evidence, a small picture, files."""
    from mm_assets.explain.document import place_rows, table_rows

    store = job.workspace.store
    viewer = os.environ.get("MM_VIEWER_URL", "http://127.0.0.1:3001").rstrip("/")
    files = {part: store.address(job.ref(asset, part)) for part in ("json", "geojson", "png")}
    return {
        "patient_id": document.patient_id,
        "model": f"{document.model.name} version {document.model.version}",
        "weights": document.weights,
        "seen_in_training": document.seen_in_training,
        "towards": document.towards,
        "score": document.score or 0.0,
        "contributions are": document.meaning,
        "features": len(document.items),
        "places on this slide": len(document.on_slide(job.name)),
        "evidence": _table(table_rows(document.items[:TABLE_ROWS])),
        "places": _table(place_rows(document.on_slide(job.name)[:TABLE_ROWS])),
        "picture": dg.MetadataValue.md(picture),
        "viewer": dg.MetadataValue.url(
            f"{viewer}/{document.cohort}/slides/{job.name}?show={asset}"
        ),
        **{f"file {part}": dg.MetadataValue.path(path) for part, path in files.items()},
    }


def _table(rows: list[dict[str, Any]]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name) for name in (rows[0] if rows else ["nothing to show"])]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], dg.TableSchema(columns))

"""Stages from the raw file to tissue: `slide` and `tissue`."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.folders import mm_home
from mm_assets.resources.store import ArtefactRef
from mm_assets.wsi.errors import SlideError

if TYPE_CHECKING:
    from mm_assets.resources.receipts import Receipt
    from mm_assets.wsi.slide import Slide

SLIDE_CACHE = "cache/slides"
_SHOWN_FACTS = ("vendor", "width", "height", "mpp", "mpp_source", "patient_id", "sha256")


def slide_cache() -> Path:
    """Folder of local copies of slides that live in an object store."""
    return mm_home() / SLIDE_CACHE


@dataclass(frozen=True)
class ManifestRow:
    """A slide as the manifest has it; `mpp` is NaN where it says nothing."""

    path: str
    patient_id: str
    mpp: float


def manifest_rows(config: CohortConfig) -> dict[str, ManifestRow]:
    """Slide id -> its row of the manifest, in order of slide id."""
    from mm_assets.cohort.manifest import read_manifest

    assert config.slides is not None
    manifest, _ = read_manifest(config.slides)
    columns = (manifest[name].tolist() for name in ("path", "patient_id", "mpp"))
    rows = (ManifestRow(*values) for values in zip(*columns, strict=True))
    return dict(zip(manifest["slide_id"].tolist(), rows, strict=True))


def patient_slides(config: CohortConfig) -> dict[str, list[str]]:
    """Slide id -> all slides of its patient, itself included."""
    rows = manifest_rows(config)
    owned: dict[str, list[str]] = {}
    for slide, row in rows.items():
        owned.setdefault(row.patient_id, []).append(slide)
    return {slide: owned[row.patient_id] for slide, row in rows.items()}


def slide_sources(config: CohortConfig) -> dict[str, dict[str, str]]:
    """Slide id -> what identifies its file and its manifest entry without reading the pixels."""
    from mm_assets.cohort.sources import stamps

    rows = manifest_rows(config)
    stamp = stamps(row.path for row in rows.values())
    return {
        slide: {"file": stamp[row.path], "mpp": f"{row.mpp:g}", "patient": row.patient_id}
        for slide, row in rows.items()
    }


def _file_stamps(workspace: Workspace) -> dict[str, dict[str, str]]:
    return slide_sources(workspace.config)


def slide_stage(config: CohortConfig) -> SlideStage:
    """`slide`: the file is opened, checked and digested; de-identified facts are kept."""
    assert config.slides is not None
    return SlideStage(
        outputs=("slide",),
        upstream=(),
        group="imaging",
        code_version="1",
        description="A validated whole-slide image: digest, vendor, levels and resolution. "
        "Label, macro image and identifying header fields never leave the file.",
        kinds=frozenset({"openslide"}),
        compute=Compute(cpu=1, memory_gib=2, chunk=500),
        # Slides of cohorts that keep the default stay valid.
        parameters=config.slides.model_dump(include={"deidentify"}, exclude_defaults=True),
        sources=_file_stamps,
        slides_at_once=2,
        on_refresh=False,
        isolated=True,
        worker=_slide_worker,
    )


@contextmanager
def _slide_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    from mm_assets.cohort.cache import local_copy
    from mm_assets.wsi.findings import identifying_findings
    from mm_assets.wsi.inspection import inspect_slide, slide_digest

    assert workspace.config.slides is not None
    rows = manifest_rows(workspace.config)
    copied = workspace.config.slides.deidentify == "copy"

    def work(job: Job) -> Mapping[str, Produced]:
        row = rows[job.name]
        with (
            local_copy(row.path, slide_cache()) as path,
            named_by_id(workspace.config, job.name, path),
        ):
            return {"slide": make(job, row, path)}

    def make(job: Job, row: ManifestRow, path: Path) -> Produced:
        facts = inspect_slide(path, row.mpp)
        record = {**asdict(facts), "patient_id": row.patient_id, "sha256": slide_digest(path)}
        shown = {key: record[key] for key in _SHOWN_FACTS}
        shown["identifying_findings"] = len(identifying_findings(path))
        outputs = {}
        if copied:
            outputs = _write_copy(job, path, facts.vendor, row.patient_id)
            record["copy_sha256"] = next(iter(outputs.values())).removeprefix("sha256:")
            shown["identifying_findings_in_copy"] = 0
        outputs["json"] = job.workspace.store.write_bytes(
            job.ref("slide", "json"),
            json.dumps(record, sort_keys=True).encode(),
            job.provenance["slide"],
        )
        if facts.mpp_note:
            job.workspace.log.warning(f"{job.name}: {facts.mpp_note}")
            shown["mpp_note"] = facts.mpp_note
        return Produced(outputs, shown)

    yield work


@contextmanager
def named_by_id(config: CohortConfig, slide: str, path: Path) -> Iterator[None]:
    """Errors about slides that are rewritten call them by their id: a file's name may identify."""
    try:
        yield
    except SlideError as error:
        if config.slides is None or config.slides.deidentify == "none":
            raise
        raise SlideError(str(error).replace(path.name, slide)) from None


def _write_copy(job: Job, path: Path, vendor: str, patient: str) -> dict[str, str]:
    """The slide without what identifies, in the store; extension -> digest."""
    from mm_assets.wsi.deidentify import copy_extension, deidentify_slide

    extension = copy_extension(vendor)
    names = {path.stem, patient} - {job.name}
    digest = job.workspace.store.write_file(
        job.ref("slide", extension), lambda target: deidentify_slide(path, target, names)
    )
    return {extension: digest}


def open_local_slide(job: Job, row: ManifestRow) -> AbstractContextManager["Slide"]:
    """`open_taken_in` for the slide of a job."""
    return open_taken_in(job.workspace, job.upstream["slide"][job.name], row)


@contextmanager
def open_taken_in(workspace: Workspace, slide: "Receipt", row: ManifestRow) -> "Iterator[Slide]":
    """A slide opened for reading: its copy in the store if it has one, else its file.

    What lies in an object store is copied to the cache first.

    Parameters
    ----------
    slide
        Receipt of its `slide` asset.

    Raises
    ------
    SlideError
        When the cohort wants copies and the slide, taken in before it did, has none.
    """
    from mm_assets.cohort.cache import local_copy
    from mm_assets.wsi.slide import open_slide

    path, copies = row.path, set(slide.outputs) - {"json"}
    slides = workspace.config.slides
    if slides is not None and slides.deidentify == "copy" and not copies:
        raise SlideError(f"{slide.name} has no de-identified copy yet: run `mm materialize`")
    for extension in copies:
        ref = ArtefactRef(workspace.config.cohort, "slide", slide.name, extension)
        path = workspace.store.address(ref)
    with local_copy(path, slide_cache()) as local, open_slide(local, row.mpp) as slide_file:
        yield slide_file


def tissue_stage(config: CohortConfig) -> SlideStage:
    """`tissue`: where the tissue is, as polygons, with quality measures."""
    return SlideStage(
        outputs=("tissue",),
        upstream=("slide",),
        group="imaging",
        code_version="3",
        description="Tissue polygons (GeoJSON for QuPath), areas in mm², quality measures.",
        kinds=frozenset({"opencv"}),
        compute=Compute(cpu=1, memory_gib=4, chunk=500),
        slides_at_once=2,
        on_refresh=False,
        isolated=True,
        worker=_tissue_worker,
    )


@contextmanager
def _tissue_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    import cv2

    from mm_assets.wsi.outline import outline_png
    from mm_assets.wsi.tissue import find_tissue

    # Slides run side by side; OpenCV's own threads would spend CPU waiting for each other.
    cv2.setNumThreads(1)
    rows = manifest_rows(workspace.config)

    def work(job: Job) -> Mapping[str, Produced]:
        with open_local_slide(job, rows[job.name]) as slide:
            tissue = find_tissue(slide)
        outline = outline_png(tissue.thumbnail, tissue.mask)
        parts = {
            "geojson": json.dumps(tissue.polygons, sort_keys=True).encode(),
            "json": json.dumps(tissue.quality, sort_keys=True).encode(),
            "npz": _mask_bytes(tissue.mask, tissue.downsample),
            "png": outline,
        }
        outputs = {
            extension: job.workspace.store.write_bytes(
                job.ref("tissue", extension), data, job.provenance["tissue"]
            )
            for extension, data in parts.items()
        }
        picture = {"outline": dg.MetadataValue.md(markdown_image(outline, job.name))}
        return {"tissue": Produced(outputs, {**tissue.quality, **picture})}

    yield work


def _mask_bytes(mask: Any, downsample: int) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, mask=np.packbits(mask), shape=mask.shape, downsample=downsample)
    return buffer.getvalue()


def read_mask(job: Job) -> tuple[Any, int]:
    """Tissue mask of the job's slide, bool (rows, columns), and level-0 pixels per mask pixel."""
    import numpy as np

    data = np.load(io.BytesIO(job.workspace.store.read_bytes(job.ref("tissue", "npz"))))
    rows, columns = data["shape"]
    flat = np.unpackbits(data["mask"], count=rows * columns)
    return flat.reshape(rows, columns).astype(bool), int(data["downsample"])


def markdown_image(png: bytes, title: str) -> str:
    """A PNG as markdown that Dagster's UI shows inline."""
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"

"""Stage of nucleus graphs: nuclei found, measured and embedded, and which are neighbours."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.slides import manifest_rows, open_local_slide
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, TwoSteps, Workspace
from mm_assets.assets.tiles import plan_of
from mm_assets.cohort.config import CohortConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mm_assets.encoders.base import Encoder
    from mm_assets.wsi.slide import Slide
    from mm_assets.wsi.tiling import TilePlan

NUCLEI = "nucleus_graph"
# From fat and scars to the densest tumours.
PLAUSIBLE_PER_MM2 = (20, 25_000)


def nucleus_stage(config: CohortConfig) -> SlideStage:
    """`nucleus_graph`: nodes as a memory-mappable Arrow file, edges as Parquet."""
    assert config.nuclei is not None
    return SlideStage(
        outputs=(NUCLEI,),
        upstream=("slide", "tissue"),
        group="imaging",
        code_version="1",
        description="Nuclei with morphology in micrometres, embeddings of their 64 px "
        "neighbourhoods, and edges between neighbours.",
        kinds=frozenset({"pytorch", "arrow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=8, chunk=150),
        parameters={
            "nuclei": config.nuclei.model_dump(),
            "imaging": config.imaging.model_dump(exclude={"also", "region_px"}),
        },
        weights={NUCLEI: {"weights": config.imaging.weights}},
        on_refresh=False,
        isolated=True,
        worker=_nucleus_worker,
    )


@contextmanager
def _nucleus_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    import cv2

    from mm_assets.encoders.registry import load_encoder

    # Decoding and encoding have threads of their own.
    cv2.setNumThreads(1)
    imaging = workspace.config.imaging
    rows = manifest_rows(workspace.config)

    @cache
    def load() -> "Encoder":
        return load_encoder(imaging.encoder, imaging.weights)

    @contextmanager
    def prepare(job: Job) -> Iterator[Callable[[], Mapping[str, Produced]]]:
        with open_local_slide(job, rows[job.name]) as slide:
            plan, tissue = plan_of(job, slide)
            yield lambda: {NUCLEI: _find(job, slide, plan, tissue, load())}

    yield TwoSteps(prepare)


def _find(
    job: Job,
    slide: "Slide",
    plan: "TilePlan",
    tissue: "tuple[NDArray[np.bool_], int]",
    encoder: "Encoder",
) -> Produced:
    from mm_assets.nuclei.search import choose_tiles, find_nuclei

    settings = job.workspace.config.nuclei
    assert settings is not None
    tiles = choose_tiles(plan, settings.tiles)
    nodes, edges, area = find_nuclei(slide, plan, *tissue, encoder, tiles)
    shared = {
        "encoder": encoder.name,
        "weights": encoder.weights_id,
        "weights_sha256": encoder.weights_sha256,
        "precision": str(encoder.dtype),
    }
    store, provenance = job.workspace.store, job.provenance[NUCLEI]
    outputs = {
        "arrow": store.write_arrow(
            job.ref(NUCLEI, "arrow"), nodes.replace_schema_metadata(shared), provenance
        ),
        "parquet": store.write_table(job.ref(NUCLEI, "parquet"), edges.to_pandas(), provenance),
    }
    density = nodes.num_rows / area
    found = {"count": nodes.num_rows, "edges": edges.num_rows, "tiles": len(tiles)}
    low, high = PLAUSIBLE_PER_MM2
    if not low <= density <= high:
        job.workspace.log.warning(
            f"{job.name}: {density:.0f} nuclei a square millimetre, expected {low} to {high}: look "
            "at the stain and the focus of this slide"
        )
    return Produced(outputs, {**found, "per_mm2": round(density), **shared})

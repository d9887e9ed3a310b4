"""Stage of nucleus graphs: nuclei found, measured and embedded, and which are neighbours."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.slides import manifest_rows, open_local_slide, read_mask
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, TwoSteps, Workspace
from mm_assets.cohort.config import CohortConfig

if TYPE_CHECKING:
    from mm_assets.encoders.base import Encoder
    from mm_assets.wsi.slide import Slide

NUCLEI = "nucleus_graph"


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
        on_refresh=False,
        isolated=True,
        worker=_nucleus_worker,
    )


@contextmanager
def _nucleus_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    import cv2

    from mm_assets.encoders.registry import load_encoder
    from mm_assets.wsi.tiling import plan_tiles

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
            yield partial(compute, job, slide)

    def compute(job: Job, slide: "Slide") -> Mapping[str, Produced]:
        mask, downsample = read_mask(job)
        plan = plan_tiles(
            slide.width,
            slide.height,
            slide.mpp,
            mask,
            downsample,
            target_mpp=imaging.mpp,
            tile_px=imaging.tile_px,
            region_px=imaging.region_px,
            min_tissue=imaging.min_tissue,
        )
        return {NUCLEI: _find(job, slide, plan, mask, downsample, load())}

    yield TwoSteps(prepare)


def _find(job, slide, plan, mask, downsample, encoder):  # type: ignore[no-untyped-def]
    raise NotImplementedError

"""Stage of tile and region embeddings: one pass over the pixels of a slide for all of them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.slides import manifest_rows, open_local_slide, read_mask
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, TwoSteps, Workspace
from mm_assets.cohort.config import COHORT_WEIGHTS, CohortConfig, EncoderConfig
from mm_assets.cohort.folders import mm_home

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mm_assets.encoders.base import Encoder
    from mm_assets.wsi.slide import Slide
    from mm_assets.wsi.tiling import TilePlan

TILES, REGIONS = "tile_embeddings", "region_embeddings"
HIPT_TILES, HIPT = "tile_embeddings_hipt", "hipt_embeddings"
BATCHES = "cache/batches.json"


def tile_encoders(config: CohortConfig) -> dict[str, EncoderConfig]:
    """Asset of tile embeddings -> its encoder."""
    further: dict[str, EncoderConfig] = {
        f"{TILES}_{encoder.name}": encoder for encoder in config.imaging.also
    }
    if config.hipt is not None and config.hipt.tile_weights != COHORT_WEIGHTS:
        further[HIPT_TILES] = EncoderConfig(encoder="hipt", weights=config.hipt.tile_weights)
    return {TILES: config.imaging, **further}


def embedding_stage(config: CohortConfig) -> SlideStage:
    """`tile_embeddings`, `region_embeddings`, and `tile_embeddings_<name>` of further encoders."""
    encoders = {**tile_encoders(config), REGIONS: config.imaging}
    return SlideStage(
        outputs=(TILES, REGIONS, *(asset for asset in tile_encoders(config) if asset != TILES)),
        upstream=("slide", "tissue"),
        group="imaging",
        code_version="2",
        description="Embeddings of 256 px tiles and 4096 px regions, with level-0 coordinates, "
        "as memory-mappable Arrow files.",
        kinds=frozenset({"pytorch", "arrow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=16, chunk=200),
        parameters=config.imaging.model_dump(exclude={"encoder", "weights", "also"}),
        own_parameters={
            asset: encoder.model_dump(include={"encoder", "weights"})
            for asset, encoder in encoders.items()
        },
        weights={asset: {"weights": encoder.weights} for asset, encoder in encoders.items()},
        on_refresh=False,
        isolated=True,
        worker=_embedding_worker,
    )


def _embedding_worker(workspace: Workspace) -> AbstractContextManager[SlideWorker]:
    imaging = workspace.config.imaging
    return one_pass(workspace, {**tile_encoders(workspace.config), REGIONS: imaging})


@contextmanager
def one_pass(
    workspace: Workspace, configured: Mapping[str, EncoderConfig]
) -> Iterator[SlideWorker]:
    """Worker that feeds the encoders of the assets wanted from one pass over each slide.

    Parameters
    ----------
    configured
        Asset -> encoder.
    """
    from mm_assets.encoders.batch import with_best_batch
    from mm_assets.encoders.registry import load_encoder

    imaging = workspace.config.imaging
    rows = manifest_rows(workspace.config)

    @cache
    def load(name: str, weights: str) -> "Encoder":
        encoder = load_encoder(name, weights)
        return with_best_batch(encoder, imaging.tile_px, mm_home() / BATCHES)

    @contextmanager
    def prepare(job: Job) -> Iterator[Callable[[], Mapping[str, Produced]]]:
        with open_local_slide(job, rows[job.name]) as slide:
            plan, _ = plan_of(job, slide)
            # Asking for the reader compares it with OpenSlide: the device need not wait for that.
            reader = slide.reader_at(plan.tile_grid.size0 / plan.tile_grid.px)
            yield partial(compute, job, slide, reader, plan)

    def compute(job: Job, slide: "Slide", reader: str, plan: "TilePlan") -> Mapping[str, Produced]:
        encoders = {
            asset: load(encoder.encoder, encoder.weights)
            for asset, encoder in configured.items()
            if asset in job.provenance
        }
        return _embed(job, slide, reader, plan, encoders)

    yield TwoSteps(prepare)


def plan_of(job: Job, slide: "Slide") -> "tuple[TilePlan, tuple[NDArray[np.bool_], int]]":
    """Tiles of the job's slide, and the tissue mask behind them with its downsample."""
    tissue = read_mask(job)
    return _plan(job, slide.width, slide.height, slide.mpp, tissue), tissue


def stored_plan(job: Job) -> "TilePlan":
    """Tiles of the job's slide, without opening it."""
    facts = json.loads(job.workspace.store.read_bytes(job.ref("slide", "json")))
    return _plan(job, facts["width"], facts["height"], facts["mpp"], read_mask(job))


def _plan(
    job: Job, width: int, height: int, mpp: float, tissue: "tuple[NDArray[np.bool_], int]"
) -> "TilePlan":
    from mm_assets.wsi.tiling import plan_tiles

    imaging = job.workspace.config.imaging
    return plan_tiles(
        width,
        height,
        mpp,
        *tissue,
        target_mpp=imaging.mpp,
        tile_px=imaging.tile_px,
        region_px=imaging.region_px,
        min_tissue=imaging.min_tissue,
    )


def _embed(
    job: Job, slide: "Slide", reader: str, plan: "TilePlan", encoders: "dict[str, Encoder]"
) -> Mapping[str, Produced]:
    """One pass over the slide, and a stored table for every asset wanted."""
    from mm_assets.wsi.embed import embed_slide

    tables = embed_slide(
        slide,
        plan,
        tiles={asset: encoder for asset, encoder in encoders.items() if asset != REGIONS},
        regions={asset: encoder for asset, encoder in encoders.items() if asset == REGIONS},
    )
    produced = {}
    for asset, encoder in encoders.items():
        shared = {
            "reader": reader,
            "encoder": encoder.name,
            "weights": encoder.weights_id,
            "weights_sha256": encoder.weights_sha256,
            "precision": str(encoder.dtype),
        }
        table = tables[asset].replace_schema_metadata(shared)
        ref = job.ref(asset, "arrow")
        digest = job.workspace.store.write_arrow(ref, table, job.provenance[asset])
        produced[asset] = Produced({"arrow": digest}, {"count": table.num_rows, **shared})
    return produced

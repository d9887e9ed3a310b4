"""Stage of tile and region embeddings: one pass over the pixels of a slide for both."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mm_assets.assets.compute import Compute
from mm_assets.assets.slides import manifest_rows, open_local_slide, read_mask
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.cohort.config import CohortConfig

TILES, REGIONS = "tile_embeddings", "region_embeddings"


def embedding_stage(config: CohortConfig) -> SlideStage:
    """`tile_embeddings` and `region_embeddings`."""
    return SlideStage(
        outputs=(TILES, REGIONS),
        upstream=("slide", "tissue"),
        group="imaging",
        code_version="2",
        description="Embeddings of 256 px tiles and 4096 px regions, with level-0 coordinates, "
        "as memory-mappable Arrow files.",
        kinds=frozenset({"pytorch", "arrow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=16, chunk=200),
        parameters=config.imaging.model_dump(),
        on_refresh=False,
        worker=_embedding_worker,
    )


@contextmanager
def _embedding_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    from mm_assets.encoders.registry import load_encoder
    from mm_assets.wsi.embed import embed_slide
    from mm_assets.wsi.tiling import plan_tiles

    imaging = workspace.config.imaging
    rows = manifest_rows(workspace.config)
    encoder = load_encoder(imaging.encoder, imaging.weights)

    def work(job: Job) -> Mapping[str, Produced]:
        store = job.workspace.store
        mask, downsample = read_mask(job)
        with open_local_slide(job, rows[job.name]) as slide:
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
            made = embed_slide(
                slide,
                plan,
                encoder,
                with_tiles=TILES in job.provenance,
                with_regions=REGIONS in job.provenance,
            )
            reader = slide.reader
        shared: dict[str, str] = {
            "reader": reader,
            "encoder": encoder.name,
            "weights": encoder.weights_id,
            "weights_sha256": encoder.weights_sha256,
            "precision": str(encoder.dtype),
        }
        produced = {}
        for asset, table in ((TILES, made.tiles), (REGIONS, made.regions)):
            if asset in job.provenance:
                stamped = table.replace_schema_metadata(shared)
                digest = store.write_arrow(job.ref(asset, "arrow"), stamped, job.provenance[asset])
                produced[asset] = Produced({"arrow": digest}, {"count": table.num_rows, **shared})
        return produced

    yield work

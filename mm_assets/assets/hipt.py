"""Stage of HIPT's region embeddings: `hipt_embeddings`, from the tiles' in their places."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import HIPT_TILES
from mm_assets.cohort.config import CohortConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mm_assets.encoders.hipt import RegionEncoder

HIPT_REGIONS = "hipt_embeddings"


def hipt_stage(config: CohortConfig) -> SlideStage:
    """`hipt_embeddings`: 192 numbers a region that holds a kept tile."""
    assert config.hipt is not None
    return SlideStage(
        outputs=(HIPT_REGIONS,),
        upstream=("slide", HIPT_TILES),
        group="imaging",
        code_version="1",
        description="HIPT's embeddings of regions, each from those of its tiles in their places.",
        kinds=frozenset({"pytorch", "arrow"}),
        compute=Compute(gpu=1, cpu=2, memory_gib=8, chunk=250),
        parameters={
            "hipt": config.hipt.model_dump(),
            "imaging": config.imaging.model_dump(include={"mpp", "tile_px", "region_px"}),
        },
        on_refresh=False,
        worker=_hipt_worker,
    )


@contextmanager
def _hipt_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    from mm_assets.encoders.hipt import blank_token, load_region_encoder
    from mm_assets.encoders.registry import load_encoder

    hipt = workspace.config.hipt
    assert hipt is not None

    @cache
    def load() -> "tuple[RegionEncoder, NDArray[np.float16]]":
        return load_region_encoder(hipt.regions), blank_token(load_encoder("hipt", hipt.tiles))

    yield lambda job: {HIPT_REGIONS: _embed(job, *load())}


def _embed(job: Job, encoder: "RegionEncoder", blank: "NDArray[np.float16]") -> Produced:
    import numpy as np

    from mm_assets.encoders.hipt import place_tiles
    from mm_assets.wsi.embed import embedding_table
    from mm_assets.wsi.tiling import Grid

    store, imaging = job.workspace.store, job.workspace.config.imaging
    mpp = json.loads(store.read_bytes(job.ref("slide", "json")))["mpp"]
    tile_grid = Grid(imaging.tile_px, imaging.mpp, mpp)
    region_grid = Grid(imaging.region_px, imaging.mpp, mpp)
    tiles = store.read_arrow(job.ref(HIPT_TILES, "arrow"))
    corners = np.column_stack([tiles["x"].to_numpy(), tiles["y"].to_numpy()])
    places = np.rint(corners * mpp / (imaging.tile_px * imaging.mpp)).astype(np.int32)
    embeddings = tiles["embedding"].combine_chunks().flatten().to_numpy()
    regions, grids = place_tiles(
        embeddings.reshape(tiles.num_rows, -1), places, region_grid.px // tile_grid.px, blank
    )
    shared = {"weights": encoder.weights_id, "weights_sha256": encoder.weights_sha256}
    starts = np.array([[region_grid.position(index) for index in at] for at in regions.tolist()])
    table = embedding_table(
        encoder.encode(grids), starts.reshape(-1, 2).astype(np.int32), region_grid.size0
    ).replace_schema_metadata(shared)
    ref = job.ref(HIPT_REGIONS, "arrow")
    digest = store.write_arrow(ref, table, job.provenance[HIPT_REGIONS])
    return Produced({"arrow": digest}, {"count": table.num_rows, **shared})

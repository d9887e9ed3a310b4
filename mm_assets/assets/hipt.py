"""Stages of HIPT: `hipt_embeddings` of every slide and `hipt_T`, attention over its regions.

Tiles are embedded by ViT-256 in the pass over the pixels that feeds every encoder
(`tile_embeddings_hipt`), so regions need no pixels: ViT-4K reads the stored tokens.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.omics import CLINICAL, splits_name
from mm_assets.assets.porpoise import embeddings, train_network
from mm_assets.assets.stage import CohortStage, Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import HIPT, HIPT_TILES
from mm_assets.assets.trained_weights import (
    REGION_ENCODER,
    TILE_ENCODER,
    trains_regions,
    trains_tiles,
    weights_path,
)
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mm_assets.encoders.base import Encoder
    from mm_assets.encoders.hipt import RegionEncoder


def hipt_name(task: Task) -> str:
    """Asset name of the model over regions."""
    return f"hipt_{task.name}"


def region_stage(config: CohortConfig) -> SlideStage:
    """`hipt_embeddings`: one vector of 192 a region that holds tissue."""
    assert config.hipt is not None
    return SlideStage(
        outputs=(HIPT,),
        upstream=("slide", HIPT_TILES, *((REGION_ENCODER,) if trains_regions(config) else ())),
        group="imaging",
        code_version="1",
        description="HIPT embeddings of 4096 px regions, from the grid of their tiles' tokens; "
        "tiles without tissue count as white.",
        kinds=frozenset({"pytorch", "arrow"}),
        compute=Compute(gpu=1, cpu=2, memory_gib=4, chunk=190),
        parameters={
            "region_weights": config.hipt.region_weights,
            "region_px": config.imaging.region_px,
        },
        weights={HIPT: level_weights(config)},
        on_refresh=trains_regions(config) or trains_tiles(config),
        worker=_region_worker,
    )


def level_weights(config: CohortConfig) -> dict[str, str]:
    """Setting -> weights of either transformer."""
    assert config.hipt is not None
    return config.hipt.model_dump(include={"tile_weights", "region_weights"})


@contextmanager
def _region_worker(workspace: Workspace) -> Iterator[SlideWorker]:
    load = cache(partial(load_levels, workspace))

    def work(job: Job) -> Mapping[str, Produced]:
        return {HIPT: _embed(job, load())}

    yield work


@dataclass(frozen=True)
class Levels:
    """Both transformers, and the token of a tile without tissue."""

    tiles: "Encoder"
    regions: "RegionEncoder"
    white: "NDArray[np.float16]"


def load_levels(workspace: Workspace, device: str | None = None) -> Levels:
    """The transformers of the cohort."""
    from mm_assets.encoders.checkpoint import WeightsError
    from mm_assets.encoders.hipt import load_region_encoder, white_token
    from mm_assets.encoders.registry import load_encoder

    config = workspace.config
    assert config.hipt is not None
    given = config.hipt.tile_weights, config.hipt.region_weights
    tiles = load_encoder("hipt", weights_path(workspace, TILE_ENCODER, given[0]), device)
    regions = load_region_encoder(weights_path(workspace, REGION_ENCODER, given[1]), device)
    if regions.tile_dimension != tiles.dimension:
        raise WeightsError(
            f"hipt.region_weights reads tile tokens of length {regions.tile_dimension}, but "
            f"hipt.tile_weights makes {tiles.dimension}: give weights that were trained together"
        )
    return Levels(tiles, regions, white_token(tiles, config.imaging.tile_px))


def _embed(job: Job, levels: Levels) -> Produced:
    from mm_assets.encoders.hipt import token_grids
    from mm_assets.wsi.embed import embedding_table
    from mm_assets.wsi.tiling import Grid

    store, imaging = job.workspace.store, job.workspace.config.imaging
    tiles = store.read_arrow(job.ref(HIPT_TILES, "arrow"))
    mpp = json.loads(store.read_bytes(job.ref("slide", "json")))["mpp"]
    tile_grid = Grid(imaging.tile_px, imaging.mpp, mpp)
    region_grid = Grid(imaging.region_px, imaging.mpp, mpp)
    side = imaging.region_px // imaging.tile_px
    places = tile_grid.squares_at(tiles["x"].to_numpy(), tiles["y"].to_numpy())
    grids, regions = token_grids(embeddings(tiles), places, side, levels.white)
    encoder = levels.regions
    table = embedding_table(encoder.encode(grids), region_grid.corners(regions), region_grid.size0)
    made_of = job.upstream[HIPT_TILES][job.name].metadata
    shared = {
        "encoder": "hipt",
        "weights": f"{made_of['weights']} and {encoder.weights_id}",
        "weights_sha256": f"{made_of['weights_sha256']} {encoder.weights_sha256}",
    }
    ref, provenance = job.ref(HIPT, "arrow"), job.provenance[HIPT]
    digest = store.write_arrow(ref, table.replace_schema_metadata(shared), provenance)
    counts = {"count": table.num_rows, "tiles": tiles.num_rows}
    return Produced({"arrow": digest}, {**counts, **shared})


def hipt_stage(config: CohortConfig, task: Task) -> CohortStage:
    """`hipt_T`: the attention of PORPOISE's slide network, over regions in place of tiles."""
    assert config.hipt is not None
    settings = config.hipt
    name = hipt_name(task)
    return CohortStage(
        outputs=(name,),
        upstream=(CLINICAL, splits_name(task), HIPT),
        group="models",
        code_version="2",
        description="HIPT's last level: gated attention over all regions of a patient.",
        kinds=frozenset({"pytorch", "mlflow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=8),
        parameters={
            "task": task.model_dump(),
            "training": settings.model_dump(include={"epochs", "early_stopping"}),
            "preserve_sites": config.evaluation.preserve_sites,
        },
        elsewhere="training",
        run=lambda job: train_network(job, task, name, "amil", HIPT, settings),
    )

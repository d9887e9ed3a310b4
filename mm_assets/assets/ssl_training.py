"""What a pre-training of the cohort's encoders learns from, and how it is set up.

A training can be sent to other processes: it holds addresses of pictures, never pictures.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_assets.assets.omics import read_table, splits_name
from mm_assets.assets.porpoise import embeddings
from mm_assets.assets.slides import manifest_rows, open_taken_in
from mm_assets.assets.stage import Job, Workspace
from mm_assets.assets.tiles import HIPT_TILES, stored_plan
from mm_assets.assets.trained_weights import TILE_ENCODER, weights_path
from mm_assets.cohort.config import RegionDinoConfig, TileDinoConfig
from mm_assets.cohort.problems import CohortError, Problem
from mm_assets.resources.store import ArtefactRef

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mm_assets.ssl.stream import Source, Stream
    from mm_assets.ssl.training import DinoParameters, Epoch, Pretrained, Pretraining

# Pictures that are mixed: so many batches of them are in memory.
POOL_BATCHES = 16

Level = TileDinoConfig | RegionDinoConfig
OnEpoch = Callable[["Epoch"], None]
Setup = Callable[..., "Pretraining"]


@dataclass(frozen=True)
class LevelTraining:
    """Pictures and settings of the pre-training of one level.

    Attributes
    ----------
    setup
        Makes the training from settings, stream, parameters, and the rest of `Pretraining`'s
        arguments.
    """

    sources: "Sequence[Source]"
    level: Level
    seed: int
    setup: Setup

    def prepared(self, checkpoint: Path, *rest: Any) -> "Pretraining":
        """The training of one process."""
        from mm_assets.models.checkpoint import Checkpoint
        from mm_assets.ssl.stream import Stream
        from mm_assets.ssl.training import DinoParameters, pretraining_key

        level = self.level
        own = DinoParameters.__dataclass_fields__.keys() & type(level).model_fields.keys()
        parameters = DinoParameters(seed=self.seed, **level.model_dump(include=set(own)))
        pool = POOL_BATCHES * level.batch
        stream = Stream(self.sources, level.each, level.batch, pool, self.seed)
        kept = Checkpoint(checkpoint, pretraining_key(parameters, level))
        return self.setup(level, stream, parameters, kept, *rest)


class Part:
    """A process's part in a pre-training, for `run_together`; only the first tells of epochs.

    Parameters
    ----------
    checkpoint
        In a folder named by the versions of the data.
    """

    def __init__(self, training: LevelTraining, checkpoint: Path, told: OnEpoch | None) -> None:
        self._training, self._checkpoint, self._told = training, checkpoint, told

    def __call__(self, rank: int, world: int) -> "Pretrained":
        return self._training.prepared(self._checkpoint, self._told, rank, world).run()

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self._training, self._checkpoint, None)


def excluded_patients(job: Job) -> set[str]:
    """Test patients of the folds that pre-training must not see.

    Raises
    ------
    CohortError
        When there is no such fold.
    """
    config = job.workspace.config
    excluded: set[str] = set()
    for task in config.tasks:
        folds = config.ssl.exclude_folds.get(task.name, [])
        if folds:
            splits = read_table(job, splits_name(task))
            tests = splits[(splits["role"] == "test") & (splits["repeat"] == 0)]
            if absent := sorted(set(folds) - set(tests["fold"])):
                what = f"{task.name} has no folds {absent}: their patients would not be left out"
                fix = f"its folds are {sorted(set(tests['fold']))}, counted from 0"
                raise CohortError([Problem("ssl.exclude_folds", what, fix)])
            excluded |= set(tests.loc[tests["fold"].isin(folds), "patient_id"])
    return excluded


def tile_training(job: Job) -> LevelTraining:
    """Of ViT-256, on the kept tiles of all slides."""
    from mm_assets.ssl.tiles import SlideTiles
    from mm_assets.wsi.errors import SlideError

    config, rows = job.workspace.config, manifest_rows(job.workspace.config)
    sources = []
    for slide in _slides(job, "tissue"):
        of_slide = replace(job, name=slide)
        try:
            plan = stored_plan(of_slide)
        except SlideError as error:
            job.workspace.log.warning(f"{slide} is left out of the pre-training: {error}")
            continue
        taken_in = job.upstream["slide"][slide]
        opened = partial(open_taken_in, job.workspace, taken_in, rows[slide])
        sources.append(SlideTiles(slide, opened, plan))
    return LevelTraining(sources, config.ssl.tiles, config.evaluation.seed, set_up_tiles)


def region_training(job: Job) -> LevelTraining:
    """Of ViT-4K, on the grids of tile tokens of all slides."""
    from mm_assets.encoders.hipt import white_token
    from mm_assets.encoders.registry import load_encoder
    from mm_assets.ssl.regions import RegionGrids

    config = job.workspace.config
    assert config.hipt is not None
    weights = weights_path(job.workspace, TILE_ENCODER, config.hipt.tile_weights)
    white = white_token(load_encoder("hipt", weights), config.imaging.tile_px)
    side = config.imaging.region_px // config.imaging.tile_px
    sources = [
        RegionGrids.of(slide, partial(stored_tokens, job.workspace, slide), side, white)
        for slide in _slides(job, HIPT_TILES)
    ]
    return LevelTraining(sources, config.ssl.regions, config.evaluation.seed, set_up_regions)


def stored_tokens(
    workspace: Workspace, slide: str
) -> "tuple[NDArray[np.float16], NDArray[np.int32]]":
    """Tile tokens of a slide, shape [n, D], with column and row of each, shape [n, 2]."""
    from mm_assets.wsi.tiling import Grid

    config = workspace.config
    tiles = workspace.store.read_arrow(ArtefactRef(config.cohort, HIPT_TILES, slide, "arrow"))
    facts = workspace.store.read_bytes(ArtefactRef(config.cohort, "slide", slide, "json"))
    grid = Grid(config.imaging.tile_px, config.imaging.mpp, json.loads(facts)["mpp"])
    return embeddings(tiles), grid.squares_at(tiles["x"].to_numpy(), tiles["y"].to_numpy())


def _slides(job: Job, asset: str) -> list[str]:
    """Slides that have an asset and may be learned from."""
    rows, excluded = manifest_rows(job.workspace.config), excluded_patients(job)
    return [
        slide
        for slide in sorted(job.upstream[asset].keys() & job.upstream["slide"].keys())
        if slide in rows and rows[slide].patient_id not in excluded
    ]


def set_up_tiles(
    level: TileDinoConfig, stream: "Stream", parameters: "DinoParameters", *rest: Any
) -> "Pretraining":
    """Of ViT-256; `rest` as `Pretraining` takes it from its checkpoint on."""
    from mm_assets.encoders.vit import TileTransformer
    from mm_assets.ssl.crops import TileCrops
    from mm_assets.ssl.training import Pretraining, initialized

    network = initialized(partial(TileTransformer, level.width, level.depth), parameters.seed)
    crops = TileCrops(level.global_px, level.local_px, level.local, level.colour)
    return Pretraining(network, crops, stream, parameters, *rest)


def set_up_regions(
    level: RegionDinoConfig, stream: "Stream", parameters: "DinoParameters", *rest: Any
) -> "Pretraining":
    """Of ViT-4K, likewise."""
    from mm_assets.encoders.vit import RegionTransformer
    from mm_assets.ssl.crops import RegionCrops
    from mm_assets.ssl.training import Pretraining, initialized

    width = stream.shape[-1]
    network = initialized(
        partial(RegionTransformer, width, level.width, level.depth), parameters.seed
    )
    crops = RegionCrops(level.global_tiles, level.local_tiles, level.local)
    return Pretraining(network, crops, stream, parameters, *rest)

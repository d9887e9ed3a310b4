"""Attention of HIPT's three levels as one map: regions, their tiles, and 16 px of these.

The weight of a region in its patient is shared out among its tiles by the attention of the region's
class token, and that of a tile among its patches of 16 px likewise (Chen et al., CVPR 2022, show
the same weights level by level). Every place thereby holds its share of the patient's attention,
and the smallest places of any part of the slide add up to one.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mm_assets.encoders.base import Encoder
from mm_assets.encoders.hipt import RegionEncoder, tile_attention, token_grids
from mm_assets.explain.attention import Bag
from mm_assets.explain.document import Instance
from mm_assets.wsi.slide import Slide
from mm_assets.wsi.tiling import Grid

REGION, TILE, PATCH = "region", "tile", "patch"
MEANING = (
    "share of the attention paid to the patient: of a region by the last network, of its tiles by "
    "the region's class token, of 16 px by the tile's; tiles without tissue get none"
)


def tiles_of(
    regions: Sequence[Instance],
    tiles: Bag,
    grid: Grid,
    side: int,
    encoder: RegionEncoder,
    white: NDArray[np.float16],
) -> list[Instance]:
    """Tiles of some regions of one slide, ranks not yet given.

    Parameters
    ----------
    regions
        Instances of the slide.
    tiles
        All embedded tiles of the slide, tokens of ViT-256.
    grid
        Of the tiles.
    side
        Tiles along one side of a region.
    white
        Token of a tile without tissue, shape (384,).

    Raises
    ------
    ValueError
        When a region holds none of the tiles.
    """
    places = grid.squares_at(tiles.x, tiles.y)
    grids, owners = token_grids(tiles.embeddings, places, side, white)
    row_of = {tuple(owner): row for row, owner in enumerate(owners.tolist())}
    found = []
    for region in regions:
        corner = grid.squares_at(np.array([region.x]), np.array([region.y]))[0] // side
        if tuple(corner.tolist()) not in row_of:
            raise ValueError(
                f"the region at {region.x}, {region.y} of {region.slide_id} holds no embedded "
                "tile: materialize hipt_embeddings anew"
            )
        weights = encoder.attention(grids[row_of[tuple(corner.tolist())]])
        inside = np.flatnonzero((places // side == corner).all(axis=1))
        columns, rows = (places[inside] % side).T
        corners = np.stack([tiles.x[inside], tiles.y[inside]], axis=1)
        size0 = int(tiles.size0[inside[0]])
        found += _shares(region, TILE, corners, size0, weights[rows, columns])
    return found


def patches_of(tile: Instance, slide: Slide, tile_px: int, encoder: Encoder) -> list[Instance]:
    """Patches of 16 px of a tile, read from its slide once more; ranks not yet given."""
    pixels = slide.read(tile.x, tile.y, tile.size0, tile_px)
    weights = tile_attention(encoder, pixels)
    edge = tile.size0 / len(weights)
    rows, columns = np.divmod(np.arange(weights.size), len(weights))
    inside = np.rint(np.stack([columns, rows], axis=1) * edge).astype(int)
    corners = inside + np.array([tile.x, tile.y])
    return _shares(tile, PATCH, corners, math.ceil(edge - 1e-6), weights.ravel())


def composed(levels: Sequence[Instance], shared: Sequence[Instance]) -> tuple[Instance, ...]:
    """Instances of all levels, ranked by score.

    Parameters
    ----------
    shared
        Those of them whose score is shared out among smaller ones.
    """
    outer = {(each.slide_id, each.level, each.x, each.y) for each in shared}

    def order(each: Instance) -> tuple[float, str, str, int, int]:
        return -each.score, each.slide_id, each.level, each.y, each.x

    return tuple(
        each.model_copy(
            update={
                "rank": rank,
                "shared_out": (each.slide_id, each.level, each.x, each.y) in outer,
            }
        )
        for rank, each in enumerate(sorted(levels, key=order), start=1)
    )


def _shares(
    outer: Instance,
    level: str,
    corners: NDArray[np.integer],
    size0: int,
    weights: NDArray[np.float32],
) -> list[Instance]:
    """The score of an instance, shared out by weight among places inside it."""
    scores = outer.score * weights.astype(np.float64) / weights.sum(dtype=np.float64)
    return [
        Instance(rank=0, slide_id=outer.slide_id, level=level, x=x, y=y, size0=size0, score=score)
        for (x, y), score in zip(corners.tolist(), scores.tolist(), strict=True)
    ]

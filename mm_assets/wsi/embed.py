"""One pass over the pixels of a slide for tile and region embeddings.

Every tile of a kept region is read once. Kept tiles go to the encoder; every tile, kept or not,
is averaged into the picture of its region, which is encoded when its last row of tiles has passed.
Decoding runs in threads ahead of the encoder; memory holds a row of regions, whatever the slide.
"""

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.wsi.slide import Pixels, Slide
from mm_assets.wsi.tiling import TilePlan

if TYPE_CHECKING:
    from mm_assets.encoders.base import Encoder

BATCH = 32
WHITE = 255


@dataclass(frozen=True)
class SlideEmbeddings:
    """Tables with columns embedding (fixed_size_list<float16>), x, y and size0 (int32).

    x and y are the level-0 pixel of the top-left corner, size0 the edge in level-0 pixels; rows
    are in grid order, row by row.
    """

    tiles: pa.Table
    regions: pa.Table


_Rows = list[NDArray[np.float16]]


class _Batches:
    """Collects pictures, encodes a batch of them at a time and keeps order.

    Tiles and regions share batches: few slides have enough regions for a batch of their own.
    """

    def __init__(self, encoder: "Encoder", edge: int, size: int) -> None:
        self._encoder = encoder
        self._waiting = np.empty((size, edge, edge, 3), np.uint8)
        self._owners: list[_Rows] = []

    def add(self, picture: Pixels, owner: _Rows) -> None:
        """Queue a picture whose embedding is to be appended to `owner`."""
        self._waiting[len(self._owners)] = picture
        self._owners.append(owner)
        if len(self._owners) == len(self._waiting):
            self.flush()

    def flush(self) -> None:
        """Encode what waits."""
        embeddings = self._encoder.encode(self._waiting[: len(self._owners)])
        for owner, embedding in zip(self._owners, embeddings, strict=True):
            owner.append(embedding)
        self._owners.clear()


def embed_slide(
    slide: Slide,
    plan: TilePlan,
    encoder: "Encoder",
    batch_size: int = BATCH,
    *,
    with_tiles: bool = True,
    with_regions: bool = True,
) -> SlideEmbeddings:
    """Embed the tiles and regions of a plan.

    A region's picture is the region averaged to the size of a tile; what lies outside the slide
    is white.

    Parameters
    ----------
    batch_size
        Pictures handed to the encoder at once; results do not depend on it.
    with_tiles, with_regions
        Which of the two to make; the other table has no rows. Without regions only the kept tiles
        are read.

    Raises
    ------
    SlideError
        When the slide cannot be decoded.
    """
    tiles: _Rows = []
    regions: _Rows = []
    batches = _Batches(encoder, plan.tile_grid.px, batch_size)
    if with_regions:
        _embed_regions(slide, plan, batches, tiles if with_tiles else None, regions)
    elif with_tiles:
        with closing(_read(slide, plan, plan.tiles)) as pictures:
            for picture in pictures:
                batches.add(picture, tiles)
    batches.flush()
    dimension = encoder.dimension
    return SlideEmbeddings(
        _table(tiles, dimension, plan.tile_corners(), plan.tile_grid.size0),
        _table(regions, dimension, plan.region_corners(), plan.region_grid.size0),
    )


def _embed_regions(
    slide: Slide, plan: TilePlan, batches: _Batches, tiles: _Rows | None, regions: _Rows
) -> None:
    """Pass over all tiles of kept regions, a row of regions at a time."""
    edge = plan.tile_grid.px
    kept = {(int(column), int(row)) for column, row in plan.tiles}
    rows = [(row, plan.tiles_under(row)) for row in plan.region_rows()]
    with closing(_read(slide, plan, np.concatenate([under for _, under in rows]))) as pictures:
        for row_of_regions, under in rows:
            canvases = {
                (int(column), int(row)): np.full((edge, edge, 3), WHITE, np.uint8)
                for column, row in row_of_regions
            }
            for column, row in under.tolist():
                picture = next(pictures)
                if tiles is not None and (column, row) in kept:
                    batches.add(picture, tiles)
                _paste(canvases, plan.tiles_per_side, column, row, picture)
            for canvas in canvases.values():
                batches.add(canvas, regions)


def _read(slide: Slide, plan: TilePlan, squares: NDArray[np.int32]) -> Generator[Pixels]:
    """Pixels of tiles of the grid, given row by row, decoded ahead by threads."""
    grid = plan.tile_grid
    wanted: dict[int, list[int]] = {}
    for column, row in squares.tolist():
        wanted.setdefault(row, []).append(column)
    return slide.read_squares(
        [grid.position(column) for column in range(plan.columns)],
        [grid.position(row) for row in range(plan.rows)],
        grid.size0,
        grid.px,
        wanted,
        os.cpu_count() or 1,
    )


def _paste(
    canvases: dict[tuple[int, int], Pixels], side: int, column: int, row: int, picture: Pixels
) -> None:
    """Average a tile into its place in the picture of its region."""
    import cv2

    canvas = canvases[column // side, row // side]
    # Edges by rounding, so that a region of any number of tiles fills its picture without gaps.
    edges = np.rint(np.arange(side + 1) * (len(canvas) / side)).astype(int)
    left, right = edges[column % side], edges[column % side + 1]
    top, bottom = edges[row % side], edges[row % side + 1]
    size = (int(right - left), int(bottom - top))
    canvas[top:bottom, left:right] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _table(rows: _Rows, dimension: int, corners: NDArray[np.int32], size0: int) -> pa.Table:
    count = len(rows)
    flat = np.concatenate([np.empty(0, np.float16), *rows])
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat), dimension)
    return pa.table(
        {
            "embedding": values,
            "x": pa.array(corners[:count, 0], pa.int32()),
            "y": pa.array(corners[:count, 1], pa.int32()),
            "size0": pa.array(np.full(count, size0), pa.int32()),
        }
    )

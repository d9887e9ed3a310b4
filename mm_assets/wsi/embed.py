"""One pass over the pixels of a slide for the embeddings of tiles and regions.

Every tile of a kept region is read once, however many encoders want it. Kept tiles go to the
encoders; every tile, kept or not, is averaged into the picture of its region, which is encoded
when its last row of tiles has passed. Threads decode ahead, and one more computes a batch while
the next is filled; memory holds a row of regions, whatever the slide.
"""

import os
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.wsi.slide import Pixels, Slide
from mm_assets.wsi.tiling import TilePlan

if TYPE_CHECKING:
    from mm_assets.encoders.base import Encoder

BATCH = 64
# One is filled, one computed, one waits for the device.
BUFFERS = 3
WHITE = 255

Embeddings = NDArray[np.float16]


def embed_slide(
    slide: Slide,
    plan: TilePlan,
    tiles: "Mapping[str, Encoder]",
    regions: "Mapping[str, Encoder]",
    batch_size: int = BATCH,
) -> dict[str, pa.Table]:
    """Embed the tiles and regions of a plan.

    A region's picture is the region averaged to the size of a tile; what lies outside the slide
    is white.

    Parameters
    ----------
    tiles, regions
        Name -> encoder of the tiles, and of the regions. Without regions only the kept tiles are
        read.
    batch_size
        Pictures handed to an encoder at once; results do not depend on it.

    Returns
    -------
    Name -> table with columns embedding (fixed_size_list<float16>), x, y and size0 (int32): x and
    y are the level-0 pixel of the top-left corner, size0 the edge in level-0 pixels; rows are in
    grid order, row by row.

    Raises
    ------
    SlideError
        When the slide cannot be decoded.
    """
    device = ThreadPoolExecutor(1, "embed")

    def batches(encoders: "Mapping[str, Encoder]") -> dict[str, Batches]:
        edge = plan.tile_grid.px
        return {name: Batches(e, edge, batch_size, device) for name, e in encoders.items()}

    of_tiles, of_regions = batches(tiles), batches(regions)
    try:
        if regions:
            _read_regions(slide, plan, list(of_tiles.values()), list(of_regions.values()))
        else:
            _read_tiles(slide, plan, list(of_tiles.values()))
        tile_places = plan.tile_corners(), plan.tile_grid.size0
        region_places = plan.region_corners(), plan.region_grid.size0
        return {
            name: embedding_table(made.finish(), *tile_places) for name, made in of_tiles.items()
        } | {
            name: embedding_table(made.finish(), *region_places)
            for name, made in of_regions.items()
        }
    finally:
        device.shutdown(cancel_futures=True)


class Batches:
    """Collects pictures for an encoder; a batch is computed while the next one is filled."""

    def __init__(
        self, encoder: "Encoder", edge: int, size: int, device: ThreadPoolExecutor
    ) -> None:
        self._encoder, self._device = encoder, device
        size = max(size, encoder.pass_tiles)
        self._buffers = [np.empty((size, edge, edge, 3), np.uint8) for _ in range(BUFFERS)]
        self._running: deque[tuple[Future[Embeddings], Pixels]] = deque()
        self._made: list[Embeddings] = []
        self._filling, self._filled = self._buffers.pop(), 0

    def add(self, picture: Pixels) -> None:
        """Queue a picture."""
        self._filling[self._filled] = picture
        self._filled += 1
        if self._filled == len(self._filling):
            self._send()

    def finish(self) -> Embeddings:
        """Embeddings of all pictures in the order in which they came, float16 (n, dimension)."""
        if self._filled:
            self._send()
        while self._running:
            self._collect()
        return np.concatenate([np.empty((0, self._encoder.dimension), np.float16), *self._made])

    def _send(self) -> None:
        task = self._device.submit(self._encoder.encode, self._filling[: self._filled])
        self._running.append((task, self._filling))
        if not self._buffers:
            self._collect()
        self._filling, self._filled = self._buffers.pop(), 0

    def _collect(self) -> None:
        task, buffer = self._running.popleft()
        self._made.append(task.result())
        self._buffers.append(buffer)


def _read_tiles(slide: Slide, plan: TilePlan, batches: list[Batches]) -> None:
    """Pass over the kept tiles alone."""
    with closing(read_tiles(slide, plan, plan.tiles)) as pictures:
        for picture in pictures:
            _add(picture, batches)


def _read_regions(
    slide: Slide, plan: TilePlan, tiles: list[Batches], regions: list[Batches]
) -> None:
    """Pass over all tiles of kept regions, a row of regions at a time."""
    edge = plan.tile_grid.px
    kept = {(int(column), int(row)) for column, row in plan.tiles}
    rows = [(row, plan.tiles_under(row)) for row in plan.region_rows()]
    with closing(read_tiles(slide, plan, np.concatenate([u for _, u in rows]))) as pictures:
        for row_of_regions, under in rows:
            canvases = {
                (int(column), int(row)): np.full((edge, edge, 3), WHITE, np.uint8)
                for column, row in row_of_regions
            }
            for column, row in under.tolist():
                picture = next(pictures)
                if (column, row) in kept:
                    _add(picture, tiles)
                _paste(canvases, plan.tiles_per_side, column, row, picture)
            for canvas in canvases.values():
                _add(canvas, regions)


def _add(picture: Pixels, batches: list[Batches]) -> None:
    for each in batches:
        each.add(picture)


def read_tiles(slide: Slide, plan: TilePlan, squares: NDArray[np.int32]) -> Generator[Pixels]:
    """Pixels of tiles of the grid, given row by row, decoded ahead by threads.

    Parameters
    ----------
    squares
        Column and row of each, int32 (n, 2).

    Yields
    ------
    As of `Slide.read_squares`.
    """
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


def embedding_table(embeddings: Embeddings, corners: NDArray[np.int32], size0: int) -> pa.Table:
    """Table of `embed_slide` from float16 (n, D), int32 (n, 2) corners and the edge."""
    flat = pa.array(embeddings.ravel())
    values = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    return pa.table(
        {
            "embedding": values,
            "x": pa.array(corners[:, 0], pa.int32()),
            "y": pa.array(corners[:, 1], pa.int32()),
            "size0": pa.array(np.full(len(corners), size0), pa.int32()),
        }
    )

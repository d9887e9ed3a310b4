"""The nuclei of a slide: one pass over its tiles finds them, measures them and embeds their crops.

Tiles are read with a margin, wide enough that a nucleus on a border is found the same from either
side; it belongs to the tile in which it began. Memory holds one tile and a batch of crops.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.nuclei.detection import REACH_UM, haematoxylin_threshold, segment_nuclei
from mm_assets.nuclei.graph import neighbour_edges
from mm_assets.nuclei.morphology import MORPHOLOGY, measure_nuclei
from mm_assets.nuclei.stain import Pixels, stain_densities
from mm_assets.wsi.embed import BATCH, Batches
from mm_assets.wsi.slide import Slide
from mm_assets.wsi.tiling import TilePlan

if TYPE_CHECKING:
    from mm_assets.encoders.base import Encoder

CROP_PX = 64
# Tiles whose pixels set the slide's threshold.
SAMPLE = 8
# Two nuclei so near are one that two tiles found, where tiles do not begin at whole pixels.
_SAME_UM = 1.5
WHITE = 255


def choose_tiles(plan: TilePlan, most: int | None, seed: int = 0) -> NDArray[np.int32]:
    """Tiles in which to look for nuclei: all kept ones, or `most` of them drawn at random.

    Whole tiles are drawn, not nuclei, so that neighbours stay neighbours.

    Returns
    -------
    int32 (n, 2), column and row, row by row.
    """
    count = len(plan.tiles)
    if most is None or most >= count:
        return plan.tiles
    drawn = np.random.default_rng(seed).choice(count, most, replace=False)
    return plan.tiles[np.sort(drawn)]


def find_nuclei(
    slide: Slide,
    plan: TilePlan,
    tissue: NDArray[np.bool_],
    downsample: float,
    encoder: "Encoder",
    tiles: NDArray[np.int32],
) -> tuple[pa.Table, pa.Table, float]:
    """Nuclei of a slide and which of them are neighbours.

    Parameters
    ----------
    tissue, downsample
        Boolean (rows, columns); each of its pixels covers a level-0 square of that edge. Nuclei
        elsewhere (pen, glass) are left out.
    encoder
        Of the crops of 64 px at the resolution of the tiles, the nucleus in their middle.
    tiles
        Where to look, from `choose_tiles`.

    Returns
    -------
    nodes
        A row a nucleus, by y, then x: x, y (int32, level-0 pixel of the crop's top-left corner),
        size0 (int32, its edge in level-0 pixels), centroid_x, centroid_y (float32, level-0
        pixels), `MORPHOLOGY` (float32), embedding (fixed_size_list<float16>).
    edges
        As `neighbour_edges`; source and target are rows of the nodes.
    area
        Square millimetres that were searched.

    Raises
    ------
    SlideError
        When the slide cannot be decoded.
    """
    search = _Search(slide, plan, tiles)
    with ThreadPoolExecutor(1, "embed") as device:
        batches = Batches(encoder, CROP_PX, BATCH, device)
        found = []
        for nuclei, crops in search.nuclei():
            inside = _on_tissue(nuclei, tissue, downsample)
            found.append(nuclei[inside])
            for crop in crops[inside]:
                batches.add(crop)
        embeddings = batches.finish()
    table = pd.concat([_none(), *found], ignore_index=True)
    table, embeddings = _in_order(table, embeddings, slide.mpp)
    places = table[["centroid_x", "centroid_y"]].to_numpy(np.float64) * slide.mpp
    return _nodes(table, embeddings), neighbour_edges(places), search.area_mm2


class _Search:
    """A pass over tiles with a margin."""

    def __init__(self, slide: Slide, plan: TilePlan, tiles: NDArray[np.int32]) -> None:
        grid = plan.tile_grid
        self._slide, self._plan, self._tiles = slide, plan, tiles
        self._mpp, self._edge = grid.target_mpp, grid.px
        # A crop's half beside a nucleus that lies on the border.
        self._margin = max(round(REACH_UM / self._mpp), CROP_PX // 2 + round(10 / self._mpp))
        self._px = grid.px + 2 * self._margin
        self._scale = grid.target_mpp / slide.mpp
        self.area_mm2 = len(tiles) * (grid.px * self._mpp / 1000) ** 2

    def nuclei(self) -> Iterator[tuple[pd.DataFrame, Pixels]]:
        """Nuclei of one tile after the other, and their crops, uint8 (n, 64, 64, 3)."""
        at = np.unique(np.linspace(0, len(self._tiles) - 1, SAMPLE).round().astype(int))
        sample = [picture.copy() for _, picture in self._pictures(self._tiles[at])]
        threshold = haematoxylin_threshold(sample, self._mpp)
        for (column, row), picture in self._pictures(self._tiles):
            yield self._of_tile(column, row, picture, threshold)

    def _pictures(self, tiles: NDArray[np.int32]) -> Iterator[tuple[tuple[int, int], Pixels]]:
        wanted: dict[int, list[int]] = {}
        for column, row in tiles.tolist():
            wanted.setdefault(row, []).append(column)
        squares = self._slide.read_squares(
            [self._start(column) for column in range(self._plan.columns)],
            [self._start(row) for row in range(self._plan.rows)],
            round(self._px * self._scale),
            self._px,
            wanted,
            os.cpu_count() or 1,
        )
        with closing(squares):
            for (column, row), picture in zip(tiles.tolist(), squares, strict=True):
                yield (column, row), picture

    def _start(self, index: int) -> int:
        return self._plan.tile_grid.position(index) - round(self._margin * self._scale)

    def _of_tile(
        self, column: int, row: int, picture: Pixels, threshold: float
    ) -> tuple[pd.DataFrame, Pixels]:
        densities = stain_densities(picture)
        labels, seeds = segment_nuclei(picture, densities, self._mpp, threshold)
        low, high = self._margin, self._margin + self._edge
        own = np.concatenate([[False], ((seeds >= low) & (seeds < high)).all(axis=1)])
        nuclei = measure_nuclei(np.where(own[labels], labels, 0), densities, self._mpp)
        # A pixel's centre lies half a pixel from its corner.
        across, down = nuclei["column"].to_numpy() + 0.5, nuclei["row"].to_numpy() + 0.5
        crops = _crops(picture, across, down)
        nuclei = nuclei[list(MORPHOLOGY)].assign(
            centroid_x=(self._start(column) + across * self._scale).astype(np.float32),
            centroid_y=(self._start(row) + down * self._scale).astype(np.float32),
        )
        half = CROP_PX // 2
        nuclei["x"] = np.rint(self._start(column) + (np.rint(across) - half) * self._scale)
        nuclei["y"] = np.rint(self._start(row) + (np.rint(down) - half) * self._scale)
        nuclei["size0"] = round(CROP_PX * self._scale)
        return nuclei, crops


def _crops(picture: Pixels, across: NDArray[np.float64], down: NDArray[np.float64]) -> Pixels:
    half = CROP_PX // 2
    padded = np.pad(picture, ((half, half), (half, half), (0, 0)), constant_values=WHITE)
    corners = zip(np.rint(down).astype(int), np.rint(across).astype(int), strict=True)
    crops = [padded[y : y + CROP_PX, x : x + CROP_PX] for y, x in corners]
    return np.array(crops, np.uint8).reshape(-1, CROP_PX, CROP_PX, 3)


def _on_tissue(
    nuclei: pd.DataFrame, tissue: NDArray[np.bool_], downsample: float
) -> NDArray[np.bool_]:
    rows, columns = (
        np.clip((nuclei[name].to_numpy() / downsample).astype(int), 0, length - 1)
        for name, length in zip(("centroid_y", "centroid_x"), tissue.shape, strict=True)
    )
    return np.asarray(tissue[rows, columns])


def _in_order(
    table: pd.DataFrame, embeddings: NDArray[np.float16], mpp: float
) -> tuple[pd.DataFrame, NDArray[np.float16]]:
    """By y, then x, every nucleus once."""
    from scipy.spatial import cKDTree

    order = np.lexsort((table["x"], table["y"]))
    places = table[["centroid_x", "centroid_y"]].to_numpy(np.float64)[order]
    twice = (
        cKDTree(places).query_pairs(_SAME_UM / mpp, output_type="ndarray") if len(places) else ()
    )
    kept = np.ones(len(places), bool)
    kept[[later for _, later in twice]] = False
    chosen = order[kept]
    return table.iloc[chosen], embeddings[chosen]


def _none() -> pd.DataFrame:
    names = [*MORPHOLOGY, "centroid_x", "centroid_y", "x", "y", "size0"]
    return pd.DataFrame(columns=names, dtype=np.float32)


def _nodes(table: pd.DataFrame, embeddings: NDArray[np.float16]) -> pa.Table:
    whole = {name: pa.array(table[name].astype(np.int32)) for name in ("x", "y", "size0")}
    measured = {
        name: pa.array(table[name].to_numpy(np.float32))
        for name in ("centroid_x", "centroid_y", *MORPHOLOGY)
    }
    flat = pa.array(embeddings.ravel())
    vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    return pa.table({**whole, **measured, "embedding": vectors})

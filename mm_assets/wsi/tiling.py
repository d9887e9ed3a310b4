"""One global grid of tiles and regions over a slide, anchored at its top-left corner."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_assets.wsi.errors import SlideError

# Reading finer than was scanned invents detail; nominal "20x" scanners differ by less than this.
COARSEST_RATIO = 1.2


@dataclass(frozen=True)
class Grid:
    """Squares of `px` pixels at `target_mpp` on a slide scanned at `mpp`."""

    px: int
    target_mpp: float
    mpp: float

    def position(self, index: int) -> int:
        """Level-0 coordinate of the left (or top) edge of the index-th square."""
        return round(index * self.px * self.target_mpp / self.mpp)

    @property
    def size0(self) -> int:
        """Edge in level-0 pixels, rounded up so that neighbours leave no gap."""
        return math.ceil(self.px * self.target_mpp / self.mpp - 1e-6)

    def corners(self, squares: NDArray[np.int32]) -> NDArray[np.int32]:
        """Level-0 x and y of squares given by column and row, int32 (n, 2)."""
        corners = [(self.position(int(column)), self.position(int(row))) for column, row in squares]
        return np.array(corners, np.int32).reshape(-1, 2)

    def squares_at(self, x: NDArray[np.int32], y: NDArray[np.int32]) -> NDArray[np.int32]:
        """Column and row of the squares with these corners, int32 (n, 2)."""
        edge = self.px * self.target_mpp / self.mpp
        return np.rint(np.stack([x, y], axis=1) / edge).astype(np.int32)

    def count(self, length: int) -> int:
        """How many squares cover `length` level-0 pixels."""
        count = math.ceil(length * self.mpp / (self.px * self.target_mpp) - 1e-9)
        return count - 1 if self.position(count - 1) >= length else count


@dataclass(frozen=True)
class TilePlan:
    """Which tiles and regions of a slide to embed.

    Attributes
    ----------
    tile_grid, region_grid
        The grids; a region holds `tiles_per_side` squared tiles.
    tiles, regions
        int32 (N, 2): column and row in their grid of each kept one, row by row.
    tissue_fraction
        float32 (N,): share of each kept tile's area that is tissue.
    columns, rows
        Size of the tile grid that covers the slide.
    """

    tile_grid: Grid
    region_grid: Grid
    tiles: NDArray[np.int32]
    regions: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]
    columns: int
    rows: int

    @property
    def tiles_per_side(self) -> int:
        """Tiles along one side of a region."""
        return self.region_grid.px // self.tile_grid.px

    def tile_corners(self) -> NDArray[np.int32]:
        """Level-0 x and y of every kept tile, int32 (N, 2)."""
        return self.tile_grid.corners(self.tiles)

    def region_corners(self) -> NDArray[np.int32]:
        """Level-0 x and y of every kept region, int32 (R, 2)."""
        return self.region_grid.corners(self.regions)

    def region_rows(self) -> Iterator[NDArray[np.int32]]:
        """Kept regions of one row of regions at a time, int32 (n, 2) columns and rows."""
        for row in np.unique(self.regions[:, 1]):
            yield self.regions[self.regions[:, 1] == row]

    def tiles_under(self, regions: NDArray[np.int32]) -> NDArray[np.int32]:
        """All tiles of the slide in these regions, kept or not, int32 (n, 2), row by row."""
        side = self.tiles_per_side
        inside = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2)
        tiles = (regions[:, None, :] * side + inside[None]).reshape(-1, 2)
        tiles = tiles[(tiles[:, 0] < self.columns) & (tiles[:, 1] < self.rows)]
        return tiles[np.lexsort((tiles[:, 0], tiles[:, 1]))].astype(np.int32)


def plan_tiles(
    width: int,
    height: int,
    mpp: float,
    tissue_mask: NDArray[np.bool_],
    mask_downsample: float,
    target_mpp: float,
    tile_px: int,
    region_px: int,
    min_tissue: float,
) -> TilePlan:
    """Choose the tiles that hold enough tissue, and the regions that hold a chosen tile.

    Parameters
    ----------
    width, height, mpp
        Of level 0.
    tissue_mask, mask_downsample
        Boolean (rows, columns); each of its pixels covers a level-0 square of that edge.
    target_mpp, tile_px, region_px
        Resolution and sizes of the tiles and regions wanted; region_px is a multiple of tile_px.
    min_tissue
        Least share of a tile's area that is tissue; what lies outside the slide is not.

    Raises
    ------
    SlideError
        The slide was scanned too coarsely, or no tile holds enough tissue.
    ValueError
        The sizes do not fit each other.
    """
    if region_px % tile_px or region_px > tile_px * tile_px:
        raise ValueError(
            f"region_px must be a multiple of tile_px up to tile_px squared, got {region_px} "
            f"for {tile_px}"
        )
    if mpp > COARSEST_RATIO * target_mpp:
        raise SlideError(
            f"scanned at {mpp:g} um a pixel, too coarse for tiles at {target_mpp:g} um a pixel"
        )
    grid = Grid(tile_px, target_mpp, mpp)
    columns, rows = grid.count(width), grid.count(height)
    fraction = _tissue_fractions(tissue_mask, mask_downsample, grid, columns, rows)
    kept = np.argwhere(fraction >= min_tissue - 1e-9)
    if not len(kept):
        raise SlideError(
            f"no tile of {tile_px * target_mpp:g} um holds {min_tissue:.0%} tissue "
            f"(the best holds {fraction.max(initial=0):.0%})"
        )
    tiles = kept[:, ::-1].astype(np.int32)
    region_rows_columns = np.unique(kept // (region_px // tile_px), axis=0)
    return TilePlan(
        tile_grid=grid,
        region_grid=Grid(region_px, target_mpp, mpp),
        tiles=tiles,
        regions=region_rows_columns[:, ::-1].astype(np.int32),
        tissue_fraction=fraction[kept[:, 0], kept[:, 1]].astype(np.float32),
        columns=columns,
        rows=rows,
    )


def _tissue_fractions(
    mask: NDArray[np.bool_], downsample: float, grid: Grid, columns: int, rows: int
) -> NDArray[np.float64]:
    """Exact share of tissue in every tile, (rows, columns), from the mask's integral image."""
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    integral[1:, 1:] = mask.cumsum(0, dtype=float).cumsum(1)
    edges_x = np.array([grid.position(column) for column in range(columns)]) / downsample
    edges_y = np.array([grid.position(row) for row in range(rows)]) / downsample
    size = grid.size0 / downsample
    left, right = _columns_at(integral, edges_x), _columns_at(integral, edges_x + size)
    strips = (right - left).T
    area = _columns_at(strips, edges_y + size) - _columns_at(strips, edges_y)
    return area.T / size**2


def _columns_at(table: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns of a table at fractional places, linearly interpolated, clamped to its ends."""
    at = np.clip(at, 0, table.shape[1] - 1)
    before = np.minimum(at.astype(int), table.shape[1] - 2)
    weight = at - before
    return table[:, before] * (1 - weight) + table[:, before + 1] * weight

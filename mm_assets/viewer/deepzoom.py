"""Deep zoom: any tile of any zoom level of a slide, as JPEG.

Level L halves the slide (highest - L) times, as in Microsoft's Deep Zoom; the highest level is the
slide itself and level 0 is one pixel. Tiles do not overlap.
"""

import math
from dataclasses import dataclass
from threading import Lock

import numpy as np

from mm_assets.wsi.slide import Pixels, Slide

TILE_PX = 256
# Beyond so many pixels of the slide's level for one of a tile, tiles come from the overview.
_MOST_REDUCTION = 8
_OVERVIEW_PX = 4096
_QUALITY = 85


@dataclass(frozen=True)
class Geometry:
    """Sizes of the zoom levels of a slide of `width` x `height` pixels."""

    width: int
    height: int

    @property
    def highest(self) -> int:
        """The level of full resolution."""
        return (max(self.width, self.height) - 1).bit_length()

    def downsample(self, level: int) -> int:
        """Slide pixels along the edge of a pixel of the level."""
        return 1 << (self.highest - level)

    def size(self, level: int) -> tuple[int, int]:
        """Width and height of the level, pixels."""
        step = self.downsample(level)
        return math.ceil(self.width / step), math.ceil(self.height / step)

    def tile_size(self, level: int, column: int, row: int) -> tuple[int, int]:
        """Width and height of a tile; smaller at the right and lower edge.

        Raises
        ------
        KeyError
            When the level has no such tile, or there is no such level.
        """
        if not 0 <= level <= self.highest:
            raise KeyError(f"there are levels 0 to {self.highest}")
        width, height = self.size(level)
        inside = (width - column * TILE_PX, height - row * TILE_PX)
        if min(column, row, inside[0] - 1, inside[1] - 1) < 0:
            raise KeyError(f"level {level} has {width} x {height} pixels")
        return min(inside[0], TILE_PX), min(inside[1], TILE_PX)


class DeepZoom:
    """Tiles of an open slide, for several threads at once."""

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self.geometry = Geometry(slide.width, slide.height)
        self._overview: tuple[Pixels, int] | None = None
        self._making = Lock()

    def tile(self, level: int, column: int, row: int) -> bytes:
        """JPEG of a tile.

        Raises
        ------
        KeyError
            When there is no such tile.
        SlideError
            When its pixels cannot be decoded.
        """
        import cv2

        width, height = self.geometry.tile_size(level, column, row)
        pixels = self._pixels(level, column, row)[:height, :width]
        quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
        return bytes(cv2.imencode(".jpg", pixels[..., ::-1], quality)[1])

    def _pixels(self, level: int, column: int, row: int) -> Pixels:
        step = self.geometry.downsample(level)
        finest = max(d for _, _, d in self._slide.levels if d <= max(step, 1) * 1.01)
        x0, y0, size0 = column * TILE_PX * step, row * TILE_PX * step, TILE_PX * step
        if step > _MOST_REDUCTION * finest:
            return self._from_overview(x0, y0, size0)
        return self._slide.read(x0, y0, size0, TILE_PX)

    def _from_overview(self, x0: int, y0: int, size0: int) -> Pixels:
        import cv2

        with self._making:
            if self._overview is None:
                longest = max(self.geometry.width, self.geometry.height)
                self._overview = self._slide.overview(longest / _OVERVIEW_PX * self._slide.mpp)
        picture, downsample = self._overview
        edge = max(1, round(size0 / downsample))
        left, top = round(x0 / downsample), round(y0 / downsample)
        part = picture[top : top + edge, left : left + edge]
        square = np.full((edge, edge, 3), 255, np.uint8)
        square[: part.shape[0], : part.shape[1]] = part
        return np.asarray(
            cv2.resize(square, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA), np.uint8
        )

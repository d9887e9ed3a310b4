"""Tiles of a slide as a source of pictures, decoded whenever an epoch wants them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mm_assets.ssl.stream import Pictures
from mm_assets.wsi.embed import read_tiles
from mm_assets.wsi.slide import Slide
from mm_assets.wsi.tiling import TilePlan


@dataclass(frozen=True)
class SlideTiles:
    """Kept tiles of a slide, uint8 (px, px, 3).

    Attributes
    ----------
    open
        Opens the slide; picklable where several processes train.
    """

    name: str
    open: Callable[[], AbstractContextManager[Slide]]
    plan: TilePlan

    def __len__(self) -> int:
        return len(self.plan.tiles)

    def read(self, chosen: NDArray[np.int64]) -> Iterator[Pictures]:
        """As of `mm_assets.ssl.stream.Source`."""
        with (
            self.open() as slide,
            closing(read_tiles(slide, self.plan, self.plan.tiles[chosen])) as pictures,
        ):
            for picture in pictures:
                yield picture.copy()  # The reader uses its buffers again.

"""Grids of tile tokens of a slide as a source of pictures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mm_assets.encoders.hipt import token_grids
from mm_assets.ssl.stream import Pictures

Tokens = tuple[NDArray[np.float16], NDArray[np.int32]]


@dataclass(frozen=True)
class RegionGrids:
    """Regions that hold a tile, float16 (side, side, D).

    Attributes
    ----------
    load
        Tile tokens (n, D) with column and row of each (n, 2); picklable where several processes
        train.
    count
        Regions.
    side
        Tiles along one side of a region.
    empty
        Token of a white tile, shape (D,).
    """

    name: str
    load: Callable[[], Tokens]
    count: int
    side: int
    empty: NDArray[np.float16]

    @classmethod
    def of(
        cls, name: str, load: Callable[[], Tokens], side: int, empty: NDArray[np.float16]
    ) -> Self:
        """The regions of a slide, counted."""
        _, places = load()
        return cls(name, load, len(np.unique(places // side, axis=0)), side, empty)

    def __len__(self) -> int:
        return self.count

    def read(self, chosen: NDArray[np.int64]) -> Iterator[Pictures]:
        """As of `mm_assets.ssl.stream.Source`."""
        tokens, places = self.load()
        grids, _ = token_grids(tokens, places, self.side, self.empty)
        yield from grids[chosen]

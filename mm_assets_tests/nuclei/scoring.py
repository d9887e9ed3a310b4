"""Found nuclei against planted ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

NEIGHBOURS = 5


@dataclass(frozen=True)
class Agreement:
    """One-to-one matches within a distance."""

    matched: int
    found: int
    planted: int

    @property
    def f1(self) -> float:
        return 2 * self.matched / max(1, self.found + self.planted)


def match(found: NDArray[np.float64], planted: NDArray[np.float64], within: float) -> Agreement:
    """Match points to points, nearest pairs first; all (n, 2) and `within` in one unit."""
    if not len(found) or not len(planted):
        return Agreement(0, len(found), len(planted))
    near, whom = cKDTree(planted).query(found, k=NEIGHBOURS, distance_upper_bound=within)
    taken, given = set(), set()
    for at in np.argsort(near, axis=None):
        one, neighbour = divmod(int(at), NEIGHBOURS)
        if not np.isfinite(near[one, neighbour]):
            break
        other = int(whom[one, neighbour])
        if one not in taken and other not in given:
            taken.add(one)
            given.add(other)
    return Agreement(len(taken), len(found), len(planted))

"""Which nuclei are neighbours: the Delaunay triangulation without its long edges.

Unlike a fixed number of neighbours it has no setting but the length, gives about six edges a
nucleus whatever their density, and is symmetric.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LONGEST_UM = 30.0


def neighbour_edges(centroids: NDArray[np.float64], longest: float = LONGEST_UM) -> pa.Table:
    """Edges between neighbouring nuclei.

    Parameters
    ----------
    centroids
        (n, 2), micrometres.
    longest
        Longest edge kept, micrometres.

    Returns
    -------
    Columns source and target (int32, source < target, each edge once, sorted) and length_um
    (float32).
    """
    pairs = _pairs(np.asarray(centroids, float).reshape(-1, 2))
    lengths = np.linalg.norm(centroids[pairs[:, 0]] - centroids[pairs[:, 1]], axis=1)
    pairs, lengths = pairs[lengths <= longest], lengths[lengths <= longest]
    return pa.table(
        {
            "source": pa.array(pairs[:, 0], pa.int32()),
            "target": pa.array(pairs[:, 1], pa.int32()),
            "length_um": pa.array(lengths, pa.float32()),
        }
    )


def _pairs(points: NDArray[np.float64]) -> NDArray[np.int64]:
    from scipy.spatial import Delaunay, QhullError

    if len(points) < 2:
        return np.empty((0, 2), np.int64)
    try:
        corners = Delaunay(points).simplices
    except QhullError:
        # Too few points, or all on a line: along it, each is next to the one before.
        order = np.lexsort(points.T[::-1])
        pairs = np.stack([order[:-1], order[1:]], axis=1)
    else:
        pairs = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [0, 2]]])
    return np.unique(np.sort(pairs, axis=1), axis=0)

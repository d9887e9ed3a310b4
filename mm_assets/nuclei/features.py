"""What a graph network reads of a nucleus: standardized morphology and a reduced embedding.

Both are fitted on nuclei of training patients. The reduction is principal components (no outcome
is read); components are scaled by the first one's spread, so that noise is not blown up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float32]
PLACE = ("x", "y", "size0", "centroid_x", "centroid_y")
EMBEDDING = "embedding"
LIMIT = 5.0  # standard deviations; merged blobs reach areas far beyond a nucleus
CHUNK_ROWS = 8192


@dataclass(frozen=True)
class Nuclei:
    """Raw features of n nuclei.

    Attributes
    ----------
    morphology
        float32, shape [n, M]; NaN where not measured.
    embedding
        float16 or float32, shape [n, D].
    """

    morphology: Floats
    embedding: NDArray[Any]

    def __len__(self) -> int:
        return len(self.morphology)

    def rows(self, chosen: NDArray[np.int64]) -> "Nuclei":
        """Some of the nuclei."""
        return Nuclei(self.morphology[chosen], self.embedding[chosen])


def morphology_columns(nodes: pa.Table) -> tuple[str, ...]:
    """Columns that measure a nucleus: all but its place and its embedding."""
    return tuple(name for name in nodes.column_names if name not in (*PLACE, EMBEDDING))


def read_nuclei(nodes: pa.Table, columns: Sequence[str], rows: NDArray[np.int64]) -> Nuclei:
    """Some rows of a node table; of a memory-mapped table only these are read.

    Raises
    ------
    ValueError
        If the table lacks columns.
    """
    absent = [name for name in (*columns, EMBEDDING) if name not in nodes.column_names]
    if absent:
        raise ValueError(f"the nucleus graph has no column {', '.join(absent)}: compute it anew")
    measured = [nodes.column(name).to_numpy()[rows] for name in columns]
    embedding = nodes.column(EMBEDDING).combine_chunks()
    dimension = embedding.type.list_size
    values = embedding.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
    morphology = np.stack(measured, axis=1) if measured else np.empty((len(rows), 0))
    return Nuclei(morphology.astype(np.float32), values[rows])


@dataclass(frozen=True)
class NodeFeatures:
    """Fitted standardization and reduction.

    Attributes
    ----------
    columns
        Morphology columns, M of them.
    centre, scale
        Mean and standard deviation of each, shape [M].
    mean, components
        Mean embedding [D] and principal directions divided by the spread of the first, [C, D].
    """

    columns: tuple[str, ...]
    centre: Floats
    scale: Floats
    mean: Floats
    components: Floats

    @classmethod
    def fit(cls, nuclei: Nuclei, columns: tuple[str, ...], components: int) -> "NodeFeatures":
        """Fit on nuclei of training patients.

        Parameters
        ----------
        components
            Principal components kept at most.
        """
        from sklearn.decomposition import PCA

        morphology = nuclei.morphology.astype(np.float64)
        known = np.isfinite(morphology)
        count = np.maximum(known.sum(axis=0), 1)
        centre = np.where(known, morphology, 0).sum(axis=0) / count
        spread = np.sqrt(np.where(known, (morphology - centre) ** 2, 0).sum(axis=0) / count)
        embedding = nuclei.embedding.astype(np.float32)
        kept = min(components, *embedding.shape)
        reduction = PCA(kept, svd_solver="covariance_eigh").fit(embedding)
        largest = np.sqrt(reduction.explained_variance_[:1].sum())
        return cls(
            columns,
            centre.astype(np.float32),
            np.where(spread > 0, spread, 1).astype(np.float32),
            reduction.mean_.astype(np.float32),
            (reduction.components_ / (largest if largest > 0 else 1)).astype(np.float32),
        )

    @property
    def width(self) -> int:
        """Features of a nucleus, M + C."""
        return len(self.columns) + len(self.components)

    def transform(self, nuclei: Nuclei) -> Floats:
        """Features of nuclei, float32, shape [n, M + C]; what was not measured is average, 0."""
        features = np.empty((len(nuclei), self.width), np.float32)
        for start in range(0, len(nuclei), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            centred = nuclei.embedding[rows].astype(np.float32) - self.mean
            standard = (nuclei.morphology[rows] - self.centre) / self.scale
            features[rows] = np.hstack([standard, centred @ self.components.T])
        return np.clip(np.nan_to_num(features, nan=0.0), -LIMIT, LIMIT)

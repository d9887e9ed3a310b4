"""Subgraphs to train on: compact windows of neighbouring nuclei, drawn at random.

Windows are leaves of a k-d tree over the centroids: disjoint, of nearly equal numbers of nuclei
and with most of their edges inside. They are read once and hold raw features, so that every fold
can standardize them on its own training patients.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.nuclei.features import EMBEDDING, Nuclei, morphology_columns, read_nuclei

Rows = NDArray[np.int64]
Graph = tuple[pa.Table, pa.Table]
Layout = tuple[tuple[str, ...], int]  # morphology columns and length of an embedding


@dataclass(frozen=True)
class Windows:
    """Windows of one patient's slides.

    Attributes
    ----------
    columns
        Names of the nuclei's morphology columns.
    nuclei
        Raw features of the n nuclei.
    edges
        Both directions of every edge inside a window, shape [2, e].
    window
        Number of the window of each nucleus, ascending, shape [n].
    """

    columns: tuple[str, ...]
    nuclei: Nuclei
    edges: Rows
    window: Rows


def both_directions(edges: pa.Table) -> Rows:
    """Every edge of a graph in both directions, int64, shape [2, 2 e]."""
    source, target = (edges.column(name).to_numpy() for name in ("source", "target"))
    one_way = np.stack([source, target]).astype(np.int64)
    return np.hstack([one_way, one_way[::-1]])


def draw_windows(
    graphs: Mapping[str, Graph], manifest: pd.DataFrame, nuclei: int, window: int, seed: int
) -> dict[str, Windows]:
    """Windows of every patient who has a graph with nuclei.

    What a patient gets does not depend on which other patients there are.

    Parameters
    ----------
    graphs
        Node and edge table by slide id.
    manifest
        Columns slide_id and patient_id; slides that `graphs` lacks are left out.
    nuclei
        Nuclei a patient, about, shared evenly by the patient's slides.
    window
        Nuclei a window at most.

    Raises
    ------
    ValueError
        If a slide lacks morphology columns of the others, or its embeddings are of another length.
    """
    have = manifest[manifest["slide_id"].isin(list(graphs))].sort_values("slide_id")
    drawn: dict[str, Windows] = {}
    layout: Layout | None = None
    for patient, slides in have.groupby("patient_id")["slide_id"]:
        parts = []
        for slide in slides:
            nodes, edges = graphs[slide]
            if not nodes.num_rows:
                continue
            layout = layout or _layout(nodes)
            _same_layout(slide, nodes, layout)
            rng = np.random.default_rng([seed, zlib.crc32(str(slide).encode())])
            number = max(1, round(nuclei / len(slides) / window))
            parts.append(_of_slide(nodes, edges, layout[0], number, window, rng))
        if parts:
            drawn[str(patient)] = _join(parts)
    return drawn


def choose_windows(windows: Windows, share: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Nuclei (rows, shape [m]) and edges between them [2, e] of a random share of the windows."""
    number = int(windows.window[-1]) + 1
    chosen = rng.permutation(number)[: max(1, round(share * number))]
    keep = np.isin(windows.window, chosen)
    return np.flatnonzero(keep), _induced(windows.edges, keep)


def _layout(nodes: pa.Table) -> Layout:
    return morphology_columns(nodes), nodes.schema.field(EMBEDDING).type.list_size


def _same_layout(slide: str, nodes: pa.Table, layout: Layout) -> None:
    columns, dimension = _layout(nodes)
    if (sorted(columns), dimension) != (sorted(layout[0]), layout[1]):
        raise ValueError(
            f"{slide}: its nucleus graph has {len(columns)} measures and embeddings of length "
            f"{dimension}, others have {len(layout[0])} and {layout[1]}: compute it anew"
        )


def _of_slide(
    nodes: pa.Table,
    edges: pa.Table,
    columns: tuple[str, ...],
    number: int,
    size: int,
    rng: np.random.Generator,
) -> Windows:
    leaves = _leaves(nodes, size)
    chosen = [np.sort(leaves[leaf]) for leaf in sorted(rng.permutation(len(leaves))[:number])]
    rows = np.concatenate(chosen)
    window = np.full(nodes.num_rows, -1)
    window[rows] = np.repeat(np.arange(len(chosen)), [len(leaf) for leaf in chosen])
    place = np.zeros(nodes.num_rows, np.int64)
    place[rows] = np.arange(len(rows))
    ends = both_directions(edges)
    inside = (window[ends[0]] >= 0) & (window[ends[0]] == window[ends[1]])
    nuclei = read_nuclei(nodes, columns, rows)
    return Windows(columns, nuclei, place[ends[:, inside]], window[rows])


def _leaves(nodes: pa.Table, size: int) -> list[Rows]:
    """Rows of each leaf of a k-d tree with at most `size` nuclei a leaf."""
    from scipy.spatial import cKDTree

    centres = [nodes.column(name).to_numpy() for name in ("centroid_x", "centroid_y")]
    waiting = [cKDTree(np.stack(centres, axis=1), leafsize=size).tree]
    leaves = []
    while waiting:
        node = waiting.pop()
        if node.split_dim == -1:
            leaves.append(node.indices.astype(np.int64))
        else:
            waiting += [node.greater, node.lesser]
    return leaves


def _join(parts: Sequence[Windows]) -> Windows:
    """Windows of several slides as one."""
    nodes = np.cumsum([0, *(len(part.nuclei) for part in parts)])
    windows = np.cumsum([0, *(part.window[-1] + 1 for part in parts)])
    return Windows(
        parts[0].columns,
        join_nuclei([part.nuclei for part in parts]),
        np.hstack([part.edges + start for part, start in zip(parts, nodes[:-1], strict=True)]),
        np.concatenate([p.window + start for p, start in zip(parts, windows[:-1], strict=True)]),
    )


def join_nuclei(parts: Sequence[Nuclei]) -> Nuclei:
    """Nuclei of several places, in order."""
    return Nuclei(
        np.concatenate([part.morphology for part in parts]),
        np.concatenate([part.embedding for part in parts]),
    )


def _induced(edges: Rows, keep: NDArray[np.bool_]) -> Rows:
    """Edges between kept nodes, in the kept nodes' new numbers."""
    place = np.cumsum(keep) - 1
    return place[edges[:, keep[edges[0]] & keep[edges[1]]]]

"""Stage of extremum vectors: the smallest and largest value of each dimension, and where."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.nuclei import NUCLEI
from mm_assets.assets.nucleus_gnn import nucleus_gnn_name
from mm_assets.assets.selection import tile_scorer_name
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import REGIONS, TILES
from mm_assets.cohort.config import CohortConfig, Task
from mm_assets.resources.store import COHORT, ArtefactRef

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

    from mm_assets.models.tile_scorers import TileScorer
    from mm_assets.nuclei.gnn import NucleusGnn

ROWS = 8192


def extremum_name(task: Task) -> str:
    """Asset name of a task's extremum vectors."""
    return f"extremum_vectors_{task.name}"


def selects(config: CohortConfig) -> bool:
    """Whether there is a selection of tiles or nuclei."""
    return config.selection.method != "none" or config.nuclei is not None


def extremum_stage(config: CohortConfig, task: Task) -> SlideStage:
    """`extremum_vectors_T`: over all instances, and over those that each fold's selection keeps."""
    scorers = (tile_scorer_name(task),) if config.selection.method != "none" else ()
    nuclei = (NUCLEI, nucleus_gnn_name(task)) if config.nuclei is not None else ()
    return SlideStage(
        outputs=(extremum_name(task),),
        upstream=(TILES, REGIONS, *scorers, *nuclei),
        group="models",
        code_version="2",
        description="Per embedding dimension and level: minimum, maximum and where each lies, over "
        "all instances and over those that the selection of each fold keeps.",
        kinds=frozenset({"numpy", "parquet"}),
        compute=Compute(cpu=1, memory_gib=4, chunk=500),
        worker=partial(_extremum_worker, task=task),
    )


@contextmanager
def _extremum_worker(workspace: Workspace, task: Task) -> Iterator[SlideWorker]:
    import pandas as pd

    config, name = workspace.config, extremum_name(task)
    scorers = _tile_scorers(workspace, task) if config.selection.method != "none" else {}
    networks = _networks(workspace, task) if config.nuclei is not None else {}

    def work(job: Job) -> Mapping[str, Produced]:
        store = job.workspace.store
        found = _of_regions(store.read_arrow(job.ref(REGIONS, "arrow")))
        found += _of_tiles(store.read_arrow(job.ref(TILES, "arrow")), scorers)
        if config.nuclei is not None:
            edges = store.read_table(job.ref(NUCLEI, "parquet"))
            found += _of_nuclei(store.read_arrow(job.ref(NUCLEI, "arrow")), edges, networks)
        extrema = pd.concat(found, ignore_index=True)
        digest = store.write_table(job.ref(name, "parquet"), extrema, job.provenance[name])
        return {name: Produced({"parquet": digest}, {"rows": len(extrema)})}

    yield work


def _tile_scorers(workspace: Workspace, task: Task) -> "dict[tuple[int, int], TileScorer]":
    from mm_assets.models.tile_scorers import load_tile_scorers

    return load_tile_scorers(_opened(workspace, tile_scorer_name(task), "npz"))


def _networks(workspace: Workspace, task: Task) -> "dict[tuple[int, int], NucleusGnn]":
    from mm_assets.nuclei.gnn import load_gnns

    return load_gnns(_opened(workspace, nucleus_gnn_name(task), "pt").getvalue())


def _opened(workspace: Workspace, asset: str, extension: str) -> BytesIO:
    ref = ArtefactRef(workspace.config.cohort, asset, COHORT, extension)
    return BytesIO(workspace.store.read_bytes(ref))


def _of_regions(regions: "pa.Table") -> "list[pd.DataFrame]":
    from mm_assets.models.extremum import encode_extrema, of_all

    return [of_all(encode_extrema([regions], "region"))]


def _of_tiles(
    tiles: "pa.Table", scorers: "Mapping[tuple[int, int], TileScorer]"
) -> "list[pd.DataFrame]":
    from mm_assets.models.extremum import encode_extrema, of_all, of_selected

    found = [of_all(encode_extrema([tiles], "tile"))]
    embeddings = tiles["embedding"].combine_chunks().flatten().to_numpy()
    embeddings = embeddings.reshape(tiles.num_rows, -1)
    for (repeat, fold), scorer in scorers.items():
        kept = _only(tiles, scorer.keep(embeddings))
        found.append(of_selected(encode_extrema(kept, "tile"), repeat, fold))
    return found


def _of_nuclei(
    nodes: "pa.Table", edges: "pd.DataFrame", networks: "Mapping[tuple[int, int], NucleusGnn]"
) -> "list[pd.DataFrame]":
    import pyarrow as pa

    from mm_assets.models.extremum import encode_extrema, of_all, of_selected

    found = [of_all(encode_extrema([nodes], "nucleus"))]
    joined = pa.Table.from_pandas(edges)
    for (repeat, fold), network in networks.items():
        kept = _only(nodes, network.keep(nodes, joined))
        found.append(of_selected(encode_extrema(kept, "nucleus"), repeat, fold))
    return found


def _only(instances: "pa.Table", kept: "NDArray[np.bool_]") -> "Iterator[pa.Table]":
    """The kept instances, some at a time: they may be nearly all of a large slide's."""
    for start in range(0, len(kept), ROWS):
        yield instances.slice(start, ROWS).filter(kept[start : start + ROWS])

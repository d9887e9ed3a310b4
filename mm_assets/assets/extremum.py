"""Stage of extremum vectors: the smallest and largest value of each dimension, and where."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mm_assets.assets.compute import Compute
from mm_assets.assets.stage import Job, Produced, SlideStage, SlideWorker, Workspace
from mm_assets.assets.tiles import REGIONS, TILES
from mm_assets.cohort.config import CohortConfig, Task


def extremum_name(task: Task) -> str:
    """Asset name of a task's extremum vectors."""
    return f"extremum_vectors_{task.name}"


def extremum_stage(config: CohortConfig, task: Task) -> SlideStage:
    """`extremum_vectors_T`."""
    name = extremum_name(task)

    @contextmanager
    def worker(workspace: Workspace) -> Iterator[SlideWorker]:
        import pandas as pd

        from mm_assets.models.extremum import encode_extrema

        def work(job: Job) -> Mapping[str, Produced]:
            store = job.workspace.store
            tiles = store.read_arrow(job.ref(TILES, "arrow"))
            regions = store.read_arrow(job.ref(REGIONS, "arrow"))
            extrema = pd.concat(
                [encode_extrema([tiles], "tile"), encode_extrema([regions], "region")],
                ignore_index=True,
            )
            digest = store.write_table(job.ref(name, "parquet"), extrema, job.provenance[name])
            return {name: Produced({"parquet": digest}, {"rows": len(extrema)})}

        yield work

    return SlideStage(
        outputs=(name,),
        upstream=(TILES, REGIONS),
        group="models",
        code_version="1",
        description="Per embedding dimension and level: minimum, maximum and where each lies.",
        kinds=frozenset({"numpy", "parquet"}),
        compute=Compute(cpu=1, memory_gib=2, chunk=500),
        worker=worker,
    )

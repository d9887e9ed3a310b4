"""Stage of the graph networks that choose nuclei: `nucleus_gnn_T`, a network a fold in one file."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mm_assets.assets.compute import Compute
from mm_assets.assets.nuclei import NUCLEI
from mm_assets.assets.omics import CLINICAL, read_table, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, Task

if TYPE_CHECKING:
    from mm_assets.nuclei.gnn import NucleusGnn
    from mm_assets.nuclei.sampling import Graph


def nucleus_gnn_name(task: Task) -> str:
    """Asset name of a task's graph networks."""
    return f"nucleus_gnn_{task.name}"


def nucleus_gnn_stage(config: CohortConfig, task: Task) -> CohortStage:
    """`nucleus_gnn_T`."""
    return CohortStage(
        outputs=(nucleus_gnn_name(task),),
        upstream=(CLINICAL, splits_name(task), NUCLEI),
        group="models",
        code_version="1",
        description="Per fold, a graph network that learned the outcome from nuclei of training "
        "patients and says which nuclei of a slide matter.",
        kinds=frozenset({"pytorch"}),
        compute=Compute(gpu=1, cpu=2, memory_gib=8),
        parameters={
            "task": task.model_dump(),
            "preserve_sites": config.evaluation.preserve_sites,
        },
        elsewhere="training",
        run=lambda job: _fit(job, task),
    )


class StoredGraphs(Mapping[str, "Graph"]):
    """Node and edge tables of the slides that have them, read from the store when asked for."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._slides = sorted(job.upstream[NUCLEI])

    def __getitem__(self, slide: str) -> "Graph":
        import pyarrow as pa

        store = self._job.workspace.store
        nodes = self._job.ref(NUCLEI, "arrow", slide)
        edges = self._job.ref(NUCLEI, "parquet", slide)
        return store.read_arrow(nodes), pa.Table.from_pandas(store.read_table(edges))

    def __iter__(self) -> Iterator[str]:
        return iter(self._slides)

    def __len__(self) -> int:
        return len(self._slides)


def _fit(job: Job, task: Task) -> Produced:
    from mm_assets.cohort.manifest import read_manifest
    from mm_assets.nuclei.gnn import save_gnns
    from mm_assets.nuclei.training import fit_folds

    config, name = job.workspace.config, nucleus_gnn_name(task)
    assert config.slides is not None
    manifest, _ = read_manifest(config.slides)
    clinical = read_table(job, CLINICAL)
    progress = Progress(f"{config.cohort}/{name}", 0, job.workspace.log)
    models = fit_folds(
        StoredGraphs(job),
        manifest,
        make_endpoint(clinical, task),
        read_table(job, splits_name(task)),
        sites=clinical["site"] if config.evaluation.preserve_sites and "site" in clinical else None,
        progress=progress.update,
    )
    digest = job.workspace.store.write_bytes(
        job.ref(name, "pt"), save_gnns(models), job.provenance[name]
    )
    return Produced({"pt": digest}, _summary(models))


def _summary(models: "dict[tuple[int, int], NucleusGnn]") -> dict[str, Any]:
    """How training went: nothing here is an estimate of how well outcomes are predicted."""
    import numpy as np

    members = [member for model in models.values() for member in model.members]
    first = np.array([member.curve[0] for member in members])
    last = np.array([member.curve[member.epoch] for member in members])
    epochs = [member.epoch + 1 for member in members]
    return {
        "models": len(models),
        "networks": len(members),
        "epochs": f"{min(epochs)} to {max(epochs)}",
        "training_loss": f"{first[:, 0].mean():.3f} to {last[:, 0].mean():.3f}",
        "inner_validation_loss": f"{first[:, 1].mean():.3f} to {last[:, 1].mean():.3f}",
        "settings": str(next(iter(models.values())).parameters),
    }

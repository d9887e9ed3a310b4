"""Stages of PORPOISE's networks: `porpoise_amil_T`, `porpoise_snn_T` and `porpoise_mmf_T`."""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mm_assets.assets.compute import Compute
from mm_assets.assets.models import (
    EXAMPLE_ROWS,
    horizons,
    prediction_months,
    register_model,
    run_facts,
)
from mm_assets.assets.omics import CLINICAL, OMICS, read_table, splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import CohortStage, Job, Produced
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.clinical import make_endpoint
from mm_assets.cohort.config import CohortConfig, NetworkConfig, Task
from mm_assets.cohort.folders import mm_home, training_folder

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from mm_assets.models.porpoise.fitting import PorpoiseParameters
    from mm_assets.models.porpoise.networks import Kind

EXAMPLE_TILES = 4
FLUSH_SECONDS = 2.0  # MLflow is told of epochs no more often
DESCRIPTIONS: "dict[Kind, str]" = {
    "amil": "PORPOISE on slides alone: gated attention over all tiles of a patient.",
    "snn": "PORPOISE on omics alone: a self-normalizing network of all features.",
    "mmf": "PORPOISE on slides and omics: both networks, gated and fused by their outer product.",
}


@dataclass(frozen=True)
class Network:
    """One of PORPOISE's networks.

    Attributes
    ----------
    encoder
        Further encoder whose tiles it reads; empty for the cohort's own.
    """

    kind: "Kind"
    encoder: str = ""

    @property
    def suffix(self) -> str:
        """What names of its assets hold of it."""
        return f"{self.kind}_{self.encoder}" if self.encoder else self.kind

    @property
    def tiles(self) -> str | None:
        """Asset of the tiles that it reads."""
        if self.kind == "snn":
            return None
        return f"{TILES}_{self.encoder}" if self.encoder else TILES

    @property
    def reads(self) -> tuple[str, ...]:
        """Tiles and omics, where it reads them."""
        omics = () if self.kind == "amil" else (OMICS,)
        return (*((self.tiles,) if self.tiles else ()), *omics)

    @property
    def description(self) -> str:
        """For the asset."""
        tiles = f" Tiles as embedded by {self.encoder}." if self.encoder else ""
        return f"{DESCRIPTIONS[self.kind]}{tiles}"

    def name(self, task: Task) -> str:
        """Asset name."""
        return f"porpoise_{self.suffix}_{task.name}"


def networks(config: CohortConfig) -> list[Network]:
    """The networks that the YAML asks for and that the cohort has inputs for."""
    if config.porpoise is None:
        return []
    own = [Network(kind) for kind in DESCRIPTIONS if kind in config.porpoise.models]
    wanted = [*own, *(Network("amil", encoder) for encoder in config.porpoise.encoders)]
    return [
        network
        for network in wanted
        if (config.slides or not network.tiles) and (config.omics or OMICS not in network.reads)
    ]


def porpoise_stages(config: CohortConfig, task: Task) -> list[CohortStage]:
    """A stage a network."""
    return [_stage(config, task, network) for network in networks(config)]


def _stage(config: CohortConfig, task: Task, network: Network) -> CohortStage:
    assert config.porpoise is not None
    settings, name = config.porpoise, network.name(task)
    return CohortStage(
        outputs=(name,),
        upstream=(CLINICAL, splits_name(task), *network.reads),
        group="models",
        code_version="2",
        description=network.description,
        kinds=frozenset({"pytorch", "mlflow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=16),
        parameters={
            "task": task.model_dump(),
            "training": config.porpoise.model_dump(exclude={"models", "encoders"}),
            "preserve_sites": config.evaluation.preserve_sites,
        },
        elsewhere="training",
        run=lambda job: train_network(job, task, name, network.kind, network.tiles, settings),
    )


def train_network(
    job: Job, task: Task, name: str, kind: "Kind", bags: str | None, settings: NetworkConfig
) -> Produced:
    """Out-of-fold predictions and the registered final model of a network.

    Parameters
    ----------
    bags
        Asset whose embeddings are the bags, where the kind reads slides.
    """
    from mm_assets.models.porpoise.folds import Fits
    from mm_assets.models.porpoise.model import Cohort, registry_frame

    config = job.workspace.config
    folder = training_folder(config.cohort, name)
    scratch = folder / job.provenance[name].fingerprint().replace(":", "-")
    if begun := sorted(file.stem for file in scratch.glob("*.pt")):
        job.workspace.log.info(f"{name} goes on where it was ended, in {begun[-1]}")
    copies = mm_home() / "cache" / "bags" / config.cohort / name
    clinical, splits = read_table(job, CLINICAL), read_table(job, splits_name(task))
    endpoint = make_endpoint(clinical, task)
    cohort = Cohort(
        StoredBags(job, bags, copies) if bags else {},
        read_table(job, OMICS) if OMICS in job.upstream else None,
    )
    parameters = _parameters(settings, config.evaluation.seed)
    fits = 1 + len(splits[["repeat", "fold"]].drop_duplicates())
    with job.workspace.tracking.live_run(run_facts(job, task, name)) as run:
        epochs = _Epochs(job, name, run, fits, parameters.training.epochs)
        study = Fits(
            kind,
            cohort,
            endpoint,
            prediction_months(task),
            parameters,
            clinical["site"] if config.evaluation.preserve_sites and "site" in clinical else None,
            scratch,
            epochs.record,
        )
        predictions = study.out_of_fold(splits).assign(model=name.removesuffix(f"_{task.name}"))
        final = replace(study, horizons=horizons(task)).final()
        epochs.flush()
        trained = cohort.readable(kind, endpoint.table.index.tolist())
        example = registry_frame(cohort, final, trained[:EXAMPLE_ROWS], EXAMPLE_TILES)
        produced = register_model(job, task, name, final, predictions, example, trained, live=run)
    shutil.rmtree(folder)
    shutil.rmtree(copies, ignore_errors=True)
    return produced


def _parameters(settings: NetworkConfig, seed: int) -> "PorpoiseParameters":
    from mm_assets.models.porpoise.fitting import PorpoiseParameters
    from mm_assets.models.porpoise.training import TrainingParameters

    training = TrainingParameters(epochs=settings.epochs, seed=seed)
    return PorpoiseParameters(settings.early_stopping, training)


class StoredBags(Mapping[str, "list[NDArray[np.float16]]"]):
    """Embeddings of each patient's finished slides, memory-mapped.

    Parameters
    ----------
    asset
        Whose embeddings.
    copies
        Folder for copies of what lies in a remote store, each fetched once.
    """

    def __init__(self, job: Job, asset: str, copies: Path) -> None:
        self._job, self._asset, self._copies = job, asset, copies
        rows = manifest_rows(job.workspace.config)
        self._slides: dict[str, list[str]] = {}
        for slide in sorted(job.upstream[asset]):
            if slide in rows:
                self._slides.setdefault(rows[slide].patient_id, []).append(slide)
        self._opened: dict[str, list[NDArray[np.float16]]] = {}

    def __getitem__(self, patient: str) -> "list[NDArray[np.float16]]":
        if patient not in self._opened:
            tables = [self._table(slide) for slide in self._slides[patient]]
            self._opened[patient] = [embeddings(table) for table in tables]
        return self._opened[patient]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slides)

    def __len__(self) -> int:
        return len(self._slides)

    def _table(self, slide: str) -> "pa.Table":
        import pyarrow as pa

        from mm_assets.files import publish

        store, ref = self._job.workspace.store, self._job.ref(self._asset, "arrow", slide)
        if store.local_path(ref) is not None:
            return store.read_arrow(ref)
        digest = self._job.upstream[self._asset][slide].digest.replace(":", "-")
        copy = self._copies / f"{slide}.{digest}.arrow"
        if not copy.exists():
            publish(copy, store.read_bytes(ref))
        return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()


def embeddings(tiles: "pa.Table") -> "NDArray[np.float16]":
    """Embeddings of a table of tiles, shape [n, D], without a copy where it has one chunk."""
    values = tiles["embedding"].combine_chunks().flatten().to_numpy()
    return values.reshape(tiles.num_rows, -1)


class _Epochs:
    """Progress in the UI, and the learning curves of all fits in MLflow while they grow."""

    def __init__(self, job: Job, name: str, run: str, fits: int, epochs: int) -> None:
        label = f"{job.workspace.config.cohort}/{name}"
        self._progress = Progress(label, fits * epochs, job.workspace.log)
        self._tracking, self._run, self._epochs = job.workspace.tracking, run, epochs
        self._begun: set[str] = set()
        self._waiting: list[tuple[str, int, float]] = []
        self._flushed = time.monotonic()

    def record(self, fit: str, epoch: int, training: float, validation: float) -> None:
        """Called by the training after each epoch."""
        self._begun.add(fit)
        self._waiting += [
            (f"{fit}/training_loss", epoch, training),
            (f"{fit}/inner_loss", epoch, validation),
        ]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()
        done = (len(self._begun) - 1) * self._epochs + epoch + 1
        self._progress.update(done, self._progress.total)

    def flush(self) -> None:
        """Send what MLflow has not been told yet."""
        import pandas as pd

        table = pd.DataFrame(self._waiting, columns=["curve", "epoch", "value"])
        self._tracking.log_curves(self._run, table)
        self._waiting, self._flushed = [], time.monotonic()

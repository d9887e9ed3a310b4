"""Stages of self-supervised pre-training: `tile_encoder` and `region_encoder` of HIPT by DINO.

No label is read. With `ssl.exclude_folds` the test patients of these folds are left out. A state
dict per level is stored and registered; the curve of the training grows in MLflow.
"""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from mm_assets.assets.compute import Compute
from mm_assets.assets.omics import splits_name
from mm_assets.assets.progress import Progress
from mm_assets.assets.ssl_training import (
    LevelTraining,
    Part,
    excluded_patients,
    region_training,
    tile_training,
)
from mm_assets.assets.stage import (
    Check,
    CohortStage,
    Job,
    Produced,
    SlideStage,
    SlideWorker,
    Workspace,
)
from mm_assets.assets.tiles import HIPT_TILES, one_pass
from mm_assets.assets.trained_weights import (
    REGION_ENCODER,
    TILE_ENCODER,
    trains_regions,
    trains_tiles,
    weights_path,
)
from mm_assets.cohort.config import (
    COHORT_WEIGHTS,
    CohortConfig,
    EncoderConfig,
    RegionDinoConfig,
    TileDinoConfig,
)
from mm_assets.cohort.folders import training_folder
from mm_assets.resources.store import COHORT

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.resources.model_run import RunFacts
    from mm_assets.ssl.training import Epoch

SSL = "ssl"
NOT_COLLAPSED = "not_collapsed"
DESCRIPTIONS = {
    TILE_ENCODER: "ViT-256 of HIPT, pre-trained by DINO on the cohort's tiles, straight from "
    "the slides and without labels.",
    REGION_ENCODER: "ViT-4K of HIPT, pre-trained by DINO on the cohort's grids of tile tokens, "
    "without labels.",
}


def ssl_stages(config: CohortConfig) -> list[SlideStage | CohortStage]:
    """The pre-trainings that the cohort asks for, and the embedding of tiles between them."""
    stages: list[SlideStage | CohortStage] = []
    if trains_tiles(config):
        stages += [_tile_encoder_stage(config), _tile_embedding_stage(config)]
    if trains_regions(config):
        stages.append(_region_encoder_stage(config))
    return stages


def _tile_encoder_stage(config: CohortConfig) -> CohortStage:
    imaging = config.imaging.model_dump(include={"mpp", "tile_px", "region_px", "min_tissue"})
    return CohortStage(
        outputs=(TILE_ENCODER,),
        upstream=("slide", "tissue", *_splits(config)),
        group="imaging",
        code_version="2",
        description=DESCRIPTIONS[TILE_ENCODER],
        kinds=frozenset({"pytorch", "mlflow"}),
        compute=Compute(gpu=1, cpu=8, memory_gib=32),
        parameters={**_settings(config, config.ssl.tiles), "imaging": imaging},
        elsewhere="training",
        run=partial(_pretrain, asset=TILE_ENCODER, prepare=tile_training),
        checks=(NOT_COLLAPSED,),
    )


def _tile_embedding_stage(config: CohortConfig) -> SlideStage:
    """`tile_embeddings_hipt` apart from other encoders: these need not wait for the training."""
    return SlideStage(
        outputs=(HIPT_TILES,),
        upstream=("slide", "tissue", TILE_ENCODER),
        group="imaging",
        code_version="1",
        description="Embeddings of 256 px tiles by the cohort's own ViT-256.",
        kinds=frozenset({"pytorch", "arrow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=16, chunk=200),
        parameters=config.imaging.model_dump(exclude={"encoder", "weights", "also"}),
        isolated=True,
        worker=_tile_embedding_worker,
    )


def _tile_embedding_worker(workspace: Workspace) -> AbstractContextManager[SlideWorker]:
    path = weights_path(workspace, TILE_ENCODER, COHORT_WEIGHTS)
    return one_pass(workspace, {HIPT_TILES: EncoderConfig(encoder="hipt", weights=path)})


def _region_encoder_stage(config: CohortConfig) -> CohortStage:
    return CohortStage(
        outputs=(REGION_ENCODER,),
        upstream=(
            "slide",
            HIPT_TILES,
            *((TILE_ENCODER,) if trains_tiles(config) else ()),
            *_splits(config),
        ),
        group="imaging",
        code_version="2",
        description=DESCRIPTIONS[REGION_ENCODER],
        kinds=frozenset({"pytorch", "mlflow"}),
        compute=Compute(gpu=1, cpu=4, memory_gib=16),
        parameters={
            **_settings(config, config.ssl.regions),
            "region_px": config.imaging.region_px,
        },
        elsewhere="training",
        run=partial(_pretrain, asset=REGION_ENCODER, prepare=region_training),
        checks=(NOT_COLLAPSED,),
    )


def _splits(config: CohortConfig) -> tuple[str, ...]:
    excluded = config.ssl.exclude_folds
    return tuple(splits_name(task) for task in config.tasks if task.name in excluded)


def _settings(config: CohortConfig, level: TileDinoConfig | RegionDinoConfig) -> dict[str, Any]:
    return {
        "dino": level.model_dump(),
        "exclude_folds": config.ssl.exclude_folds,
        "seed": config.evaluation.seed,
    }


def _pretrain(job: Job, asset: str, prepare: Callable[[Job], LevelTraining]) -> Produced:
    import torch

    from mm_assets.evaluation.model_card import render_encoder_card
    from mm_assets.ssl.processes import run_together

    config, fingerprint = job.workspace.config, job.provenance[asset].fingerprint()
    folder = training_folder(config.cohort, asset)
    checkpoint = folder / fingerprint.replace(":", "-") / "dino.pt"
    if checkpoint.exists():
        job.workspace.log.info(f"{asset} goes on where it was ended")
    training, tracking = prepare(job), job.workspace.tracking
    facts, epochs = _facts(job, asset, training), training.level.epochs
    progress = Progress(f"{config.cohort}/{asset}", epochs, job.workspace.log)
    with tracking.live_run(facts) as run:

        def told(epoch: "Epoch") -> None:
            tracking.log_curves(run, _curve(epoch))
            progress.update(epoch.epoch + 1, epochs)

        world = max(1, torch.cuda.device_count())
        made = run_together(Part(training, checkpoint, told), world)
        buffer = io.BytesIO()
        torch.save(made.weights, buffer)
        registered = tracking.register_weights(facts, run, f"{asset}.pth", buffer.getvalue())
    digest = job.workspace.store.write_bytes(
        job.ref(asset, "pth"), buffer.getvalue(), job.provenance[asset]
    )
    rmtree(folder)
    for slide, reason in made.lost.items():
        job.workspace.log.warning(f"{slide} was left out of the pre-training: {reason}")
    last = made.curve[-1]
    learnt = {
        "slides": len(training.sources),
        "slides_lost": len(made.lost),
        "pictures": sum(len(source) for source in training.sources),
        "excluded_patients": len(excluded_patients(job)),
        "processes": world,
        **{f"last_{key}": round(value, 4) for key, value in asdict(last).items()},
    }
    tracking.describe(
        registered,
        render_encoder_card(registered.name, registered.version, DESCRIPTIONS[asset], learnt),
    )
    shown = {"registered_model": registered.name, "version": registered.version, **learnt}
    return Produced({"pth": digest}, shown, (_not_collapsed(last),))


def _facts(job: Job, asset: str, training: LevelTraining) -> "RunFacts":
    """What MLflow is told: of slides and what is made of them, those that are learned from."""
    from mm_assets.resources.lineage import lineage_of_provenance, to_json
    from mm_assets.resources.model_run import RunFacts

    learned = {COHORT, *(source.name for source in training.sources)}
    made_of, cohort = job.provenance[asset], job.workspace.config.cohort
    inputs = {
        upstream: {name: version for name, version in versions.items() if name in learned}
        for upstream, versions in made_of.inputs.items()
    }
    provenance = replace(made_of, inputs=inputs)
    lineage = lineage_of_provenance(job.workspace.store, cohort, provenance)
    return RunFacts(
        cohort=cohort,
        task=SSL,
        model=asset,
        dagster_run_id=job.dagster_run_id,
        asset_key=f"{cohort}/{asset}",
        code_version=provenance.code_version,
        upstream=provenance.inputs,
        splits_digest="",
        parameters=provenance.parameters,
        lineage=to_json(lineage),
    )


def _curve(epoch: "Epoch") -> "pd.DataFrame":
    import pandas as pd

    values = asdict(epoch)
    number = values.pop("epoch")
    rows = [(name, number, value) for name, value in values.items()]
    return pd.DataFrame(rows, columns=["curve", "epoch", "value"])


def _not_collapsed(last: "Epoch") -> Check:
    return Check(
        NOT_COLLAPSED,
        not last.collapsed,
        "all pictures look alike to the teacher, or its outputs say nothing: lower the "
        "temperature or the rate",
        {"entropy": last.entropy, "spread": last.spread, "information": last.information},
    )

"""`python -m mm_assets.job STAGE FILE`: a stage's work, told by a file, wherever this runs.

`python -m mm_assets.job train`, what the image's `train` is for SageMaker's tuning jobs: one trial.

The file is what `mm_assets.resources.launcher` writes. Artefacts and receipts go to the store, as
they do when the same work is done beside Dagster; what is finished is told by messages of Dagster
Pipes: each slide, or what was made of the cohort.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from dagster_pipes import (
    PipesContext,
    PipesMappingParamsLoader,
    PipesS3MessageWriter,
    open_dagster_pipes,
)

from mm_assets.assets.cohort_level import judge_trial, run_cohort_stage
from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.made import pack
from mm_assets.assets.partitions import SlideOutcome, SlideRun
from mm_assets.assets.stage import CohortStage, SlideStage, Stage, Workspace
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.s3 import s3_client
from mm_assets.resources.sagemaker_request import MLFLOW_SECRET, TRAINING
from mm_assets.resources.sagemaker_tuning import OBJECTIVE_LINE
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking

MESSAGE_SECONDS = 5.0


TRAIN = "train"
HYPERPARAMETERS = Path("/opt/ml/input/config/hyperparameters.json")


def main(name: str, file: Path) -> None:
    """Do what the file says for the stage of this name."""
    order = json.loads(file.read_text())
    stage, workspace = _begin(order, name, file)
    with open_dagster_pipes(
        params_loader=PipesMappingParamsLoader(order["pipes"]),
        message_writer=PipesS3MessageWriter(s3_client(), interval=MESSAGE_SECONDS),
    ) as pipes:
        workspace = replace(workspace, log=pipes.log)
        if isinstance(stage, SlideStage):
            _work_on_slides(stage, workspace, order, pipes)
        else:
            assert isinstance(stage, CohortStage)
            made = run_cohort_stage(stage, workspace, pipes.run_id)
            pipes.report_custom_message(made.to_message())


def try_settings(file: Path) -> None:
    """Print what the hyper-parameters of a tuning job's trial gain."""
    told = json.loads(HYPERPARAMETERS.read_text())
    stage, workspace = _begin(json.loads(file.read_text()), told["stage"], file)
    assert isinstance(stage, CohortStage)
    print(OBJECTIVE_LINE.format(judge_trial(stage, workspace, told)), flush=True)


def _begin(order: Mapping[str, Any], name: str, file: Path) -> tuple[Stage, Workspace]:
    """The stage of this name and what it works with."""
    signal.signal(signal.SIGTERM, _end)
    log_in()
    config = CohortConfig.model_validate(order["config"]).resolve_paths(file.absolute().parent)
    stage = {stage.name: stage for stage in cohort_stages(config)}[name]
    store, tracking = ArtefactStore(**order["store"]), Tracking(**order["tracking"])
    return stage, Workspace(config, store, tracking, logging.getLogger("mm_assets"))


def log_in() -> None:
    """Let MLflow's client log in with the secret that the job was told the name of, if any."""
    name = os.environ.get(MLFLOW_SECRET)
    if name:
        import boto3

        client = boto3.client("secretsmanager", region_name=os.environ.get("AWS_REGION"))
        secret = json.loads(client.get_secret_value(SecretId=name)["SecretString"])
        os.environ["MLFLOW_TRACKING_USERNAME"] = secret["username"]
        os.environ["MLFLOW_TRACKING_PASSWORD"] = secret["password"]


def _work_on_slides(
    stage: SlideStage, workspace: Workspace, order: Mapping[str, Any], pipes: PipesContext
) -> None:
    def tell(outcome: SlideOutcome) -> None:
        shown = {asset: pack(made.metadata) for asset, made in outcome.produced.items()}
        pipes.report_custom_message(
            {"slide": outcome.slide, "reason": outcome.reason, "shown": shown}
        )

    run = SlideRun(stage, workspace, order["assets"], pipes.run_id)
    run.outcomes(order["slides"], tell=tell)


def _end(number: int, frame: FrameType | None) -> None:
    """End in an orderly way, child processes included, when the job is stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    if sys.argv[1:] == [TRAIN]:
        try_settings(Path(TRAINING.order))
    else:
        main(sys.argv[1], Path(sys.argv[2]))

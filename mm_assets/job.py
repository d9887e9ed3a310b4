"""`python -m mm_assets.job FILE`: a stage's work on slides, told by a file, wherever this runs.

The file is what `mm_assets.resources.launcher` writes. Artefacts and receipts go to the store, as
they do when the same work is done beside Dagster; each slide that is finished is told by a message
of Dagster Pipes.
"""

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from dagster_pipes import PipesMappingParamsLoader, PipesS3MessageWriter, open_dagster_pipes

from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.partitions import SlideOutcome, SlideRun
from mm_assets.assets.stage import SlideStage, Workspace
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.s3 import s3_client
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking

MESSAGE_SECONDS = 5.0


def main(file: Path) -> None:
    """Do what the file says."""
    order = json.loads(file.read_text())
    config = CohortConfig.model_validate(order["config"]).resolve_paths(file.absolute().parent)
    stages = {s.name: s for s in cohort_stages(config) if isinstance(s, SlideStage)}
    store, tracking = ArtefactStore(**order["store"]), Tracking(**order["tracking"])
    signal.signal(signal.SIGTERM, _end)
    with open_dagster_pipes(
        params_loader=PipesMappingParamsLoader(order["pipes"]),
        message_writer=PipesS3MessageWriter(s3_client(), interval=MESSAGE_SECONDS),
    ) as pipes:

        def tell(outcome: SlideOutcome) -> None:
            pipes.report_custom_message({"slide": outcome.slide, "reason": outcome.reason})

        workspace = Workspace(config, store, tracking, pipes.log)
        run = SlideRun(stages[order["stage"]], workspace, order["assets"], pipes.run_id)
        run.outcomes(order["slides"], tell=tell)


def _end(number: int, frame: FrameType | None) -> None:
    """End in an orderly way, child processes included, when the job is stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

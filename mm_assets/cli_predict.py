"""`mm predict`: from patients who have arrived to predictions and evidence, without training."""

from typing import Annotated

import typer

Cohort = Annotated[str, typer.Argument(help="Name of a cohort, or the path of its defs.yaml.")]


def predict(cohort: Cohort) -> None:
    """Take in new slides and patients, let every champion predict them, explain; train nothing."""
    from mm_assets.assets.graph import inference_assets
    from mm_assets.assets.predictions import predictions_name
    from mm_assets.cli import out, refuse_failures, workspace
    from mm_assets.cli_walk import walk
    from mm_assets.resources.store import COHORT, ArtefactRef

    space = workspace(cohort)
    cohort = space.config.cohort
    failures = walk(space, inference_assets(space.config))
    for name in map(predictions_name, space.config.tasks):
        receipt = space.receipts.read(cohort, name, COHORT)
        if name in failures or receipt is None:
            continue
        table = space.store.address(ArtefactRef(cohort, name, COHORT, "parquet"))
        out.print(f"{name}: {table}", soft_wrap=True, highlight=False)
        for model, counts in receipt.metadata.items():
            if model.startswith(f"{cohort}."):
                out.print(f"  {model} {counts}", soft_wrap=True, highlight=False)
    refuse_failures(failures)

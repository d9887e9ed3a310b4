"""Which version of each model is the champion: settled when a task is evaluated."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mm_assets.assets.omics import read_table, splits_name
from mm_assets.assets.stage import Job
from mm_assets.cohort.config import Task
from mm_assets.resources.model_run import OUTCOME
from mm_assets.resources.store import COHORT

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.cohort.clinical import Endpoint
    from mm_assets.resources.tracking import RegisteredModel

OUT_OF_FOLD = "out_of_fold.parquet"
NUMBERS = "mm.promotion_numbers"  # tag of a registered version
# Tag of a champion that a person chose: the latest version there was. It and those before it were
# there to be chosen, so no comparison puts them in the champion's place.
PASSED_OVER = "mm.passed_over"
COLUMNS = ["model", "version", "champion", "promoted", "outcome"]


def settle(
    job: Job, task: Task, models: Sequence[str], endpoint: "Endpoint", metric: str
) -> "pd.DataFrame":
    """Promote the new version of each model, or not.

    Parameters
    ----------
    models
        Model assets of the task.
    metric
        What a model is judged by; more is better.

    Returns
    -------
    Columns model (registered name), version, champion (the version that was champion before),
    promoted, outcome (words). The outcome and its numbers are tags of the version too.
    """
    import pandas as pd

    rows = [_settled(job, task, asset, endpoint, metric) for asset in models]
    return pd.DataFrame(rows, columns=COLUMNS)


def out_of_fold(job: Job, asset: str) -> "pd.DataFrame":
    """Out-of-fold predictions of the full model of an asset."""
    predictions = read_table(job, asset)
    return predictions[predictions["model"] == predictions["model"].iloc[0]]


def out_of_fold_file(job: Job, asset: str) -> dict[str, bytes]:
    """`out_of_fold` as a file of the model's run, for the comparison with the next version."""
    file = io.BytesIO()
    out_of_fold(job, asset).to_parquet(file, index=False)
    return {OUT_OF_FOLD: file.getvalue()}


def _settled(job: Job, task: Task, asset: str, endpoint: "Endpoint", metric: str) -> dict[str, Any]:
    tracking = job.workspace.tracking
    facts = job.upstream[asset][COHORT].metadata
    model = tracking.version(str(facts["registered_model"]), int(str(facts["version"])))
    champion = tracking.version(model.name)
    row = {"model": model.name, "version": model.version, "champion": champion.version}
    if champion.version == model.version:
        return row | _as_champion(job, model)
    chosen = tracking.notes(champion)
    if model.version <= int(chosen.get(PASSED_OVER, 0)):
        outcome = f"not promoted over version {champion.version}, {chosen[OUTCOME]}"
        tracking.note(model, {OUTCOME: outcome})
        return row | {"promoted": False, "outcome": outcome}
    return row | _compared(job, task, asset, model, champion, endpoint, metric)


def _as_champion(job: Job, model: "RegisteredModel") -> dict[str, Any]:
    """Of a version that is champion already; what made it so is kept."""
    notes = job.workspace.tracking.notes(model)
    if OUTCOME not in notes:
        notes = {OUTCOME: "champion: the first version"}
        job.workspace.tracking.note(model, notes)
    return {"promoted": True, "outcome": notes[OUTCOME]}


def _compared(
    job: Job,
    task: Task,
    asset: str,
    model: "RegisteredModel",
    champion: "RegisteredModel",
    endpoint: "Endpoint",
    metric: str,
) -> dict[str, Any]:
    import pandas as pd

    from mm_assets.evaluation.descriptions import metric_label
    from mm_assets.evaluation.promotion import Comparison, compare

    settings, tracking = job.workspace.config.evaluation, job.workspace.tracking
    before = tracking.read_file(champion.run_id, OUT_OF_FOLD)
    if before is None:
        found = Comparison(obstacle="the champion was never evaluated")
    else:
        found = compare(
            out_of_fold(job, asset),
            pd.read_parquet(io.BytesIO(before)),
            endpoint,
            read_table(job, splits_name(task)),
            metric,
            settings.bootstrap,
            settings.seed,
        )
    margin = settings.promotion_margin
    promoted = not found.obstacle and found.excludes_harm(margin)
    words = found.in_words(metric_label(metric), margin)
    verb = "promoted over" if promoted else "not promoted over"
    outcome = f"{verb} version {champion.version}: {words}"
    numbers = {**asdict(found), "metric": metric, "margin": margin, "champion": champion.version}
    notes = {OUTCOME: outcome, NUMBERS: json.dumps(_finite(numbers))}
    if promoted:
        tracking.promote(model, notes)
    else:
        tracking.note(model, notes)
    job.workspace.log.info(f"{model.name} version {model.version} {outcome}")
    return {"promoted": promoted, "outcome": outcome}


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if value != value else value for key, value in numbers.items()}

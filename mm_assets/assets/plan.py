"""What bringing a cohort up to date would take, without starting anything."""

from collections.abc import Sequence
from typing import Any

from mm_assets.assets.cohort_level import is_current
from mm_assets.assets.graph import check_compute, cohort_stages
from mm_assets.assets.partitions import SlideRun
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import CohortStage, SlideStage, Workspace
from mm_assets.assets.walk import selected
from mm_assets.cohort.problems import refuse_errors
from mm_assets.resources.estimate import (
    Estimate,
    estimate,
    estimate_trials,
    seconds_before,
    trial_seconds_before,
)


def plan_rows(
    workspace: Workspace, select: Sequence[str] = (), slides: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Slides or trials, place, expected hours and cost of every selected stage.

    Stages of the whole cohort have no number of slides, and are listed when they are to be made.
    Before the first search of a tuning service, its hours and cost are the most it can take.

    Parameters
    ----------
    select
        Asset names, `*` allowed; none means all.
    slides
        Slide ids; None means all.

    Raises
    ------
    CohortError
        When the YAML's `compute` names no stage.
    ValueError
        When a pattern names nothing.
    """
    config = workspace.config
    refuse_errors(check_compute(config))
    present = list(manifest_rows(config)) if config.slides else []
    wanted = [slide for slide in present if slides is None or slide in slides]
    stages = cohort_stages(config)
    chosen = {stage.name for stage in selected(stages, select)}
    rows, moving = [], set[str]()
    lost: dict[str, set[str]] = {}  # asset -> slides that it will never be made of
    for stage in stages:
        if isinstance(stage, SlideStage):
            run = SlideRun(stage, workspace, stage.outputs, "")
            gone = run.quarantined_upstream().union(*(lost.get(a, ()) for a in stage.upstream))
            lost.update(dict.fromkeys(stage.outputs, gone))
        if stage.name not in chosen:
            continue
        count, at_once = None, 1
        if isinstance(stage, SlideStage):
            count, at_once = len(run.unfinished(wanted) - gone), stage.slides_at_once
        elif moving.isdisjoint(stage.upstream) and is_current(stage, workspace):
            continue
        if count != 0:
            moving.update(stage.outputs)
        expected = _expected(stage, workspace, count, at_once)
        rows.append(
            {
                "stage": stage.name,
                "slides": count,
                "trials": expected.trials,
                "where": expected.where,
                "hours": None if expected.hours is None else round(expected.hours, 4),
                "cost": None if expected.cost is None else round(expected.cost, 2),
            }
        )
    return rows


def _expected(
    stage: SlideStage | CohortStage, workspace: Workspace, slides: int | None, at_once: int
) -> Estimate:
    config, receipts = workspace.config, workspace.receipts
    compute = stage.compute_for(config)
    if isinstance(stage, CohortStage) and stage.trials:
        trials = stage.trials.count(workspace)
        seconds = trial_seconds_before(receipts, config.cohort, stage.name)
        return estimate_trials(trials, compute, config.prices, seconds)
    seconds = seconds_before(receipts, config.cohort, stage.name)
    return estimate(slides, compute, config.prices, seconds, at_once)

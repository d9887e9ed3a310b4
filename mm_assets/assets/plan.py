"""What bringing a cohort up to date would take, without starting anything."""

from collections.abc import Sequence
from typing import Any

from mm_assets.assets.cohort_level import is_current
from mm_assets.assets.graph import check_compute, cohort_stages
from mm_assets.assets.partitions import SlideRun
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import SlideStage, Workspace
from mm_assets.assets.walk import selected
from mm_assets.cohort.problems import refuse_errors
from mm_assets.resources.estimate import estimate, seconds_before


def plan_rows(
    workspace: Workspace, select: Sequence[str] = (), slides: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Slides, place, expected hours and cost of every selected stage.

    Stages of the whole cohort have no number of slides, and are listed when they are to be made.

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
    rows, moving = [], set[str]()
    for stage in selected(cohort_stages(config), select):
        count, at_once = None, 1
        if isinstance(stage, SlideStage):
            count = len(SlideRun(stage, workspace, stage.outputs, "").unfinished(wanted))
            at_once = stage.slides_at_once
        elif moving.isdisjoint(stage.upstream) and is_current(stage, workspace):
            continue
        if count != 0:
            moving.update(stage.outputs)
        seconds = seconds_before(workspace.receipts, config.cohort, stage.name)
        expected = estimate(count, stage.compute_for(config), config.prices, seconds, at_once)
        rows.append(
            {
                "stage": stage.name,
                "slides": count,
                "where": expected.where,
                "hours": None if expected.hours is None else round(expected.hours, 4),
                "cost": None if expected.cost is None else round(expected.cost, 2),
            }
        )
    return rows

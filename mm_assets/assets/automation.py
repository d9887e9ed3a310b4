"""When assets move without a click: slides at once, everything with labels on the refresh."""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._utils.schedules import cron_string_iterator

from mm_assets.assets.cohort_level import is_current
from mm_assets.assets.graph import refresh_phases
from mm_assets.assets.intake import QUARANTINE, Intake, quarantine_event, take_in
from mm_assets.assets.partitions import SlideRun
from mm_assets.assets.ranges import contiguous_ranges, range_tags
from mm_assets.assets.stage import (
    CohortStage,
    SlideStage,
    Stage,
    Workspace,
    asset_key,
    slide_partitions,
)
from mm_assets.cohort.config import CohortConfig
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking

REFRESH_TAG = "mm_assets/refresh"
_ACTIVE = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def eager() -> dg.AutomationCondition[Any]:
    """Compute a slide as soon as it is there and whatever it needs is there.

    A slide that failed is not asked for again until something upstream of it changes; the plain
    `eager` of Dagster would not compute slides that were there before the first tick.
    """
    condition = dg.AutomationCondition
    return (
        (condition.missing().newly_true() | condition.any_deps_updated()).since(
            condition.newly_requested() | condition.newly_updated()
        )
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
    ).with_label("slide_arrived")


def eager_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates the automation conditions of every cohort."""
    return dg.AutomationConditionSensorDefinition(
        "slides_arrived",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
    )


def cohort_sensors(
    config: CohortConfig, stages: Sequence[SlideStage | CohortStage]
) -> list[dg.SensorDefinition]:
    """The cohort's intake sensor and refresh sensor, as its YAML asks for them."""
    sensors = []
    if config.slides and config.refresh.sensor:
        sensors.append(_intake_sensor(config))
    if config.refresh.cron:
        sensors.append(_refresh_sensor(config, config.refresh.cron, stages))
    return sensors


def _intake_sensor(config: CohortConfig) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{config.cohort}_intake",
        description="Looks for new slides, checks them and makes them partitions.",
        minimum_interval_seconds=config.refresh.sensor_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        target=dg.AssetSelection.assets(asset_key(config.cohort, "slide")),
    )
    def _sensor(
        context: dg.SensorEvaluationContext, store: ArtefactStore, tracking: Tracking
    ) -> dg.SensorResult | dg.SkipReason:
        found = take_in(Workspace(config, store, tracking, context.log), context.instance)
        state = json.dumps(dict(found.quarantined), sort_keys=True)
        changed = state != (context.cursor or "{}")
        if not (found.added or found.removed or changed):
            return dg.SkipReason("no new slides")
        context.log.info(describe(found))
        events = [quarantine_event(config, found.quarantined)] if changed else []
        return dg.SensorResult(asset_events=events, cursor=state)

    return _sensor


def describe(found: Intake) -> str:
    """The outcome of an intake in one line."""
    return (
        f"{len(found.added)} slides added, {len(found.removed)} removed, "
        f"{len(found.quarantined)} in {QUARANTINE}, {len(found.waiting)} remarks"
    )


@dataclass(frozen=True)
class _Cursor:
    """Where the refresh stands: the tick it serves, the phase, and when it last looked."""

    tick: float
    phase: int
    active: bool


def _refresh_sensor(
    config: CohortConfig, cron: str, stages: Sequence[SlideStage | CohortStage]
) -> dg.SensorDefinition:
    """On each tick of the cron, walk the refresh phases, one after the other.

    A schedule cannot do this: per-slide and whole-cohort assets cannot share a run in which some
    slide may fail, so each phase waits for the runs of the one before.
    """
    phases = refresh_phases(stages)
    keys = [
        asset_key(config.cohort, asset) for phase in phases for s in phase for asset in s.outputs
    ]

    @dg.sensor(
        name=f"{config.cohort}_refresh",
        description=f"Refreshes models and reports of the cohort on the cron {cron!r} (UTC).",
        minimum_interval_seconds=min(30, config.refresh.sensor_seconds),
        default_status=dg.DefaultSensorStatus.RUNNING,
        target=dg.AssetSelection.assets(*keys),
    )
    def _sensor(
        context: dg.SensorEvaluationContext, store: ArtefactStore, tracking: Tracking
    ) -> dg.SensorResult | dg.SkipReason:
        cursor = _Cursor(**json.loads(context.cursor)) if context.cursor else None
        if cursor is None:
            # The first look starts the clock: a cohort is not refreshed for ticks of the past.
            return dg.SensorResult(
                skip_reason="waiting for the next tick",
                cursor=json.dumps(asdict(_Cursor(time.time(), 0, False))),
            )
        if not cursor.active:
            due = _last_tick(cron, cursor.tick)
            if due is None:
                return dg.SkipReason("waiting for the next tick")
            cursor = _Cursor(due, 0, True)
        if _active_runs(context.instance, config, cursor.tick):
            return dg.SkipReason(f"waiting for the runs of phase {cursor.phase}")
        workspace = Workspace(config, store, tracking, context.log)
        while cursor.phase < len(phases):
            requests = list(_requests(phases[cursor.phase], cursor, workspace, context.instance))
            cursor = _Cursor(cursor.tick, cursor.phase + 1, True)
            if requests:
                return dg.SensorResult(run_requests=requests, cursor=json.dumps(asdict(cursor)))
        done = _Cursor(cursor.tick, 0, False)
        return dg.SensorResult(
            skip_reason="the refresh is complete", cursor=json.dumps(asdict(done))
        )

    return _sensor


def _last_tick(cron: str, since: float) -> float | None:
    """Latest tick of `cron` after `since` that has passed; ticks missed in between are one."""
    last = None
    for tick in cron_string_iterator(since, cron, "UTC"):
        if tick.timestamp() > time.time():
            return last
        if tick.timestamp() > since:
            last = tick.timestamp()
    return last


def _active_runs(instance: dg.DagsterInstance, config: CohortConfig, tick: float) -> bool:
    wanted = dg.RunsFilter(tags={REFRESH_TAG: _tag(config, tick)}, statuses=list(_ACTIVE))
    return bool(instance.get_run_ids(wanted, limit=1))


def _tag(config: CohortConfig, tick: float) -> str:
    return f"{config.cohort}.{datetime.fromtimestamp(tick, UTC):%Y%m%dT%H%M%S}"


def _requests(
    phase: Sequence[Stage], cursor: _Cursor, workspace: Workspace, instance: dg.DagsterInstance
) -> Iterable[dg.RunRequest]:
    """Runs that bring the stages of a phase up to date; none when they are."""
    config = workspace.config
    tag = _tag(config, cursor.tick)
    keys = [asset_key(config.cohort, asset) for stage in phase for asset in stage.outputs]
    first = phase[0]
    if isinstance(first, SlideStage):
        slides = instance.get_dynamic_partitions(slide_partitions(config.cohort).name or "")
        pending = SlideRun(first, workspace, first.outputs, "").pending(slides)
        chunk = first.compute_for(config).chunk
        for start, end in contiguous_ranges(pending, slides, chunk):
            yield dg.RunRequest(
                run_key=f"{tag}.{cursor.phase}.{start}",
                asset_selection=keys,
                tags={REFRESH_TAG: tag, **range_tags(start, end)},
            )
    elif not all(isinstance(s, CohortStage) and is_current(s, workspace) for s in phase):
        yield dg.RunRequest(
            run_key=f"{tag}.{cursor.phase}", asset_selection=keys, tags={REFRESH_TAG: tag}
        )

"""Materialize a cohort from a script: the graph, stage by stage, in this process.

Works on the same instance as the web UI, which therefore shows every run. A stage whose receipts
are valid starts no run at all.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import dagster as dg

from mm_assets.assets.cohort_level import is_current
from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.intake import quarantine_event, take_in
from mm_assets.assets.partitions import SlideRun, is_quarantine
from mm_assets.assets.ranges import contiguous_ranges, range_tags
from mm_assets.assets.repair import repair_stage
from mm_assets.assets.stage import (
    CohortStage,
    SlideStage,
    Workspace,
    asset_key,
    slide_partitions,
)
from mm_assets.resources.launcher import tidy_jobs

# Dagster's console log would tear the progress bar; failures are reported by the walk.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class StageResult:
    """What the walk did with one stage.

    Attributes
    ----------
    computed, total
        Slides (or 1) computed now, and in all.
    failures
        Slide id or stage name -> reason, of what went wrong now. Quarantined slides are not
        failures: their reason is in the quarantine.
    skipped
        Why the stage was not tried.
    """

    stage: str
    computed: int = 0
    total: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    skipped: str = ""


class Walk:
    """Materializes stages of one cohort, in order."""

    def __init__(
        self, workspace: Workspace, definitions: dg.Definitions, instance: dg.DagsterInstance
    ) -> None:
        self.workspace, self.instance = workspace, instance
        self.job = definitions.resolve_implicit_global_asset_job_def()
        self.stages = cohort_stages(workspace.config)
        self._failed: set[str] = set()
        self._quarantined: set[str] = set()

    def run(
        self, select: Sequence[str] = (), slides: Sequence[str] | None = None
    ) -> Iterator[StageResult]:
        """Take in new slides, then bring each selected stage up to date.

        At the end slides that a stage has quarantined cease to be partitions: a daemon that starts
        after it would ask for them.

        Parameters
        ----------
        select
            Asset names, `*` allowed; none means all.
        slides
            Slide ids; None means all.

        Raises
        ------
        CohortError
            When the manifest cannot be used.
        ValueError
            When a pattern or a slide names nothing.
        """
        wanted = selected(self.stages, select)
        if self.workspace.config.slides:
            self._take_in()
        keys = self._partitions(slides)
        for stage in wanted:
            yield self._stage(stage, keys)
        if self._quarantined:
            self._take_in()

    def _take_in(self) -> None:
        found = take_in(self.workspace, self.instance)
        self.instance.report_runless_asset_event(
            quarantine_event(self.workspace.config, found.quarantined)
        )

    def _partitions(self, slides: Sequence[str] | None) -> list[str]:
        name = slide_partitions(self.workspace.config.cohort).name or ""
        present = list(self.instance.get_dynamic_partitions(name))
        if slides is None:
            return present
        unknown = sorted(set(slides) - set(present))
        if unknown:
            raise ValueError(f"unknown or quarantined slides: {', '.join(unknown)}")
        return [slide for slide in present if slide in set(slides)]

    def _stage(self, stage: SlideStage | CohortStage, keys: Sequence[str]) -> StageResult:
        broken = sorted(self._failed & set(stage.upstream))
        if broken:
            self._failed.update(stage.outputs)
            return StageResult(stage.name, skipped=f"{', '.join(broken)} failed")
        if isinstance(stage, SlideStage):
            return self._slide_stage(stage, keys)
        if is_current(stage, self.workspace):
            repair_stage(stage, self.workspace, self.instance, (), compare_versions=False)
            tidy_jobs(stage, self.workspace)
            return StageResult(stage.name, 0, 1)
        failure = self._execute(stage, {})
        if failure:
            self._failed.update(stage.outputs)
        return StageResult(
            stage.name, int(not failure), 1, {stage.name: failure} if failure else {}
        )

    def _slide_stage(self, stage: SlideStage, keys: Sequence[str]) -> StageResult:
        config = self.workspace.config
        pending = SlideRun(stage, self.workspace, stage.outputs, "").pending(keys)
        if not pending:
            tidy_jobs(stage, self.workspace)
        compute = stage.compute_for(config)
        order = self.instance.get_dynamic_partitions(slide_partitions(config.cohort).name or "")
        crash = ""
        for first, last in contiguous_ranges(pending, order, compute.chunk):
            failure = self._execute(stage, range_tags(first, last))
            covered = order[order.index(first) : order.index(last) + 1]
            if failure and self._crashed(stage, covered):
                crash = failure
                break
        # What an earlier, killed run had finished but not reported.
        repair_stage(stage, self.workspace, self.instance, keys, compare_versions=False)
        receipts = self.workspace.receipts.read_many(config.cohort, stage.name, pending)
        bad = {s: r.reason for s, r in receipts.items() if r.state == "failed"}
        faults = {s: why for s, why in bad.items() if not is_quarantine(receipts[s])}
        self._quarantined |= bad.keys() - faults.keys()
        if crash:
            faults[stage.name] = crash
            self._failed.update(stage.outputs)
        made = len(receipts) - len(bad)
        return StageResult(stage.name, made, len(keys), faults)

    def _crashed(self, stage: SlideStage, slides: Sequence[str]) -> bool:
        """Whether a run failed by itself: no receipt of its slides says why."""
        receipts = self.workspace.receipts.read_many(
            self.workspace.config.cohort, stage.name, slides
        )
        none_failed = all(receipt.state == "done" for receipt in receipts.values())
        return none_failed or len(receipts) < len(slides)

    def _execute(self, stage: SlideStage | CohortStage, tags: dict[str, str]) -> str:
        """Run one stage; the reason when it failed, else nothing."""
        keys = {asset_key(self.workspace.config.cohort, asset) for asset in stage.outputs}
        result = self.job.get_subset(asset_selection=keys).execute_in_process(
            instance=self.instance, raise_on_error=False, tags=tags, run_config=_QUIET
        )
        if result.success:
            return ""
        for event in result.get_step_failure_events():
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error:
                cause = data.error.cause or data.error
                return cause.message.strip()
        return "the run failed before its first step; see the run in the web UI"


def selected(
    stages: Sequence[SlideStage | CohortStage], select: Sequence[str]
) -> list[SlideStage | CohortStage]:
    """Stages that make an asset of these names, `*` allowed; all when there are none.

    Raises
    ------
    ValueError
        When a pattern names nothing.
    """
    names = [asset for stage in stages for asset in stage.outputs]
    for pattern in select:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no asset is named {pattern!r}; there are {', '.join(names)}")
    return [
        stage
        for stage in stages
        if not select or any(fnmatch.filter(stage.outputs, pattern) for pattern in select)
    ]

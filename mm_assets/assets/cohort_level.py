"""Execution of whole-cohort assets: reuse by receipt, one materialization, checks."""

import json
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import dagster as dg

from mm_assets.assets.made import Made
from mm_assets.assets.stage import (
    CohortStage,
    Job,
    Produced,
    Workspace,
    asset_key,
    asset_spec,
    plain,
)
from mm_assets.assets.twins import refuse_twins
from mm_assets.cohort.config import CohortConfig
from mm_assets.resources.engine import final_failures, retry_policy
from mm_assets.resources.estimate import spent
from mm_assets.resources.launcher import (
    CohortTask,
    Launcher,
    LocalLauncher,
    launcher_for,
    tidy_jobs,
)
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT, ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking

INPUTS_OK = "inputs_ok"
FAILED_CHECKS = "failed_checks"


def upstream_receipts(stage: CohortStage, workspace: Workspace) -> dict[str, dict[str, Receipt]]:
    """Finished receipts of everything the stage reads, per asset and slide (or ``cohort``)."""
    cohort = workspace.config.cohort
    return {
        asset: {
            name: receipt
            for name, receipt in workspace.receipts.read_all(cohort, asset).items()
            if receipt.state == "done"
        }
        for asset in stage.upstream
    }


def cohort_provenance(
    stage: CohortStage, workspace: Workspace, upstream: Mapping[str, Mapping[str, Receipt]]
) -> Provenance:
    """Inputs of the stage by digest: the manifest of slides of each per-slide asset included."""
    inputs = {
        asset: {name: receipt.digest for name, receipt in sorted(receipts.items())}
        for asset, receipts in upstream.items()
    }
    if stage.sources:
        inputs["source"] = dict(stage.sources(workspace))
    return Provenance(stage.name, COHORT, stage.code_version, dict(stage.parameters), inputs)


def judge_trial(stage: CohortStage, workspace: Workspace, told: Mapping[str, str]) -> float:
    """How good the hyper-parameters are that a trial of the stage's search was given."""
    assert stage.trials is not None
    upstream = upstream_receipts(stage, workspace)
    provenance = cohort_provenance(stage, workspace, upstream)
    return stage.trials.judge(Job(workspace, COHORT, {stage.name: provenance}, upstream, ""), told)


def is_current(stage: CohortStage, workspace: Workspace) -> bool:
    """Whether a valid receipt says that there is nothing to do."""
    upstream = upstream_receipts(stage, workspace)
    fingerprint = cohort_provenance(stage, workspace, upstream).fingerprint()
    cohort = workspace.config.cohort
    return workspace.receipts.valid(cohort, stage.name, COHORT, fingerprint) is not None


def run_cohort_stage(
    stage: CohortStage,
    workspace: Workspace,
    dagster_run_id: str,
    launcher: Launcher | None = None,
) -> Made:
    """Make the stage's artefact, or return the valid receipt of an earlier run.

    Parameters
    ----------
    launcher
        Where the work is done; here by default.

    Raises
    ------
    CohortError
        When an input is missing or unusable, or slides of two patients are the same.
    """
    config, receipts = workspace.config, workspace.receipts
    upstream = upstream_receipts(stage, workspace)
    absent = [asset for asset, found in upstream.items() if not found]
    if absent:
        raise dg.Failure(
            f"{stage.name} reads {', '.join(absent)}: materialize that first",
            allow_retries=False,
        )
    if any(COHORT not in found for found in upstream.values()):
        refuse_twins(workspace)
    provenance = cohort_provenance(stage, workspace, upstream)
    valid = receipts.valid(config.cohort, stage.name, COHORT, provenance.fingerprint())
    if valid:
        return Made(valid, None)
    job = Job(workspace, COHORT, {stage.name: provenance}, upstream, dagster_run_id)
    if stage.trials:
        # It begins the jobs itself that its `compute` is for.
        return _make(stage, job)
    task = CohortTask(
        config=config,
        store=workspace.store,
        tracking=workspace.tracking,
        stage=stage.name,
        compute=stage.compute_for(config),
        trains=stage.elsewhere == "training",
        reads_slides="slide" in stage.upstream,
        fingerprint=provenance.fingerprint(),
        work=partial(_make, stage, job),
    )
    return (launcher or LocalLauncher()).run_whole(task, workspace.log)


def _make(stage: CohortStage, job: Job) -> Made:
    started = time.monotonic()
    produced = stage.run(job)
    seconds = time.monotonic() - started if produced.seconds is None else produced.seconds
    receipt = Receipt(
        cohort=job.workspace.config.cohort,
        asset=stage.name,
        name=COHORT,
        state="done",
        provenance=job.provenance[stage.name],
        outputs=dict(produced.outputs),
        metadata={**plain(produced.metadata), FAILED_CHECKS: _failed_notes(produced)},
        seconds=seconds,
    )
    # Without a receipt nothing downstream can read what a blocking check has refused.
    if not any(check.name == INPUTS_OK and not check.passed for check in produced.checks):
        job.workspace.receipts.write(receipt)
    return Made(receipt, produced)


def cohort_asset(
    config: CohortConfig, stage: CohortStage, automation: dg.AutomationCondition[Any] | None
) -> dg.AssetsDefinition:
    """Dagster asset of a whole-cohort stage."""
    key = asset_key(config.cohort, stage.name)
    compute = stage.compute_for(config)

    @dg.multi_asset(
        name=f"{config.cohort}__{stage.name}",
        specs=[asset_spec(config.cohort, stage, stage.name, automation)],
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, blocking=name == INPUTS_OK)
            for name in (INPUTS_OK, *stage.checks)
        ],
        pool=compute.pool,
        op_tags=compute.op_tags(),
        retry_policy=retry_policy(),
    )
    def _asset(
        context: dg.AssetExecutionContext, store: ArtefactStore, tracking: Tracking
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        workspace = Workspace(config, store, tracking, context.log)
        with final_failures():
            launcher = launcher_for(compute, context)
            made = run_cohort_stage(stage, workspace, context.run_id, launcher)
        if made.produced is None:
            tidy_jobs(stage, workspace)
        costs = spent(compute, config.prices, made.paid_seconds) if made.produced else {}
        yield dg.MaterializeResult(
            asset_key=key,
            data_version=dg.DataVersion(made.receipt.digest),
            metadata=_metadata(made) | costs,
            check_results=_check_results(stage, made),
        )

    return _asset


def _failed_notes(produced: Produced) -> str:
    return json.dumps({check.name: check.note for check in produced.checks if not check.passed})


def _metadata(made: Made) -> dict[str, Any]:
    shown = dict(made.produced.metadata if made.produced else made.receipt.metadata)
    shown.pop(FAILED_CHECKS, None)
    return {
        **shown,
        "seconds": round(made.receipt.seconds, 2),
        "made": made.receipt.created,
        **({"reused": True} if made.produced is None else {}),
    }


def _check_results(stage: CohortStage, made: Made) -> list[dg.AssetCheckResult]:
    """Check results from the receipt, so that a reused artefact keeps its warnings."""
    failed = json.loads(str(made.receipt.metadata[FAILED_CHECKS]))
    checks = made.produced.checks if made.produced else ()
    details = {check.name: check.metadata for check in checks}
    return [
        dg.AssetCheckResult(
            check_name=name,
            passed=name not in failed,
            severity=dg.AssetCheckSeverity.ERROR
            if name == INPUTS_OK
            else dg.AssetCheckSeverity.WARN,
            metadata={
                **details.get(name, {}),
                **({"note": failed[name]} if failed.get(name) else {}),
            },
        )
        for name in (INPUTS_OK, *stage.checks)
    ]

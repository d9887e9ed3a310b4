"""Intake: slides that arrive are checked before they become partitions."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import dagster as dg
import pandas as pd

from mm_assets.assets.isolation import Loss, Report, run_isolated
from mm_assets.assets.partitions import is_quarantine
from mm_assets.assets.slides import named_by_id, slide_cache, slide_sources, slide_stage
from mm_assets.assets.stage import Workspace, asset_key, slide_partitions
from mm_assets.cohort.config import CohortConfig
from mm_assets.cohort.problems import Problem
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import Provenance
from mm_assets.wsi.errors import SlideError

QUARANTINE = "quarantine"
SHOWN_ROWS = 200
INSPECTED_AT_ONCE = 4


@dataclass(frozen=True)
class Intake:
    """What a look at the cohort's slides found.

    Attributes
    ----------
    added, removed
        Slide ids that became partitions, or ceased to be: gone from the manifest or quarantined.
    quarantined
        Slide id -> reason, of every slide that is refused at present.
    waiting
        Manifest entries whose file has not arrived, and the like.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    quarantined: Mapping[str, str]
    waiting: tuple[Problem, ...]


@dataclass(frozen=True)
class _Verdicts:
    """New slides: id -> reason of the refused, id -> trouble of those that cannot be reached."""

    refused: dict[str, str]
    unreachable: dict[str, str]


def take_in(workspace: Workspace, instance: dg.DagsterInstance) -> Intake:
    """Compare the cohort's slides with the partitions and bring the partitions up to date.

    New files are opened and checked first; those that cannot be used are quarantined with a
    reason and are looked at again only when the file changes.

    Raises
    ------
    CohortError
        When the manifest itself is unusable.
    """
    from mm_assets.cohort.manifest import read_manifest
    from mm_assets.cohort.problems import refuse_errors

    config = workspace.config
    assert config.slides is not None
    manifest, problems = read_manifest(config.slides)
    refuse_errors(problems)
    partitions = slide_partitions(config.cohort)
    present = instance.get_dynamic_partitions(partitions.name or "")
    quarantined = _quarantined(workspace)
    known = set(present) | set(quarantined)
    fresh = manifest[~manifest["slide_id"].isin(known)]
    verdicts = _judge(workspace, fresh)
    quarantined |= verdicts.refused
    rejected = verdicts.refused.keys() | verdicts.unreachable.keys()
    added = [slide for slide in fresh["slide_id"] if slide not in rejected]
    problems += [
        Problem(slide, why, "tried again at the next look", "warning")
        for slide, why in verdicts.unreachable.items()
    ]
    added += [s for s in manifest["slide_id"] if s in known - set(present) - set(quarantined)]
    listed = set(manifest["slide_id"])
    removed = [slide for slide in present if slide in quarantined or slide not in listed]
    if added:
        instance.add_dynamic_partitions(partitions.name or "", sorted(added))
    for slide in removed:
        instance.delete_dynamic_partition(partitions.name or "", slide)
    return Intake(tuple(sorted(added)), tuple(removed), quarantined, tuple(problems))


def _quarantined(workspace: Workspace) -> dict[str, str]:
    """Slides refused at intake or by a per-slide stage, whose file has not changed since."""
    config = workspace.config
    sources = slide_sources(config)
    reasons: dict[str, str] = {}
    for asset in ("slide", "tissue"):
        for slide, receipt in workspace.receipts.read_all(config.cohort, asset).items():
            if slide in sources and is_quarantine(receipt):
                reasons[slide] = receipt.reason
    slide_receipts = workspace.receipts.read_all(config.cohort, "slide")
    made_by = {slide: slide_receipts[slide].provenance for slide in reasons}
    parameters = slide_stage(config).parameters
    return {
        slide: reason
        for slide, reason in reasons.items()
        if made_by[slide].inputs["source"] == sources[slide]
        and made_by[slide].parameters == parameters
    }


def _judge(workspace: Workspace, rows: pd.DataFrame) -> _Verdicts:
    """Check new slides; a receipt keeps the reason of each that cannot be used."""
    if rows.empty:
        return _Verdicts({}, {})
    config = workspace.config
    stage = slide_stage(config)
    files = dict(zip(rows["slide_id"], zip(rows["path"], rows["mpp"], strict=True), strict=True))
    compute = stage.compute_for(config)
    found: dict[str, Loss | None] = {}
    work, log = partial(_inspect, config, files), workspace.log
    found |= run_isolated(work, list(files), found.__setitem__, log, compute.memory_gib)
    bad = {slide: loss for slide, loss in found.items() if loss}
    verdicts = _Verdicts(
        {slide: loss.reason for slide, loss in bad.items() if loss.own_fault},
        {slide: loss.reason for slide, loss in bad.items() if not loss.own_fault},
    )
    sources = slide_sources(config) if verdicts.refused else {}
    for slide, why in verdicts.refused.items():
        workspace.receipts.write(_refusal(config, slide, sources[slide], why))
    return verdicts


def _inspect(
    config: CohortConfig,
    files: Mapping[str, tuple[str, float]],
    slides: Sequence[str],
    report: Report,
) -> None:
    """Open and check slides, in a child process; the outcome is what is wrong, or None."""
    from mm_assets.cohort.cache import local_copy
    from mm_assets.wsi.inspection import inspect_slide

    def inspect(slide: str) -> None:
        path, mpp = files[slide]
        report.started(slide)
        try:
            with local_copy(path, slide_cache()) as local, named_by_id(config, slide, local):
                inspect_slide(local, mpp)
        except Exception as error:
            expected = isinstance(error, SlideError | OSError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            report.finished(slide, Loss(reason, own_fault=isinstance(error, SlideError)))
        else:
            report.finished(slide, None)

    with ThreadPoolExecutor(INSPECTED_AT_ONCE) as pool:
        list(pool.map(inspect, slides))


def _refusal(config: CohortConfig, slide: str, source: dict[str, str], reason: str) -> Receipt:
    stage = slide_stage(config)
    provenance = Provenance(
        "slide", slide, stage.code_version, dict(stage.parameters), {"source": source}
    )
    return Receipt(
        cohort=config.cohort,
        asset="slide",
        name=slide,
        state="failed",
        provenance=provenance,
        reason=reason,
        metadata={"quarantined": True},
    )


def quarantine_spec(config: CohortConfig) -> dg.AssetSpec:
    """External asset whose metadata lists the slides that are refused at present."""
    return dg.AssetSpec(
        asset_key(config.cohort, QUARANTINE),
        group_name=f"{config.cohort}_imaging",
        description="Slides that cannot be used, each with its reason. Updated by the intake.",
    )


def quarantine_event(
    config: CohortConfig, quarantined: Mapping[str, str]
) -> dg.AssetMaterialization:
    """Materialization of the quarantine list."""
    records = [
        dg.TableRecord({"slide": slide, "reason": reason})
        for slide, reason in sorted(quarantined.items())[:SHOWN_ROWS]
    ]
    metadata: dict[str, dg.MetadataValue] = {"slides": dg.MetadataValue.int(len(quarantined))}
    if records:
        metadata["quarantine"] = dg.MetadataValue.table(records)
    return dg.AssetMaterialization(asset_key(config.cohort, QUARANTINE), metadata=metadata)

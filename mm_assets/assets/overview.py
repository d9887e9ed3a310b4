"""What a cohort's receipts say: states of assets and slides, and results, as rows for people."""

from typing import Any

from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.partitions import is_quarantine
from mm_assets.assets.reports import evaluation_name, read_results
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import SlideStage, Workspace
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT


def asset_states(space: Workspace) -> list[dict[str, Any]]:
    """One row an asset: how many slides (or 1) are done, quarantined, failed and missing."""
    slides = _manifest_slides(space)
    rows = []
    for stage in cohort_stages(space.config):
        names = slides if isinstance(stage, SlideStage) else [COHORT]
        for asset in stage.outputs:
            receipts = space.receipts.read_many(space.config.cohort, asset, names)
            states = [_state(receipts.get(name)) for name in names]
            rows.append(
                {
                    "asset": asset,
                    "done": states.count("done"),
                    "quarantined": states.count("quarantined"),
                    "failed": states.count("failed"),
                    "missing": states.count("missing"),
                }
            )
    return rows


def slide_states(space: Workspace) -> list[dict[str, Any]]:
    """One row a slide: the furthest asset made, or the reason why it stopped."""
    per_asset = {
        asset: space.receipts.read_all(space.config.cohort, asset)
        for stage in cohort_stages(space.config)
        if isinstance(stage, SlideStage)
        for asset in stage.outputs
    }
    rows = []
    for slide in _manifest_slides(space):
        row = {"slide": slide, "state": "new", "asset": "", "reason": ""}
        for asset, receipts in per_asset.items():
            state = _state(receipts.get(slide))
            if state == "missing":
                continue
            row = {"slide": slide, "state": state, "asset": asset, "reason": receipts[slide].reason}
            if state != "done":
                break
        rows.append(row)
    return rows


def result_rows(space: Workspace, task: str) -> list[dict[str, Any]]:
    """Metrics of every model of a task, out-of-fold, with interval, protocol and weights stamp.

    Raises
    ------
    ValueError
        When the task has not been evaluated.
    """
    receipt = space.receipts.read(space.config.cohort, evaluation_name(task), COHORT)
    if receipt is None or receipt.state != "done":
        raise ValueError(
            f"{task} has not been evaluated: run `mm materialize {space.config.cohort}`"
        )
    metrics = read_results(space.store, space.config.cohort, task)
    stamp = receipt.metadata.get("weights", "")
    columns = ["model", "metric", "value", "low", "high", "patients", "events", "protocol"]
    return [
        {"task": task, **dict(zip(columns, row, strict=True)), "weights": stamp}
        for row in metrics[columns].round(4).itertuples(index=False, name=None)
    ]


def _manifest_slides(space: Workspace) -> list[str]:
    return list(manifest_rows(space.config)) if space.config.slides else []


def _state(receipt: Receipt | None) -> str:
    if receipt is None:
        return "missing"
    return "quarantined" if is_quarantine(receipt) else receipt.state

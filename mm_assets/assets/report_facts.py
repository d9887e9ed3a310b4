"""What reports say about where patients, slides and figures come from."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from mm_assets.assets.omics import CLINICAL, OMICS, read_table, splits_name
from mm_assets.assets.partitions import is_quarantine
from mm_assets.assets.slides import manifest_rows
from mm_assets.assets.stage import Job
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.config import Task
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import COHORT

if TYPE_CHECKING:
    import pandas as pd

    from mm_assets.evaluation.comparison import Evaluation
    from mm_assets.evaluation.report import FlowStep

WEIGHTS = ("encoder", "weights", "weights_sha256")
LIBRARIES = ("mm-assets", "numpy", "pandas", "scikit-learn", "lifelines", "lightgbm", "torch")


def patient_flow(job: Job, evaluation: "Evaluation", endpoint: Endpoint) -> Iterator["FlowStep"]:
    """Patients from the clinical table to the predictions."""
    from mm_assets.evaluation.report import FlowStep

    config = job.workspace.config
    usable, excluded = endpoint.table.index, len(endpoint.excluded)
    yield FlowStep("patients in the clinical table", len(usable) + excluded)
    left_out = f"{excluded} left out, for the reasons below" if excluded else ""
    yield FlowStep("with a usable endpoint", len(usable), left_out)
    known = []
    if config.slides:
        rows = manifest_rows(config)
        owners = {rows[slide].patient_id for slide in _embedded(job) if slide in rows}
        known.append(f"{len(owners.intersection(usable))} with slides")
    if config.omics:
        known.append(f"{len(usable.intersection(read_table(job, OMICS).index))} with omics")
    scored = int(evaluation.metrics["patients"].max())
    detail = f"of them {', '.join(known)}" if known else ""
    yield FlowStep("with out-of-fold predictions", scored, detail)


def follow_up(endpoint: Endpoint) -> float:
    """Median months of follow-up; NaN for classes."""
    from mm_assets.evaluation.survival_curves import median_follow_up

    if endpoint.kind != "survival":
        return float("nan")
    return median_follow_up(
        endpoint.table["time"].to_numpy(float), endpoint.table["event"].to_numpy() == 1
    )


def report_provenance(job: Job, task: Task, models: Sequence[str]) -> dict[str, str]:
    """What the figures were made from: versions of software, weights and data."""
    weights = {
        " ".join(str(r.metadata[key]) for key in WEIGHTS if key in r.metadata)
        for r in _embedded(job).values()
    }
    receipts = {model: job.upstream[model][COHORT] for model in models}
    return {
        "software": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        **({"encoder weights": ", ".join(sorted(weights))} if weights else {}),
        "clinical table": job.upstream[CLINICAL][COHORT].digest,
        "splits": job.upstream[splits_name(task)][COHORT].digest,
        **{
            f"slides of {model}": f"embedded by {stamp}"
            for model, receipt in receipts.items()
            if (stamp := receipt.metadata["weights"])
        },
        **{
            f"predictions of {model}": f"{receipt.digest}, "
            f"code version {receipt.provenance.code_version}"
            for model, receipt in receipts.items()
        },
    }


def slide_flow(job: Job) -> Iterator["FlowStep"]:
    """Slides from the manifest to the embeddings."""
    from mm_assets.evaluation.report import FlowStep

    config = job.workspace.config
    if config.slides:
        found = len(manifest_rows(config))
        used = len(job.upstream[TILES])
        yield FlowStep("slides found", found)
        missing = found - used
        yield FlowStep(
            "slides embedded", used, f"{missing} quarantined, failed or new" if missing else ""
        )


def quarantined(job: Job) -> "pd.DataFrame":
    """Slides in quarantine; columns slide_id, reason."""
    import pandas as pd

    config = job.workspace.config
    receipts = [
        receipt
        for asset in ("slide", "tissue", TILES)
        if config.slides
        for receipt in job.workspace.receipts.read_all(config.cohort, asset).values()
        if is_quarantine(receipt)
    ]
    rows = {receipt.name: receipt.reason for receipt in receipts}
    return pd.DataFrame(sorted(rows.items()), columns=["slide_id", "reason"])


def _embedded(job: Job) -> dict[str, Receipt]:
    """Receipts of the slides that have embeddings; empty without slides."""
    config = job.workspace.config
    found = job.workspace.receipts.read_all(config.cohort, TILES) if config.slides else {}
    return {slide: receipt for slide, receipt in found.items() if receipt.state == "done"}

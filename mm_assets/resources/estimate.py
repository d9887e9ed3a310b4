"""What work on slides will take and cost, from what it took before; and what it has cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from mm_assets.assets.compute import Compute, gpu_count
from mm_assets.resources.receipts import Receipts

HERE = "here"


@dataclass(frozen=True)
class Estimate:
    """Expected work.

    Attributes
    ----------
    slides
        None: the work is on the whole cohort.
    where
        Instance type, or ``here``.
    hours
        None when it was never done before.
    cost
        None when there are no hours, or no price of the instance type.
    """

    slides: int | None
    where: str
    hours: float | None
    cost: float | None

    def __str__(self) -> str:
        hours = "time unknown" if self.hours is None else f"about {self.hours:.2g} hours"
        cost = "cost unknown" if self.cost is None else f"about {self.cost:.2f}"
        plural = "slide" if self.slides == 1 else "slides"
        what = "the cohort" if self.slides is None else f"{self.slides} {plural}"
        return f"{what} on {self.where}, {hours}, {cost}"


def estimate(
    slides: int | None,
    compute: Compute,
    prices: Mapping[str, float],
    seconds: float | None,
    at_once: int = 1,
) -> Estimate:
    """Expected work on `slides`, of which one takes `seconds` and `at_once` run side by side.

    None for `slides` is work on the whole cohort, which takes `seconds`.

    Examples
    --------
    >>> gpu = Compute(gpu=1, launcher="sagemaker")
    >>> print(estimate(200, gpu, {"ml.g5.xlarge": 1.5}, seconds=90))
    200 slides on ml.g5.xlarge, about 5 hours, about 7.50
    """
    where = place(compute)
    times = 1 if slides is None else slides / at_once
    hours = None if seconds is None else times * seconds / 3600
    cost = prices[where] * hours if hours is not None and where in prices else None
    return Estimate(slides, where, hours, cost)


def place(compute: Compute) -> str:
    """Instance type that the work runs on, or ``here``."""
    return HERE if compute.launcher == "local" else compute.sagemaker_instance


def seconds_before(receipts: Receipts, cohort: str, asset: str) -> float | None:
    """Mean time that finished slides, or the whole cohort, took before; None without any."""
    done = [r.seconds for r in receipts.read_all(cohort, asset).values() if r.state == "done"]
    return fmean(done) if done else None


def spent(compute: Compute, prices: Mapping[str, float], seconds: float) -> dict[str, str | float]:
    """Where work was done if not here, the seconds of GPUs it had, and what it cost."""
    where = place(compute)
    gpus = min(compute.gpu, gpu_count()) if where == HERE else compute.gpu
    instance = {} if where == HERE else {"instance": where}
    gpu = {"gpu_seconds": round(seconds * gpus, 3)} if gpus else {}
    cost = {"cost": round(prices[where] * seconds / 3600, 6)} if where in prices else {}
    return {**instance, **gpu, **cost}

"""What work on slides will take and cost, from what it took before; and what it has cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from mm_assets.assets.compute import Compute
from mm_assets.resources.receipts import Receipts


@dataclass(frozen=True)
class Estimate:
    """Expected work.

    Attributes
    ----------
    where
        Instance type, or ``here``.
    hours
        None when no slide was processed yet.
    cost
        None when there are no hours, or no price of the instance type.
    """

    slides: int
    where: str
    hours: float | None
    cost: float | None

    def __str__(self) -> str:
        hours = "time unknown" if self.hours is None else f"about {self.hours:.2g} hours"
        cost = "cost unknown" if self.cost is None else f"about {self.cost:.2f}"
        plural = "slide" if self.slides == 1 else "slides"
        return f"{self.slides} {plural} on {self.where}, {hours}, {cost}"


def estimate(
    slides: int,
    compute: Compute,
    prices: Mapping[str, float],
    seconds: float | None,
    at_once: int = 1,
) -> Estimate:
    """Expected work on `slides`, of which one takes `seconds` and `at_once` run side by side.

    Examples
    --------
    >>> gpu = Compute(gpu=1, launcher="sagemaker")
    >>> print(estimate(200, gpu, {"ml.g5.xlarge": 1.5}, seconds=90))
    200 slides on ml.g5.xlarge, about 5 hours, about 7.50
    """
    where = place(compute)
    hours = None if seconds is None else slides * seconds / at_once / 3600
    cost = prices[where] * hours if hours is not None and where in prices else None
    return Estimate(slides, where, hours, cost)


def place(compute: Compute) -> str:
    """Instance type that the work runs on, or ``here``."""
    return "here" if compute.launcher == "local" else compute.sagemaker_instance


def seconds_a_slide(receipts: Receipts, cohort: str, asset: str) -> float | None:
    """Mean time that finished slides took; None without any."""
    done = [r.seconds for r in receipts.read_all(cohort, asset).values() if r.state == "done"]
    return fmean(done) if done else None


def spent(compute: Compute, prices: Mapping[str, float], seconds: float) -> dict[str, str | float]:
    """Where a slide was processed elsewhere, and what its seconds there were and cost."""
    where = place(compute)
    gpu = {"gpu_seconds": round(seconds * compute.gpu, 3)} if compute.gpu else {}
    cost = {"cost": round(prices[where] * seconds / 3600, 6)} if where in prices else {}
    return {"instance": where, **gpu, **cost}

"""What work on slides will take and cost, from what it took before; and what it has cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from mm_assets.assets.compute import Compute, gpu_count
from mm_assets.resources.receipts import Receipts
from mm_assets.resources.store import COHORT

HERE = "here"
SAMPLE = 100


@dataclass(frozen=True)
class Estimate:
    """Expected work.

    Attributes
    ----------
    slides, trials
        None: the work is on the whole cohort, and no trials.
    where
        Instance type, or ``here``.
    hours
        Of one machine, or of all machines together; None when it was never done before.
    cost
        None when there are no hours, or no price of the instance type.
    at_most
        Whether hours and cost are those of the time limit.
    """

    slides: int | None
    where: str
    hours: float | None
    cost: float | None
    trials: int | None = None
    at_most: bool = False

    def __str__(self) -> str:
        about = "at most" if self.at_most else "about"
        hours = "time unknown" if self.hours is None else f"{about} {_rounded(self.hours)} hours"
        cost = "cost unknown" if self.cost is None else f"{about} {self.cost:.2f}"
        return f"{self._what} on {self.where}, {hours}, {cost}"

    @property
    def _what(self) -> str:
        if self.trials is not None:
            return _counted(self.trials, "trial")
        return "the cohort" if self.slides is None else _counted(self.slides, "slide")


def _rounded(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


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


def estimate_trials(
    trials: int | None,
    compute: Compute,
    prices: Mapping[str, float],
    seconds: float | None,
) -> Estimate:
    """Expected trials, of which each takes `seconds`; None: as long as it may.

    Examples
    --------
    >>> trial = Compute(hours=1, launcher="sagemaker")
    >>> print(estimate_trials(140, trial, {"ml.m5.large": 0.1}, seconds=None))
    140 trials on ml.m5.large, at most 140 hours, at most 14.00
    """
    each = compute.hours * 3600 if seconds is None else seconds
    total = None if trials is None else trials * each
    expected = estimate(None, compute, prices, total)
    return replace(expected, trials=trials, at_most=seconds is None)


def place(compute: Compute) -> str:
    """Instance type that the work runs on, or ``here``."""
    return HERE if compute.launcher == "local" else compute.sagemaker_instance


def seconds_before(receipts: Receipts, cohort: str, asset: str) -> float | None:
    """Mean time that finished slides, or the whole cohort, took before; None without any.

    Of many slides some hundred, spread over all of them.
    """
    names = receipts.names(cohort, asset)
    sample = names[:: max(1, len(names) // SAMPLE)]
    done = [
        r.seconds for r in receipts.read_many(cohort, asset, sample).values() if r.state == "done"
    ]
    return fmean(done) if done else None


def trial_seconds_before(receipts: Receipts, cohort: str, asset: str) -> float | None:
    """Mean time that a trial of a search took before, finished or not; None without any."""
    receipt = receipts.read(cohort, asset, COHORT)
    if receipt is None or receipt.state != "done":
        return None
    trials = receipt.metadata["trials"], receipt.metadata["failed_trials"]
    return receipt.seconds / sum(int(str(number)) for number in trials)


def spent(compute: Compute, prices: Mapping[str, float], seconds: float) -> dict[str, str | float]:
    """Where work was done if not here, the seconds of GPUs it had, and what it cost."""
    where = place(compute)
    gpus = min(compute.gpu, gpu_count()) if where == HERE else compute.gpu
    instance = {} if where == HERE else {"instance": where}
    gpu = {"gpu_seconds": round(seconds * gpus, 3)} if gpus else {}
    cost = {"cost": round(prices[where] * seconds / 3600, 6)} if where in prices else {}
    return {**instance, **gpu, **cost}

"""Kaplan-Meier estimates: of survival for curves, of censoring for weights."""

from dataclasses import dataclass

import numpy as np

from mm_assets.evaluation.ranking import Flags, Floats, Integers

# Below this probability of still being under observation, inverse weights exceed 20 and a few
# patients would decide the result.
_LEAST_OBSERVED = 0.05
_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class SurvivalCurve:
    """A step function over distinct observed times.

    Attributes
    ----------
    time
        Distinct observed times, ascending, shape ``(k,)``, months.
    survival, low, high
        Probability of surviving beyond `time` with its 95 % interval, shape ``(k,)``.
    at_risk
        Patients under observation just before `time`, shape ``(k,)``.
    """

    time: Floats
    survival: Floats
    low: Floats
    high: Floats
    at_risk: Integers

    def at(self, time: float) -> tuple[float, float, float]:
        """Survival beyond `time` with its interval; NaN when follow-up ends earlier."""
        if not len(self.time) or time > self.time[-1]:
            return (float("nan"),) * 3
        index = int(np.searchsorted(self.time, time, side="right")) - 1
        if index < 0:
            return 1.0, 1.0, 1.0
        return float(self.survival[index]), float(self.low[index]), float(self.high[index])


def kaplan_meier(time: Floats, event: Flags) -> SurvivalCurve:
    """Kaplan-Meier curve with log(-log) Greenwood intervals (as in lifelines and R's survfit).

    Parameters
    ----------
    time, event
        Shape ``(n,)``.
    """
    times, deaths, at_risk = _counts(time, event)
    survival = np.cumprod(1 - deaths / at_risk, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(deaths / (at_risk * (at_risk - deaths)))
        half_width = _NORMAL_975 * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-half_width), survival ** np.exp(half_width)
    certain = (survival == 0) | (survival == 1)
    low, high = np.where(certain, survival, low), np.where(certain, survival, high)
    return SurvivalCurve(times, survival, low, high, at_risk)


def median_follow_up(time: Floats, event: Flags) -> float:
    """Median months until censoring by the reverse Kaplan-Meier method; NaN when not reached.

    Schemper and Smith, Controlled Clinical Trials 17, 1996.
    """
    curve = kaplan_meier(time, ~event)
    reached = curve.time[curve.survival <= 0.5]
    return float(reached[0]) if len(reached) else float("nan")


@dataclass(frozen=True)
class CensoringCurve:
    """Probability of still being under observation, estimated on training follow-up.

    Weights by its inverse undo the effect of censoring on a test set; estimating it on training
    patients keeps the test set out of it (Uno et al., Statistics in Medicine 30, 2011, section 2).
    """

    time: Floats
    uncensored: Floats

    @classmethod
    def fit(cls, time: Floats, event: Flags) -> "CensoringCurve":
        """Kaplan-Meier estimate of the censoring distribution; at ties, events come first."""
        times, deaths, at_risk = _counts(time, event)
        total = np.diff(np.append(len(time) - at_risk, len(time)))
        censored, exposed = total - deaths, at_risk - deaths
        hazard = np.divide(censored, exposed, out=np.zeros(len(times)), where=exposed > 0)
        return cls(times, np.cumprod(1 - hazard))

    def at(self, time: Floats) -> Floats:
        """Probability of being under observation beyond each `time`, shape as `time`."""
        index = np.searchsorted(self.time, time, side="right")
        return np.concatenate([[1.0], self.uncensored])[index]

    def weights(self, time: Floats) -> Floats:
        """Inverse of `at`; 0 where nobody was observed that long."""
        observed = self.at(time)
        return np.divide(1.0, observed, out=np.zeros_like(observed), where=observed > 0)

    def truncation(self, horizons: tuple[float, ...]) -> float:
        """The last horizon, or the last time that enough training patients were observed."""
        enough = self.time[self.uncensored >= _LEAST_OBSERVED]
        end = float(enough[-1]) if len(enough) else 0.0
        return min([end, *([max(horizons)] if horizons else [])])


def _counts(time: Floats, event: Flags) -> tuple[Floats, Integers, Integers]:
    """Distinct times, events at each, patients at risk just before each."""
    times, index = np.unique(time, return_inverse=True)
    deaths = np.bincount(index, weights=event, minlength=len(times)).astype(np.int64)
    total = np.bincount(index, minlength=len(times))
    at_risk = len(time) - np.concatenate([[0], np.cumsum(total)[:-1]]).astype(np.int64)
    return times, deaths, at_risk

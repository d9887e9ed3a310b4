"""Whether a newly trained model may take the place of the one in use.

Both are judged by their out-of-fold predictions of the same patients in the same folds, on the same
resamples. The challenger is promoted when the interval of its paired difference from the champion
excludes harm beyond a margin: a test of non-inferiority, as drug regulators use it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_assets.evaluation.metrics import nan_mean
from mm_assets.evaluation.out_of_fold import OutOfFold
from mm_assets.evaluation.resampling import interval, patient_counts

if TYPE_CHECKING:
    from mm_assets.cohort.clinical import Endpoint

_SHARED = ["repeat", "patient_id"]


@dataclass(frozen=True)
class Comparison:
    """A challenger minus a champion.

    Attributes
    ----------
    difference, low, high
        Of the metric, mean over folds, with its 95 % interval; NaN where nothing was compared.
    patients
        Scored by both.
    obstacle
        Why nothing could be compared; empty when something was.
    """

    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    patients: int = 0
    obstacle: str = ""

    def excludes_harm(self, margin: float) -> bool:
        """Whether the challenger is not worse by `margin` or more."""
        return bool(self.low > -margin)

    def in_words(self, metric: str, margin: float) -> str:
        """The outcome in a sentence."""
        if self.obstacle:
            return f"not compared: {self.obstacle}"
        outcome = "excludes" if self.excludes_harm(margin) else "does not exclude"
        return (
            f"{metric} {self.difference:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}, "
            f"{self.patients} patients), which {outcome} a loss of {margin:g}"
        )


def compare(
    challenger: pd.DataFrame,
    champion: pd.DataFrame,
    endpoint: "Endpoint",
    splits: pd.DataFrame,
    metric: str,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Paired difference of a metric of which more is better.

    Parameters
    ----------
    challenger, champion
        Out-of-fold predictions of one model each: repeat, fold, patient_id, then risk, or
        probability_<class>.
    endpoint
        Outcome of each patient of the task, as it is known now.
    splits
        Folds of the challenger: repeat, fold, patient_id, role.
    bootstrap, seed
        Number of resamples, and the seed of the draw.
    """
    tests = splits.loc[splits["role"] == "test", ["repeat", "fold", "patient_id"]]
    tests = tests[tests["patient_id"].isin(endpoint.table.index)]
    obstacle = _obstacle(challenger, champion, tests, endpoint)
    if obstacle:
        return Comparison(obstacle=obstacle)
    both = pd.concat([challenger.assign(model="challenger"), champion.assign(model="champion")])
    both = both.merge(tests)
    used = splits[splits["patient_id"].isin(endpoint.table.index)]
    scores = OutOfFold(both, endpoint, used, patient_counts(tests, bootstrap, seed), ())
    shared = scores.scored("challenger") & scores.scored("champion")
    new, old = (scores.values(model, shared)[metric] for model in ("challenger", "champion"))
    gaps = nan_mean(new - old)
    low, high = interval(gaps[1:])
    return Comparison(float(gaps[0]), low, high, int(shared.sum()))


def _obstacle(
    challenger: pd.DataFrame, champion: pd.DataFrame, tests: pd.DataFrame, endpoint: "Endpoint"
) -> str:
    """Why the two cannot be compared pair by pair; empty when they can."""
    columns = ["risk"] if endpoint.kind == "survival" else _probabilities(endpoint)
    if not set(columns) <= set(champion.columns):
        return "the champion predicts another outcome"
    ours = challenger.merge(tests)[[*_SHARED, "fold"]]
    pairs = ours.merge(champion[[*_SHARED, "fold"]], on=_SHARED, suffixes=("", "_champion"))
    if pairs.empty:
        return "the champion has predictions for none of its patients"
    folds = tests[["repeat", "fold"]].drop_duplicates()
    if (pairs["fold"] != pairs["fold_champion"]).any() or len(
        pairs[["repeat", "fold"]].drop_duplicates()
    ) < len(folds):
        return "its folds are others than the champion's (other patients, or another protocol)"
    return ""


def _probabilities(endpoint: "Endpoint") -> list[str]:
    return [f"probability_{name}" for name in endpoint.classes]

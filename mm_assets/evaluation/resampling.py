"""Patient-level bootstrap: shared resamples, intervals, two-sided p, Holm's correction."""

import math

import numpy as np
import pandas as pd

from mm_assets.evaluation.ranking import Floats

# With fewer defined resamples than this share, quantiles describe a selection, not the metric.
_LEAST_DEFINED = 0.5
_RESOLVED_TAIL = 10


def patient_counts(test_sets: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """How often each patient is drawn in each bootstrap resample.

    Patients are drawn with replacement inside the test set of the first repeat that holds them,
    so that every resample keeps the fold sizes; a patient has the same count in every repeat,
    because repeats of one patient are not independent evidence. All models share the counts.

    Parameters
    ----------
    test_sets
        Columns repeat, fold, patient_id.
    resamples
        Number of resamples.
    seed
        Same seed and test sets, same counts.

    Returns
    -------
    counts
        Index patient_id, float64 columns 0 to `resamples`; column 0 is all ones, the data itself.
    """
    first = test_sets.sort_values(["repeat", "fold", "patient_id"]).drop_duplicates("patient_id")
    generator = np.random.default_rng(seed)
    blocks = []
    for _, members in first.groupby(["repeat", "fold"], sort=True):
        size = len(members)
        drawn = generator.multinomial(size, np.full(size, 1 / size), size=resamples).T
        counts = np.concatenate([np.ones((size, 1)), drawn], axis=1)
        blocks.append(pd.DataFrame(counts, index=members["patient_id"].to_numpy()))
    return pd.concat(blocks).rename_axis("patient_id")


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values; NaN when most of them are undefined."""
    defined = values[~np.isnan(values)]
    if len(defined) < max(_LEAST_DEFINED * len(values), 1):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def two_sided_p(difference: float, resampled: Floats) -> float:
    """Bootstrap p of the hypothesis of no difference: twice the smaller tail beyond zero.

    A tail holding few resamples says little beyond "small", and its least value of ``2 / (b + 1)``
    cannot survive a correction for many pairs. Then the tail of a normal distribution with the
    bootstrap's standard error is used, if it is smaller (Davison and Hinkley 1997, section 4.4).

    Parameters
    ----------
    difference
        On the data.
    resampled
        On each resample, shape ``(b,)``.
    """
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < max(_LEAST_DEFINED * len(resampled), 1) or np.isnan(difference):
        return float("nan")
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    counted = min(1.0, 2 * (tail + 1) / (len(defined) + 1))
    error = defined.std(ddof=1) if len(defined) > 1 else 0.0
    if tail >= _RESOLVED_TAIL or error == 0:
        return float(counted)
    return float(min(counted, math.erfc(abs(difference) / error / math.sqrt(2))))


def holm(p_values: Floats) -> Floats:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979); NaN stays NaN."""
    adjusted = np.full(len(p_values), np.nan)
    defined = np.flatnonzero(~np.isnan(p_values))
    order = defined[np.argsort(p_values[defined], kind="stable")]
    stepped = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted

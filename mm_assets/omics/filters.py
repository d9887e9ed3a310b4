"""Univariate filter of omics features, fitted on training patients only."""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint

ALL_PATIENTS = -1
WINSOR = (0.01, 0.99)
_BLOCK = 1024  # features at a time, to bound memory
Array = NDArray[np.float64]


def fit_filter(
    omics: pd.DataFrame, endpoint: Endpoint, train: Sequence[str], keep: int | None
) -> pd.DataFrame:
    """Score every feature against the endpoint and keep the best.

    Expression is winsorised at 1 and 99 % of the training patients first; copy number and
    mutation are discrete, and clipping would erase rare alterations. Survival: the score test of
    a Cox model with one feature (for 0/1 features the log-rank test), statistic z, above 0 where
    higher values go with earlier events. Classes: Kruskal-Wallis H (for two classes the squared
    Mann-Whitney z). Patients without a value are left out feature by feature. Features with one
    value in training are not scored.

    Parameters
    ----------
    omics
        As from `read_omics`.
    train
        Training patients; those without omics or endpoint are ignored.
    keep
        Number of features kept; None keeps all that vary.

    Returns
    -------
    DataFrame
        One row a kept feature, best first: feature, modality, statistic, p_value, q_value
        (Benjamini-Hochberg over all features scored), rank (from 1), winsor_low, winsor_high,
        median (of training patients).

    Raises
    ------
    ValueError
        When no training patient has omics.
    """
    patients = endpoint.table.index.intersection(list(train)).intersection(omics.index)
    if patients.empty:
        raise ValueError("no training patient has omics")
    outcome = endpoint.table.loc[patients]
    scored = pd.concat(
        [_score(block, outcome) for block in _blocks(omics.loc[patients])], ignore_index=True
    )
    scored = scored[scored["winsor_low"] < scored["winsor_high"]]
    # Sorted by the logarithm: p-values of strong features all underflow to 0.
    scored = scored.sort_values(["log_p", "feature"], ignore_index=True)
    scored["p_value"] = np.exp(scored["log_p"])
    scored["q_value"] = _benjamini_hochberg(scored["p_value"].to_numpy())
    scored["rank"] = np.arange(1, len(scored) + 1)
    scored["modality"] = scored["feature"].map(lambda name: name.partition(":")[0])
    columns = ["feature", "modality", "statistic", "p_value", "q_value", "rank"]
    return scored.iloc[:keep][[*columns, "winsor_low", "winsor_high", "median"]]


def apply_filter(omics: pd.DataFrame, fitted: pd.DataFrame) -> pd.DataFrame:
    """The kept features, best first, winsorised at the fitted limits.

    Parameters
    ----------
    omics
        As from `read_omics`, of any patients.
    fitted
        Result of `fit_filter`, or the rows of one fold of `filter_folds`.

    Returns
    -------
    DataFrame
        float32, index as `omics`; missing values stay missing.

    Raises
    ------
    ValueError
        When `fitted` holds more than one fold, or features that `omics` lacks.
    """
    if fitted["feature"].duplicated().any():
        raise ValueError("the filter holds several folds: choose one")
    absent = [name for name in fitted["feature"] if name not in omics.columns]
    if absent:
        raise ValueError(f"{len(absent)} features are not in the omics table, e.g. {absent[0]}")
    fitted = fitted.sort_values("rank")
    chosen = omics[fitted["feature"].to_list()]
    low, high = fitted["winsor_low"].to_numpy(), fitted["winsor_high"].to_numpy()
    return chosen.clip(low.astype(np.float32), high.astype(np.float32), axis=1)


def filter_folds(
    omics: pd.DataFrame, endpoint: Endpoint, splits: pd.DataFrame, keep: int | None
) -> pd.DataFrame:
    """`fit_filter` on the training patients of every fold, and on all patients of the task.

    Returns
    -------
    DataFrame
        Columns repeat, fold and fitted_on (`patients_digest` of the training patients), then those
        of `fit_filter`. repeat = fold = -1 is the filter fitted on all patients, for the final
        model only.
    """
    fitted = []
    for _, rows in splits[splits["role"] == "train"].groupby(["repeat", "fold"]):
        train = rows["patient_id"].tolist()
        kept = fit_filter(omics, endpoint, train, keep)
        repeat, fold = (int(number) for number in rows[["repeat", "fold"]].iloc[0])
        fitted.append(kept.assign(repeat=repeat, fold=fold, fitted_on=patients_digest(train)))
    everyone = endpoint.table.index.tolist()
    final = fit_filter(omics, endpoint, everyone, keep)
    digest = patients_digest(everyone)
    fitted.append(final.assign(repeat=ALL_PATIENTS, fold=ALL_PATIENTS, fitted_on=digest))
    table = pd.concat(fitted, ignore_index=True)
    return table[["repeat", "fold", "fitted_on", *final.columns]]


def patients_digest(patients: Iterable[str]) -> str:
    """Digest of a set of patients, by which a model knows whom a filter was fitted to."""
    return sha256("\n".join(sorted(patients)).encode()).hexdigest()


def _blocks(omics: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for start in range(0, omics.shape[1], _BLOCK):
        yield omics.iloc[:, start : start + _BLOCK]


def _score(block: pd.DataFrame, outcome: pd.DataFrame) -> pd.DataFrame:
    from scipy.stats import chi2

    values = block.to_numpy(np.float64)
    low, median, high = _quantiles(values, (WINSOR[0], 0.5, WINSOR[1]))
    discrete = ~block.columns.str.startswith("expression:")
    with np.errstate(all="ignore"):
        low = np.where(discrete, np.fmin.reduce(values), low)
        high = np.where(discrete, np.fmax.reduce(values), high)
        values = np.clip(values, low, high)
        if "label" in outcome:
            statistic, freedom = kruskal_wallis(values, outcome["label"].to_numpy())
            squared = statistic
        else:
            statistic = cox_score(
                values, outcome["time"].to_numpy(), outcome["event"].to_numpy(bool)
            )
            squared, freedom = statistic**2, np.ones(values.shape[1])
    return pd.DataFrame(
        {
            "feature": block.columns,
            "statistic": statistic,
            "log_p": chi2.logsf(squared, np.maximum(freedom, 1)),
            "winsor_low": low,
            "winsor_high": high,
            "median": median,
        }
    )


def cox_score(values: Array, time: Array, event: NDArray[np.bool_]) -> Array:
    """Score test of one-feature Cox models at zero effect, as z.

    At every event time, the observed sum over those with the event is compared with its mean and
    variance under drawing them from the patients at risk without replacement: with 0/1 features
    this is the log-rank test (Mantel 1966; Kalbfleisch & Prentice, ch. 4).

    Parameters
    ----------
    values
        Shape [patients, features]; NaN where missing.
    time, event
        Shape [patients].

    Returns
    -------
    ndarray
        Shape [features]; 0 where there is no information.
    """
    order = np.argsort(-time, kind="stable")
    time, event, values = time[order], event[order], values[order]
    known = ~np.isnan(values)
    mean = np.nansum(values, axis=0) / np.maximum(known.sum(axis=0), 1)
    centred = np.where(known, values - mean, 0.0)
    # Row of the last patient at each distinct time: everyone up to it is at risk.
    last = np.flatnonzero(np.append(time[1:] != time[:-1], True))
    at_risk = np.cumsum(known, axis=0, dtype=np.float64)[last]
    expected = np.cumsum(centred, axis=0)[last] / np.maximum(at_risk, 1)
    variance = np.cumsum(centred**2, axis=0)[last] / np.maximum(at_risk, 1) - expected**2
    first = np.append(0, last[:-1] + 1)
    deaths = np.add.reduceat(known * event[:, None], first, axis=0, dtype=np.float64)
    observed = np.add.reduceat(centred * event[:, None], first, axis=0)
    drawn = deaths * (at_risk - deaths) / np.maximum(at_risk - 1, 1)
    score = (observed - deaths * expected).sum(axis=0)
    information = (drawn * variance.clip(0)).sum(axis=0)
    return np.where(information > 1e-12, score / np.sqrt(np.maximum(information, 1e-12)), 0.0)


def kruskal_wallis(values: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """Kruskal-Wallis test with correction for ties, feature by feature.

    Parameters
    ----------
    values
        Shape [patients, features]; NaN where missing.
    labels
        Class of each patient, shape [patients].

    Returns
    -------
    tuple of ndarray
        H and its degrees of freedom, each of shape [features].
    """
    from scipy.stats import rankdata

    known = ~np.isnan(values)
    ranks = rankdata(values, axis=0, nan_policy="omit")
    count = known.sum(axis=0)
    centred = np.where(known, ranks - (count + 1) / 2, 0.0)
    member = (labels[:, None] == np.unique(labels)).astype(np.float64)
    sizes = member.T @ known
    between = ((member.T @ centred) ** 2 / np.maximum(sizes, 1)).sum(axis=0)
    total = (centred**2).sum(axis=0)
    statistic = np.where(total > 0, (count - 1) * between / np.maximum(total, 1e-12), 0.0)
    return statistic, (sizes > 0).sum(axis=0) - 1.0


def _quantiles(values: Array, levels: Sequence[float]) -> list[Array]:
    """Quantiles by linear interpolation of each column, ignoring NaN, which has all of them."""
    ordered = np.sort(values, axis=0)
    last = np.maximum((~np.isnan(ordered)).sum(axis=0) - 1, 0)
    columns = np.arange(values.shape[1])
    found = []
    for level in levels:
        place = level * last
        below = np.floor(place).astype(int)
        above = np.minimum(below + 1, last)
        low, high = ordered[below, columns], ordered[above, columns]
        found.append(low + (place - below) * (high - low))
    return found


def _benjamini_hochberg(p_values: Array) -> Array:
    """Adjusted p-values of p-values in ascending order."""
    count = len(p_values)
    raised = p_values * count / np.arange(1, count + 1)
    return np.minimum.accumulate(raised[::-1])[::-1].clip(max=1)

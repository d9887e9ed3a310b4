"""Metrics, models and protocol in plain words."""

import math
from collections.abc import Sequence

import pandas as pd

_LABELS = {
    "c_index": "C-index",
    "uno_c": "Uno C",
    "auc": "ROC AUC",
    "average_precision": "Average precision",
    "brier": "Brier score",
    "integrated_brier": "Integrated Brier score",
    "log_loss": "Log loss",
}
_WORDS = {
    "c_index": "Harrell C inside each test fold",
    "auc": "ROC AUC inside each test fold (second class; mean of one against the rest for more)",
    "average_precision": "average precision inside each test fold (second class; mean of one "
    "against the rest for more)",
    "brier": "Brier score of class probabilities",
    "log_loss": "negative log-likelihood of the true class",
}


def metric_label(metric: str) -> str:
    """Name of a metric for headings, e.g. ``auc_36`` -> ``AUC at 36 months``."""
    if metric in _LABELS:
        return _LABELS[metric]
    kind, horizon = metric.rsplit("_", 1)
    return f"{'AUC' if kind == 'auc' else 'Brier score'} at {horizon} months"


def metric_in_words(metric: str, horizons: Sequence[float]) -> str:
    """How a metric is computed."""
    if metric in _WORDS:
        return _WORDS[metric]
    if metric == "uno_c":
        end = f"{max(horizons):g} months or " if horizons else ""
        return (
            "Uno C inside each test fold, censoring estimated on training patients, truncated at "
            f"{end}the end of training follow-up"
        )
    if metric == "integrated_brier":
        return (
            f"Brier score of predicted survival averaged over time from 0 to {max(horizons):g} "
            "months or the end of the fold's follow-up, weighted likewise"
        )
    kind, horizon = metric.rsplit("_", 1)
    what = "cumulative/dynamic AUC" if kind == "auc" else "Brier score of predicted survival"
    return (
        f"{what} at {horizon} months inside each test fold, weighted by inverse probability of "
        "censoring estimated on training patients"
    )


def one_per_kind(metrics: Sequence[str]) -> list[str]:
    """Metrics with all horizons of a kind in one, e.g. ``auc_12, 36, 60``; in their order."""
    horizons: dict[str, list[str]] = {}
    for metric in metrics:
        kind, _, horizon = metric.rpartition("_")
        known = metric in _LABELS
        horizons.setdefault(metric if known else kind, []).extend([] if known else [horizon])
    return [f"{kind}_{', '.join(at)}" if at else kind for kind, at in horizons.items()]


def interval_in_words(low: float, high: float) -> str:
    """A 95 % interval for a sentence."""
    if math.isnan(low):
        return "95 % interval not defined"
    return f"95 % interval {low:.3f} to {high:.3f}"


def p_in_words(p: float) -> str:
    """A p value for a sentence or a table, never rounded to zero."""
    if math.isnan(p):
        return "p not defined"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def weights_stamp(weights: str) -> str:
    """The line every plot and report made with these encoder weights carries."""
    warning = " - not for use, demonstration only" if "random:" in weights else ""
    return f"Encoder weights: {weights}{warning}"


def protocol_in_words(splits: pd.DataFrame, clinical: pd.DataFrame) -> str:
    """Folds and repeats; site-preserving is stated only when no site is on both sides of a fold."""
    repeats = splits["repeat"].nunique()
    folds = splits[["repeat", "fold"]].drop_duplicates().shape[0] // max(repeats, 1)
    kind = "site-preserving " if _sites_preserved(splits, clinical) else ""
    return f"out-of-fold, {folds} {kind}folds, {repeats} repeat{'s' if repeats > 1 else ''}"


def _sites_preserved(splits: pd.DataFrame, clinical: pd.DataFrame) -> bool:
    if "site" not in clinical:
        return False
    sites = splits.assign(site=splits["patient_id"].map(clinical["site"]))
    if sites["site"].isna().any():
        return False
    return not (sites.groupby(["repeat", "fold", "site"])["role"].nunique() > 1).any()

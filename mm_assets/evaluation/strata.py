"""Results by subgroup, by predicted probability and by risk group."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from mm_assets.evaluation.calibration import (
    calibration_line,
    class_calibration,
    expected_calibration_error,
    survival_calibration,
    survival_slope,
)
from mm_assets.evaluation.metrics import nan_mean
from mm_assets.evaluation.out_of_fold import (
    OutOfFold,
    horizon_survival,
    probabilities,
    survival_arrays,
)
from mm_assets.evaluation.ranking import Flags, Floats
from mm_assets.evaluation.resampling import interval
from mm_assets.evaluation.survival_curves import kaplan_meier

SMALLEST_GROUP = 5
MASKED = f"<{SMALLEST_GROUP}"
HIDDEN = f"{SMALLEST_GROUP} or more"
_VARIABLES = ("site", "sex", "age")
# A numeric column with more distinct values than this is cut at its median.
_MOST_CATEGORIES = 6
_ROC_GRID = np.linspace(0, 1, 101)


def subgroup_table(scores: OutOfFold, model: str, clinical: pd.DataFrame) -> pd.DataFrame:
    """The main metric of one model in groups by site, sex and age.

    Pairs are formed inside folds and added up, because a group's share of one fold is small.
    Groups under five patients are masked: no value, and "<5" for their counts. Where one group
    alone is masked, its counts would follow from the total, so those of the smallest other group
    are "5 or more".

    Returns
    -------
    table
        Columns model, variable, group, patients, events, metric, value, low, high.
    """
    scored, events = scores.scored(model), scores.outcomes["event"].to_numpy()
    rows = []
    for variable, group, members in _groups(clinical.reindex(scores.patients)):
        scored_members = members & scored
        row = {
            "model": model,
            "variable": variable,
            "group": group,
            "patients": MASKED,
            "events": MASKED,
            "metric": "c_index" if scores.kind == "survival" else "auc",
            "value": np.nan,
            "low": np.nan,
            "high": np.nan,
        }
        if scored_members.sum() >= SMALLEST_GROUP:
            ranked, total = scores.pairs(model, scored_members)
            values = nan_mean(
                np.divide(ranked, total, out=np.full(ranked.shape, np.nan), where=total > 0)
            )
            row["value"] = float(values[0])
            low, high = interval(values[1:])
            # A few patients ranked perfectly stay so in every resample: that is no certainty.
            if low < high:
                row |= {"low": low, "high": high}
            row["patients"] = str(int(scored_members.sum()))
            row["events"] = str(int(events[scored_members].sum()))
        rows.append(row)
    columns = ["model", "variable", "group", "patients", "events"]
    table = pd.DataFrame(rows, columns=[*columns, "metric", "value", "low", "high"])
    for _, groups in table.groupby("variable"):
        shown = groups.loc[groups["patients"] != MASKED, "patients"].astype(int)
        if len(groups) - len(shown) == 1 and len(shown):
            table.loc[shown.idxmin(), ["patients", "events"]] = HIDDEN
    return table


def calibration_table(scores: OutOfFold) -> pd.DataFrame:
    """Predicted and observed probability in groups; each patient once, from the first repeat.

    Returns
    -------
    table
        Columns model, target, bin, predicted, observed, low, high, patients.
    """
    tables = []
    for model, target, table, probability in _targets(scores):
        if scores.kind == "survival":
            time, event = survival_arrays(table)
            bins = survival_calibration(time, event, 1 - probability, float(target))
        else:
            bins = class_calibration(_positive(scores, table, target), probability)
        bins.insert(0, "model", model)
        bins.insert(1, "target", target)
        tables.append(bins)
    columns = ["model", "target", "bin", "predicted", "observed", "low", "high", "patients"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def calibration_fit_table(scores: OutOfFold) -> pd.DataFrame:
    """Calibration in few figures: predicted and observed share, slope, intercept, ECE.

    For survival, the slope is that of a Cox regression on log(-log) of predicted survival, and
    intercept and ECE, which need every outcome at the horizon, are NaN.
    """
    rows = []
    for model, target, table, probability in _targets(scores):
        row = {"model": model, "target": target, "patients": len(table)}
        row["predicted"] = float(probability.mean())
        if scores.kind == "survival":
            time, event = survival_arrays(table)
            row["observed"] = 1 - kaplan_meier(time, event).at(float(target))[0]
            row["slope"] = survival_slope(time, event, 1 - probability)
            row["intercept"] = row["ece"] = np.nan
        else:
            positive = _positive(scores, table, target)
            row["observed"] = float(positive.mean())
            row["slope"], row["intercept"] = calibration_line(positive, probability)
            row["ece"] = expected_calibration_error(positive, probability)
        rows.append(row)
    columns = ["model", "target", "patients", "predicted", "observed", "slope", "intercept", "ece"]
    return pd.DataFrame(rows, columns=columns)


def risk_group_table(scores: OutOfFold) -> tuple[pd.DataFrame, list[str]]:
    """Kaplan-Meier curves of high and low risk, cut at the training median, with log-rank p.

    Risks of different folds do not compare, so each patient is above or below the `risk_cut` of
    his own fold; a model without it is skipped.

    Returns
    -------
    curves
        Columns model, group, time, survival, low, high, at_risk, patients, events, log_rank_p.
    notes
        Which models were skipped and why.
    """
    from lifelines.statistics import logrank_test

    tables, notes = [], []
    for model in scores.models if scores.kind == "survival" else []:
        table = scores.first_repeat(model)
        if "risk_cut" not in table or table["risk_cut"].isna().any():
            notes.append(f"No risk groups for {model}: it came without its training median risk.")
            continue
        time, event = survival_arrays(table)
        high = (table["risk"] > table["risk_cut"]).to_numpy()
        if min(high.sum(), (~high).sum()) < SMALLEST_GROUP:
            notes.append(
                f"No risk groups for {model}: a group has under {SMALLEST_GROUP} patients."
            )
            continue
        p_value = logrank_test(time[high], time[~high], event[high], event[~high]).p_value
        for group, members in (("high", high), ("low", ~high)):
            curve = kaplan_meier(time[members], event[members])
            tables.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "group": group,
                        **vars(curve),
                        "patients": int(members.sum()),
                        "events": int(event[members].sum()),
                        "log_rank_p": float(p_value),
                    }
                )
            )
    columns = ["model", "group", "time", "survival", "low", "high", "at_risk"]
    columns += ["patients", "events", "log_rank_p"]
    return (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns),
        notes,
    )


def roc_table(scores: OutOfFold) -> pd.DataFrame:
    """ROC curves of classes, averaged vertically over folds (Fawcett 2006, section 8)."""
    tables = []
    everyone = np.ones(len(scores.patients), dtype=bool)
    for model in scores.models if scores.kind == "classification" else []:
        for target in _shown_classes(scores):
            curves = []
            for index in range(len(scores.folds)):
                outcome, table, _ = scores.test_set(model, index, everyone)
                positive = _positive(scores, outcome, target)
                score = table[f"probability_{target}"].to_numpy(np.float64)
                curves.append(_roc_on_grid(positive, score))
            tables.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "target": target,
                        "false_positive_rate": _ROC_GRID,
                        "true_positive_rate": nan_mean(np.stack(curves)),
                    }
                )
            )
    columns = ["model", "target", "false_positive_rate", "true_positive_rate"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _roc_on_grid(positive: Flags, score: Floats) -> Floats:
    from sklearn.metrics import roc_curve

    if positive.all() or not positive.any():
        return np.full(len(_ROC_GRID), np.nan)
    false, true, _ = roc_curve(positive, score)
    sensitivity = np.interp(_ROC_GRID, false, true)
    sensitivity[0] = 0.0
    return np.asarray(sensitivity)


def _targets(scores: OutOfFold) -> Iterator[tuple[str, str, pd.DataFrame, Floats]]:
    """Model, horizon or class, patients with outcome, probability of the event or the class."""
    for model in scores.models:
        table = scores.first_repeat(model)
        if scores.kind == "survival":
            for horizon in scores.horizons:
                death = 1 - horizon_survival(table, horizon)
                given = ~np.isnan(death)
                if given.any():
                    yield model, f"{horizon:g}", table[given], death[given]
        else:
            for target in _shown_classes(scores):
                column = scores.classes.index(target)
                yield model, target, table, probabilities(table, scores.classes)[:, column]


def _shown_classes(scores: OutOfFold) -> tuple[str, ...]:
    """With two classes the second says it all."""
    return scores.classes[1:] if len(scores.classes) == 2 else scores.classes


def _positive(scores: OutOfFold, table: pd.DataFrame, target: str) -> Flags:
    return np.asarray(table["label"] == scores.classes.index(target))


def _groups(clinical: pd.DataFrame) -> Iterator[tuple[str, str, Flags]]:
    for variable in (name for name in _VARIABLES if name in clinical):
        labels = _labels(clinical[variable])
        for group in sorted(labels.unique(), key=lambda name: (name == "unknown", name)):
            yield variable, group, (labels == group).to_numpy()


def _labels(column: pd.Series) -> pd.Series:
    """Group of each patient; a numeric column with many values is cut at its median."""
    known = column.notna()
    labels = pd.Series("unknown", index=column.index, dtype=object)
    if pd.api.types.is_numeric_dtype(column):
        labels[known] = column[known].map(lambda value: f"{float(value):g}")
        if column.nunique() > _MOST_CATEGORIES:
            median = column.median()
            above = f"over {median:g}"
            labels[known] = np.where(column[known] > median, above, f"up to {median:g}")
    else:
        labels[known] = column[known].astype(str)
    return labels

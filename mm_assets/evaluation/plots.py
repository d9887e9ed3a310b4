"""Plots of an evaluation, each readable on its own: title, units, patients, protocol, weights.

Functions return the bytes of an image: ``svg`` for reports, ``png`` for slides, ``small`` for
Dagster's metadata (a PNG below 45 kB).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_assets.evaluation.descriptions import metric_label, p_in_words
from mm_assets.evaluation.metrics import higher_is_better
from mm_assets.evaluation.sheet import (
    COLOURS,
    FAINT,
    GREY,
    ImageKind,
    PlotContext,
    Sheet,
    styled,
)
from mm_assets.evaluation.strata import MASKED, SMALLEST_GROUP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHANCE = 0.5
_RANKING = ("c_index", "uno_c", "auc")
_ROW = 0.32


@styled
def metric_forest(
    metrics: pd.DataFrame, metric: str, context: PlotContext, image: ImageKind = "svg"
) -> bytes:
    """One metric of every model with its 95 % interval, best first.

    Parameters
    ----------
    metrics
        `Evaluation.metrics`.
    metric
        Which metric.
    context, image
        As everywhere in this module.
    """
    rows = metrics[(metrics["metric"] == metric) & metrics["value"].notna()]
    rows = rows.sort_values("value", ascending=higher_is_better(metric), ignore_index=True)
    note = rows["protocol"].iloc[0].split("; ", 1)[1] if len(rows) else "metric not defined"
    title = f"{metric_label(metric)} by model ({counts_in_words(rows, context)})"
    sheet = Sheet(title, context, note)
    axes = sheet.axes(_ROW * max(len(rows), 1) + 0.25, left=2.3, right=1.6)
    texts = [
        f"{value:.3f} ({low:.3f} to {high:.3f})"
        for value, low, high in zip(rows["value"], rows["low"], rows["high"], strict=True)
    ]
    _forest(axes, rows.rename(columns={"value": "estimate"}), texts, context)
    better = "higher" if higher_is_better(metric) else "lower"
    axes.set_xlabel(f"{metric_label(metric)}, 95 % interval ({better} is better)")
    if metric.startswith(_RANKING):
        axes.axvline(_CHANCE, color=GREY, linewidth=1)
    if metric in context.attainable:
        best = context.attainable[metric]
        axes.axvline(best, color=COLOURS[2], linestyle="--", linewidth=1.2)
        axes.text(
            best,
            1.01,
            f"best attainable {best:.3f}",
            color=COLOURS[2],
            size=8,
            ha="center",
            transform=axes.get_xaxis_transform(),
        )
    return sheet.render(image)


@styled
def difference_forest(
    differences: pd.DataFrame,
    metric: str,
    reference: str,
    context: PlotContext,
    image: ImageKind = "svg",
) -> bytes:
    """Paired differences of one model against every other, with intervals and corrected p."""
    rows = differences_from(differences, metric, reference)
    title = f"{metric_label(metric)}: {context.name(reference)} minus each other model"
    count = f" ({rows['patients'].min()} patients)" if len(rows) else ""
    note = "both models on the same patients and the same patient-level bootstrap resamples"
    sheet = Sheet(title + count, context, note)
    axes = sheet.axes(_ROW * max(len(rows), 1) + 0.25, left=2.3, right=2.45)
    columns = ("difference", "low", "high", "p_adjusted")
    texts = [
        f"{gap:+.3f} ({low:+.3f} to {high:+.3f}), {p_in_words(p)}"
        for gap, low, high, p in zip(*(rows[name] for name in columns), strict=True)
    ]
    _forest(axes, rows.rename(columns={"difference": "estimate"}), texts, context)
    axes.axvline(0, color=GREY, linewidth=1)
    side = "right" if higher_is_better(metric) else "left"
    axes.set_xlabel(
        "Paired difference, 95 % interval; p after Holm's correction\n"
        f"{side} of zero: {context.name(reference)} is better"
    )
    return sheet.render(image)


@styled
def roc_curves(
    roc: pd.DataFrame,
    metrics: pd.DataFrame,
    models: Sequence[str],
    context: PlotContext,
    image: ImageKind = "svg",
) -> bytes:
    """ROC curves averaged over folds, one panel a class."""
    targets = list(dict.fromkeys(roc["target"]))
    auc = metrics[(metrics["metric"] == "auc") & metrics["model"].isin(list(models))]
    values = dict(zip(auc["model"], auc["value"], strict=True))
    what = f"ROC curve for {targets[0]}" if len(targets) == 1 else "ROC curve of each class"
    note = "curve and AUC of each test fold, averaged over folds"
    sheet = Sheet(f"{what} ({counts_in_words(auc, context)})", context, note)
    panels = sheet.panels(len(targets), len(values))
    for axes, target in zip(panels, targets, strict=True):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, zorder=0)
        for model in values:
            curve = roc[(roc["model"] == model) & (roc["target"] == target)]
            axes.plot(
                curve["false_positive_rate"],
                curve["true_positive_rate"],
                color=context.colour(model),
                label=f"{context.name(model)}, AUC {values[model]:.3f}",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.01), title=target if len(targets) > 1 else "")
        axes.set_xlabel("1 - specificity")
    panels[0].set_ylabel("Sensitivity")
    sheet.legend(panels[0])
    return sheet.render(image)


@styled
def kaplan_meier_plot(
    risk_groups: pd.DataFrame, model: str, context: PlotContext, image: ImageKind = "svg"
) -> bytes:
    """Survival of the high and low risk group with intervals and numbers at risk."""
    rows = risk_groups[risk_groups["model"] == model]
    p_value = p_in_words(float(rows["log_rank_p"].iloc[0]))
    title = f"Survival by predicted risk: {context.name(model)} (log-rank {p_value})"
    note = (
        "high risk is above the median risk of the training patients of the fold; Kaplan-Meier "
        "with 95 % interval, each patient once, drawn while "
        f"{SMALLEST_GROUP} or more are at risk"
    )
    sheet = Sheet(title, context, note)
    axes, strip = sheet.stacked(3.0, 0.62, left=0.95)
    groups = {group: rows[rows["group"] == group] for group in ("low", "high")}
    end = float(rows.loc[rows["at_risk"] >= SMALLEST_GROUP, "time"].max())
    for (group, curve), colour in zip(groups.items(), COLOURS[:2], strict=True):
        label = f"{group} risk: {curve['patients'].iloc[0]} patients, "
        label += f"{curve['events'].iloc[0]} events"
        shown = curve[curve["at_risk"] >= SMALLEST_GROUP]
        survival, low, high = (
            np.append(1.0, shown[column]) for column in ("survival", "low", "high")
        )
        time = np.append(0.0, shown["time"])
        axes.step(time, survival, where="post", color=colour, label=label, linewidth=1.8)
        axes.fill_between(time, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    axes.set(xlim=(0, end), ylim=(0, 1.02), ylabel="Probability of survival")
    axes.set_xlabel("Months")
    axes.legend(loc="upper right")
    _numbers_at_risk(strip, groups, [tick for tick in axes.get_xticks() if tick <= end], end)
    return sheet.render(image)


@styled
def calibration_plot(
    calibration: pd.DataFrame,
    models: Sequence[str],
    context: PlotContext,
    image: ImageKind = "svg",
) -> bytes:
    """Predicted against observed probability in groups of patients, one panel a target."""
    rows = calibration[calibration["model"].isin(list(models))]
    targets = list(dict.fromkeys(rows["target"]))
    patients = rows.groupby(["model", "target"])["patients"].sum()
    title = f"Calibration: is the predicted probability what happens? ({patients.max()} patients)"
    note = "groups of about equal size by predicted probability, each patient once"
    sheet = Sheet(title, context, note)
    panels = sheet.panels(len(targets), len(models))
    for axes, target in zip(panels, targets, strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", zorder=0)
        for model in models:
            bins = rows[(rows["model"] == model) & (rows["target"] == target)].dropna()
            colour = context.colour(model)
            axes.vlines(bins["predicted"], bins["low"], bins["high"], color=colour, alpha=0.4)
            axes.plot(
                bins["predicted"],
                bins["observed"],
                color=colour,
                marker=context.marker(model),
                markersize=4,
                label=context.name(model),
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        gap = " " if len(targets) == 1 else "\n"
        axes.set_xlabel(f"Predicted probability of{gap}{target_in_words(target, context)}")
    panels[0].set_ylabel("Observed share, 95 % interval")
    sheet.legend(panels[0])
    return sheet.render(image)


@styled
def learning_curve_plot(
    learning_curve: pd.DataFrame, context: PlotContext, image: ImageKind = "svg"
) -> bytes:
    """The main metric by number of training patients, with intervals."""
    metric = str(learning_curve["metric"].iloc[0])
    note = (
        "mean over folds and random draws of training patients, the test folds always whole; "
        "slides without selection of tiles; 95 % intervals of the patient-level bootstrap"
    )
    title = f"Would more patients help? {metric_label(metric)} by number of training patients"
    sheet = Sheet(title, context, note)
    axes = sheet.axes(2.8, left=0.75, right=2.1)
    models = list(dict.fromkeys(learning_curve["model"]))
    for place, model in enumerate(models):
        rows = learning_curve[learning_curve["model"] == model]
        # Side by side, so that intervals of models do not cover each other.
        shift = (place - (len(models) - 1) / 2) * 0.008 * learning_curve["trained_on"].max()
        at, colour = rows["trained_on"] + shift, context.colour(model)
        axes.vlines(at, rows["low"], rows["high"], color=colour, alpha=0.5)
        axes.plot(
            at,
            rows["value"],
            color=colour,
            marker=context.marker(model),
            markersize=5,
            label=context.name(model),
        )
    axes.axhline(_CHANCE, color=GREY, linewidth=1)
    axes.set_xlim(0, learning_curve["trained_on"].max() * 1.06)
    axes.set_xlabel("Training patients (mean over folds)")
    axes.set_ylabel(f"{metric_label(metric)} (0.5 is chance)")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    return sheet.render(image)


def target_in_words(target: str, context: PlotContext) -> str:
    """What a calibration target stands for: a horizon in months, or a class."""
    return target if context.classes else f"the event by {target} months"


def differences_from(differences: pd.DataFrame, metric: str, reference: str) -> pd.DataFrame:
    """Differences `reference` minus each other model, largest first.

    Returns
    -------
    table
        Columns model, difference, low, high, p, p_adjusted, patients.
    """
    rows = differences[(differences["metric"] == metric) & differences["difference"].notna()]
    ahead = rows[rows["model_a"] == reference].rename(columns={"model_b": "model"})
    behind = rows[rows["model_b"] == reference].rename(columns={"model_a": "model"})
    flipped = behind.assign(
        difference=-behind["difference"], low=-behind["high"], high=-behind["low"]
    )
    columns = ["model", "difference", "low", "high", "p", "p_adjusted", "patients"]
    both = pd.concat([ahead[columns], flipped[columns]])
    return both.sort_values("difference", ignore_index=True)


def _forest(axes: "Axes", rows: pd.DataFrame, texts: Sequence[str], context: PlotContext) -> None:
    """One line a row: interval, estimate, and the figures on the right."""
    columns = (rows[name] for name in ("model", "estimate", "low", "high"))
    for position, (model, estimate, low, high) in enumerate(zip(*columns, strict=True)):
        colour = context.colour(model)
        axes.plot([low, high], [position, position], color=colour, linewidth=2)
        axes.plot(estimate, position, context.marker(model), color=colour, markersize=6)
        axes.text(
            1.02,
            position,
            texts[position],
            transform=axes.get_yaxis_transform(),
            va="center",
            size=8,
        )
    axes.set_yticks(range(len(rows)), [context.name(model) for model in rows["model"]])
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _numbers_at_risk(
    axes: "Axes", groups: dict[str, pd.DataFrame], ticks: Sequence[float], end: float
) -> None:
    axes.set(xlim=(0, end), ylim=(0, 3))
    axes.axis("off")
    axes.text(0, 2.5, "Patients at risk", size=8, color=GREY, va="center")
    for row, (group, curve), colour in zip((1.5, 0.5), groups.items(), COLOURS[:2], strict=True):
        axes.text(
            -0.04,
            row,
            f"{group} risk",
            color=colour,
            size=8,
            ha="right",
            va="center",
            transform=axes.get_yaxis_transform(),
        )
        for tick in ticks:
            later = curve.loc[curve["time"] >= tick, "at_risk"]
            count = int(later.iloc[0]) if len(later) else 0
            shown = MASKED if 0 < count < SMALLEST_GROUP else str(count)
            axes.text(tick, row, shown, size=8, ha="center", va="center")


def counts_in_words(rows: pd.DataFrame, context: PlotContext) -> str:
    """Patients and events, as a range when models could score different patients."""
    spans = []
    for column in ("patients", "events"):
        low, high = (int(rows[column].min()), int(rows[column].max())) if len(rows) else (0, 0)
        spans.append(f"{low}" if low == high else f"{low} to {high}")
    events = f"{spans[1]} of the rarest class" if context.classes else f"{spans[1]} events"
    return f"{spans[0]} patients, {events}"

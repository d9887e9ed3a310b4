"""What each modality gives: the full model, its ablations and the clinical baseline."""

import numpy as np
import pandas as pd

from mm_assets.evaluation.descriptions import metric_label
from mm_assets.evaluation.plots import counts_in_words
from mm_assets.evaluation.sheet import COLOURS, GREY, INK, ImageKind, PlotContext, Sheet, styled

_CHANCE = 0.5
_NEUTRAL = "#9A9A9A"
_CLINICAL = "Clinical alone"


def ablation_table(
    metrics: pd.DataFrame, metric: str, full_model: str, clinical_model: str | None = None
) -> pd.DataFrame:
    """The full model and its ablations, found by name, and the model of clinical covariates.

    The rule is ``<full model>[_<modality>...][_no_expression]``, e.g. ``heec``, ``heec_imaging``,
    ``heec_no_expression``.

    Returns
    -------
    table
        Columns modalities (for people), expression ("with", "without", or "" where genes play no
        part or nothing was made without them), model, value, low, high; single modalities first,
        everything last.
    """
    rows = metrics[metrics["metric"] == metric].set_index("model")
    family = [m for m in rows.index if m == full_model or m.startswith(f"{full_model}_")]
    bases = {model: model.removesuffix("_no_expression") for model in family}
    ablated = any(model != base for model, base in bases.items())
    genes = {
        base
        for base in bases.values()
        if ablated and (base == full_model or "_omics" in base.removeprefix(full_model))
    }
    table = pd.DataFrame(
        [
            {
                "modalities": _modalities(base.removeprefix(full_model)),
                "expression": ("with" if model == base else "without") if base in genes else "",
                "model": model,
                **{name: float(rows[name][model]) for name in ("value", "low", "high")},
                "count": base.count("_") if base != full_model else np.inf,
            }
            for model, base in bases.items()
        ]
    )
    if clinical_model is not None and clinical_model in rows.index:
        own = {name: float(rows[name][clinical_model]) for name in ("value", "low", "high")}
        named = {"modalities": _CLINICAL, "expression": "", "model": clinical_model, "count": 1}
        table = pd.concat([table, pd.DataFrame([named | own])])
    return table.sort_values("count", kind="stable", ignore_index=True).drop(columns="count")


@styled
def ablation_bars(
    metrics: pd.DataFrame,
    metric: str,
    full_model: str,
    context: PlotContext,
    image: ImageKind = "svg",
    clinical_model: str | None = None,
) -> bytes:
    """What each modality gives beyond chance, with and without gene expression side by side."""
    table = ablation_table(metrics, metric, full_model, clinical_model)
    labels = list(dict.fromkeys(table["modalities"]))
    title = f"What each modality gives: {metric_label(metric)}"
    own = metrics[(metrics["metric"] == metric) & (metrics["model"] == full_model)]
    count = counts_in_words(own, context)
    note = "bars start at chance, lines are 95 % intervals of the patient-level bootstrap"
    sheet = Sheet(f"{title} ({count})", context, note)
    axes = sheet.axes(3.0, left=0.75, right=0.2)
    looks = {
        "": (0.0, _NEUTRAL, "", "modality without genes"),
        "with": (-0.2, COLOURS[0], "", "with gene expression"),
        "without": (0.2, COLOURS[4], "///", "without gene expression"),
    }
    for expression, (offset, colour, hatch, label) in looks.items():
        rows = table[table["expression"] == expression]
        centres = rows["modalities"].map(labels.index).to_numpy(np.float64) + offset
        axes.bar(
            centres,
            rows["value"] - _CHANCE,
            width=0.38,
            bottom=_CHANCE,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
        axes.vlines(centres, rows["low"], rows["high"], color=INK, linewidth=1.2)
        tops = rows[["value", "high"]].max(axis=1).clip(lower=_CHANCE)
        for centre, top, value in zip(centres, tops, rows["value"], strict=True):
            # On white, for the line of the best attainable value may run behind it.
            axes.text(
                centre,
                top + 0.006,
                f"{value:.3f}",
                ha="center",
                va="bottom",
                size=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
    best = context.attainable.get(metric)
    drawn = [*table["low"], *table["high"], *table["value"], _CHANCE, *([best] if best else [])]
    axes.set_ylim(np.nanmin(drawn) - 0.02, np.nanmax(drawn) + 0.09)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_xticks(range(len(labels)), labels)
    axes.axhline(_CHANCE, color=GREY, linewidth=1)
    axes.set_ylabel(f"{metric_label(metric)} (0.5 is chance)")
    if best:
        axes.axhline(best, color=COLOURS[2], linestyle="--", linewidth=1.2)
        axes.text(-0.58, best, f"best attainable {best:.3f}", color=COLOURS[2], size=8, va="bottom")
    if table["expression"].any():
        axes.legend(loc="upper right", ncols=3)
    return sheet.render(image)


def _modalities(suffix: str) -> str:
    parts = suffix.strip("_").split("_")
    if parts == [""]:
        return "All modalities"
    return " + ".join(parts).capitalize() + (" alone" if len(parts) == 1 else "")

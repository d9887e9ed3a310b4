"""The images of a task's report, by section."""

from base64 import b64encode
from typing import TYPE_CHECKING

from mm_assets.evaluation import plots
from mm_assets.evaluation.ablation import ablation_bars
from mm_assets.evaluation.descriptions import metric_label
from mm_assets.evaluation.sheet import PlotContext

if TYPE_CHECKING:
    from mm_assets.evaluation.report import TaskReport


def report_figures(report: "TaskReport", context: PlotContext) -> dict[str, list[dict[str, str]]]:
    """Images as data addresses with their text alternatives, by section."""
    evaluation, metric, full = report.evaluation, report.main_metric, report.full_model
    label, name = metric_label(metric), context.name(full)
    compared = [full, *_best_single(report)]
    sections: dict[str, list[tuple[bytes, str]]] = {
        "forest": [
            (
                plots.metric_forest(evaluation.metrics, metric, context),
                f"{label} of every model with its 95 % interval",
            )
        ],
        "differences": [],
        "ablation": [],
        "curves": [],
        "calibration": [],
        "learning": [],
    }
    if len(report.models) > 1 and full in report.models:
        sections["differences"] = [
            (
                plots.difference_forest(evaluation.differences, metric, full, context),
                f"Paired differences in {label} of {name} against every other model",
            )
        ]
    options = {model for compared in report.options for model in compared.options}
    modalities = evaluation.metrics[~evaluation.metrics["model"].isin(options)]
    if modalities.loc[modalities["model"].str.startswith(f"{full}_"), "model"].any():
        sections["ablation"] = [
            (
                ablation_bars(modalities, metric, full, context, clinical_model=_clinical(report)),
                f"{label} with each modality alone, with all and without gene expression",
            )
        ]
    if len(evaluation.roc):
        sections["curves"] = [
            (
                plots.roc_curves(evaluation.roc, evaluation.metrics, report.models, context),
                "ROC curves of every model",
            )
        ]
    for model in compared:
        if (evaluation.risk_groups["model"] == model).any():
            image = plots.kaplan_meier_plot(evaluation.risk_groups, model, context)
            sections["curves"].append(
                (image, f"Survival of high and low risk patients by {context.name(model)}")
            )
    if evaluation.calibration["model"].isin(compared).any():
        sections["calibration"] = [
            (
                plots.calibration_plot(evaluation.calibration, compared, context),
                "Predicted against observed probability",
            )
        ]
    if len(evaluation.learning_curve):
        sections["learning"] = [
            (
                plots.learning_curve_plot(evaluation.learning_curve, context),
                f"{label} by number of training patients",
            )
        ]
    return {
        section: [
            {"address": "data:image/svg+xml;base64," + b64encode(image).decode(), "text": text}
            for image, text in images
        ]
        for section, images in sections.items()
    }


def _clinical(report: "TaskReport") -> str | None:
    """The model of clinical covariates alone."""
    return next((name for name in report.single_models if name.startswith("clinical_")), None)


def _best_single(report: "TaskReport") -> list[str]:
    rows = report.evaluation.metrics
    rows = rows[
        (rows["metric"] == report.main_metric)
        & rows["model"].isin(list(report.single_models))
        & (rows["model"] != report.full_model)
        & rows["value"].notna()
    ]
    return list(rows.sort_values("value", ascending=False)["model"].head(1))

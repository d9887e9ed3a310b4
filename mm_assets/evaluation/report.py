"""Reports of a task and of a cohort: one self-contained HTML file each, for screen and print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mm_assets.evaluation import plots
from mm_assets.evaluation.comparison import Evaluation, paired_difference, verdict
from mm_assets.evaluation.descriptions import (
    metric_in_words,
    metric_label,
    one_per_kind,
    p_in_words,
    weights_stamp,
)
from mm_assets.evaluation.figures import report_figures
from mm_assets.evaluation.metrics import LOWER_IS_BETTER, higher_is_better
from mm_assets.evaluation.options import OptionComparison, option_rows
from mm_assets.evaluation.sheet import PlotContext
from mm_assets.evaluation.strata import MASKED, SMALLEST_GROUP

if TYPE_CHECKING:
    from jinja2 import Environment

_CHANCE = 0.5
_SHOWN_GROUPS = 8
_NO_MODELS = pd.DataFrame(columns=["model", "version", "alias", "url", "outcome"])
_NO_SLIDES = pd.DataFrame(columns=["slide_id", "reason"])


@dataclass(frozen=True)
class TaskReport:
    """What the report says about one task.

    Attributes
    ----------
    cohort, task
        Names.
    endpoint
        What is predicted, in plain words.
    evaluation
        Of all models of the task.
    full_model, single_models
        The model with every modality, and those of one that the verdict compares it with; where
        the cohort has one modality only, the full model is among them.
    excluded
        Columns patient_id, reason: patients of the clinical table left out of this task.
    flow
        Patients from the clinical table to the predictions.
    follow_up
        Median follow-up in months (reverse Kaplan-Meier); NaN for classes or where not reached.
    classes
        Of the endpoint; empty for survival.
    options
        Options of the full model that were compared with their defaults.
    names, descriptions
        Model -> name for people, and one line on what it is.
    attainable
        Metric -> best attainable value, known for synthetic cohorts.
    weights
        Weights of the image encoder, None without images.
    registered
        Columns model, version, alias, url (of MLflow): models in the registry.
    provenance
        What was made from what: versions, digests, links.
    """

    cohort: str
    task: str
    endpoint: str
    evaluation: Evaluation
    full_model: str
    single_models: tuple[str, ...]
    excluded: pd.DataFrame
    flow: tuple["FlowStep", ...] = ()
    follow_up: float = float("nan")
    classes: tuple[str, ...] = ()
    options: tuple[OptionComparison, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    attainable: Mapping[str, float] = field(default_factory=dict)
    weights: str | None = None
    registered: pd.DataFrame = field(default_factory=_NO_MODELS.copy)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def main_metric(self) -> str:
        """``auc`` for classes, ``c_index`` for survival."""
        return "auc" if self.classes else "c_index"

    @property
    def verdict(self) -> str:
        """Does the full model beat the best single modality or other model, in one sentence."""
        return verdict(
            self.evaluation, self.main_metric, self.full_model, self.single_models, self.names
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Every evaluated model."""
        return tuple(dict.fromkeys(self.evaluation.metrics["model"]))

    @property
    def attained_share(self) -> float:
        """How far the full model came on the way from chance to the best attainable; or NaN."""
        best = self.attainable.get(self.main_metric, _CHANCE)
        rows = self.evaluation.metrics
        rows = rows[(rows["model"] == self.full_model) & (rows["metric"] == self.main_metric)]
        if best <= _CHANCE or rows.empty:
            return float("nan")
        return float((rows["value"].iloc[0] - _CHANCE) / (best - _CHANCE))

    @property
    def plot_context(self) -> PlotContext:
        """What this task's plots share; also for plots outside the report."""
        protocols = self.evaluation.metrics["protocol"]
        return PlotContext(
            subject=f"Cohort {self.cohort}, task {self.task}",
            models=self.models,
            protocol=protocols.iloc[0].split("; ")[0],
            weights=self.weights,
            classes=self.classes,
            names=self.names,
            attainable=self.attainable,
        )


@dataclass(frozen=True)
class FlowStep:
    """One count of the cohort flow, e.g. slides found, slides used.

    Attributes
    ----------
    label
        What is counted.
    count
        How many.
    detail
        What happened to the others.
    """

    label: str
    count: int
    detail: str = ""


@dataclass(frozen=True)
class CohortReport:
    """What the report says about a cohort.

    Attributes
    ----------
    cohort
        Name.
    created
        When, for the header.
    tasks
        One report a task.
    flow
        Slides from the input to the models; patients are in each task's report.
    quarantined
        Columns slide_id, reason.
    provenance
        Versions, digests and links that hold for all tasks.
    """

    cohort: str
    created: str
    tasks: tuple[TaskReport, ...]
    flow: tuple[FlowStep, ...] = ()
    quarantined: pd.DataFrame = field(default_factory=_NO_SLIDES.copy)
    provenance: Mapping[str, str] = field(default_factory=dict)


def render_task_report(report: TaskReport) -> str:
    """HTML of one task, complete in itself."""
    return _environment().get_template("task_report.html.j2").render(task=_task_view(report))


def render_cohort_report(report: CohortReport) -> str:
    """HTML of a cohort with all its tasks, complete in itself."""
    stamps = sorted({weights_stamp(task.weights) for task in report.tasks if task.weights})
    return (
        _environment()
        .get_template("cohort_report.html.j2")
        .render(report=report, tasks=[_task_view(task) for task in report.tasks], stamps=stamps)
    )


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "is_link": lambda value: str(value).startswith(("http://", "https://")),
        "p": p_in_words,
    }
    return environment


def _figure(value: float, digits: int = 3) -> str:
    """A number for a table; a dash where it is not defined."""
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def _task_view(report: TaskReport) -> dict[str, Any]:
    """Everything the templates show of a task, in the order in which they show it."""
    evaluation, context = report.evaluation, report.plot_context
    metrics = list(dict.fromkeys(evaluation.metrics["metric"]))
    horizons = [float(name.rsplit("_", 1)[1]) for name in metrics if name.startswith("brier_")]
    own = evaluation.metrics[evaluation.metrics["model"] == report.full_model]
    return {
        "report": report,
        "names": {model: context.name(model) for model in report.models},
        "colours": {model: context.colour(model) for model in report.models},
        "stamp": weights_stamp(report.weights) if report.weights else "",
        "patients": int(evaluation.metrics["patients"].max()),
        "events": int(evaluation.metrics["events"].max()),
        "attained": own[own["metric"] == report.main_metric].to_dict("records"),
        "label": metric_label(report.main_metric),
        "exclusions": report.excluded["reason"].value_counts().to_dict(),
        "tables": _result_tables(report, metrics),
        "folds": _fold_table(report),
        "figures": report_figures(report, context),
        "pairs": _pairs(report),
        "options": [
            (
                compared,
                option_rows(
                    evaluation.metrics, evaluation.differences, report.main_metric, compared
                ),
            )
            for compared in report.options
        ],
        "subgroups": _subgroups(report),
        "decisions": evaluation.confusion.to_dict("records"),
        "fit": _calibration_fit(report, context),
        "learning": _learning(report),
        "notes": list(evaluation.notes["note"]),
        "protocol": evaluation.metrics["protocol"].iloc[0],
        "definitions": {
            metric_label(m): metric_in_words(m, horizons) for m in one_per_kind(metrics)
        },
    }


def _result_tables(report: TaskReport, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Models by metrics, one table for ranking and one for probabilities."""
    rows = report.evaluation.metrics.set_index(["model", "metric"])
    ranking = [name for name in metrics if not name.startswith(LOWER_IS_BETTER)]
    probability = [name for name in metrics if name.startswith(LOWER_IS_BETTER)]
    uninformed = report.evaluation.uninformed.set_index("metric")["value"].to_dict()
    main = report.evaluation.metrics[report.evaluation.metrics["metric"] == report.main_metric]
    order = list(main.sort_values("value", ascending=False, kind="stable")["model"])
    titles = {
        "Does it rank patients correctly?": ranking,
        "Are its probabilities right?": probability,
    }
    return [
        {
            "title": title,
            "columns": [
                {"label": metric_label(name), "better": _better(name), "metric": name}
                for name in names
            ],
            "rows": [
                (model, [rows.loc[(model, name)].to_dict() for name in names]) for model in order
            ],
            "attainable": [report.attainable.get(name) for name in names],
            "measures_error": names is probability,
            "uninformed": [uninformed.get(name, float("nan")) for name in names],
        }
        for title, names in titles.items()
        if names
    ]


def _better(metric: str) -> str:
    return "higher is better" if higher_is_better(metric) else "lower is better"


def _fold_table(report: TaskReport) -> dict[str, Any]:
    """The main metric in every fold, models in rows."""
    folds = report.evaluation.per_fold
    folds = folds[folds["metric"] == report.main_metric]
    wide = folds.pivot(index="model", columns=["repeat", "fold"], values="value")
    sizes = folds[folds["model"] == report.full_model].set_index(["repeat", "fold"])
    return {
        "columns": [
            (*key, int(sizes["patients"][key]), int(sizes["events"][key]))
            for key in wide.columns.to_list()
        ],
        "rows": [(model, list(wide.loc[model])) for model in report.models],
    }


def _pairs(report: TaskReport) -> list[dict[Any, Any]]:
    """Every pair with the better model first."""
    rows = report.evaluation.differences
    rows = rows[rows["metric"] == report.main_metric].sort_values("p", kind="stable")
    pairs = []
    for row in rows.to_dict("records"):
        if row["difference"] < 0:
            first, second = row["model_b"], row["model_a"]
            gap = paired_difference(rows, first, second, report.main_metric)
            row.update(gap, model_a=first, model_b=second)
        pairs.append(row)
    return pairs


def _subgroups(report: TaskReport) -> list[dict[str, Any]]:
    """Groups of the full model by variable, with the number of masked ones."""
    rows = report.evaluation.subgroups
    rows = rows[rows["model"] == report.full_model]
    views = []
    for variable, groups in rows.groupby("variable", sort=False):
        open_groups = groups[groups["patients"] != MASKED]
        sizes = pd.to_numeric(open_groups["patients"], errors="coerce")
        sizes = sizes.sort_values(ascending=False, kind="stable")
        views.append(
            {
                "variable": variable,
                "rows": open_groups.loc[sizes.index[:_SHOWN_GROUPS]].to_dict("records"),
                "more": max(len(open_groups) - _SHOWN_GROUPS, 0),
                "masked": len(groups) - len(open_groups),
                "smallest": SMALLEST_GROUP,
            }
        )
    return views


def _learning(report: TaskReport) -> dict[str, Any]:
    """Shares of the training patients in rows, models in columns."""
    curve = report.evaluation.learning_curve
    cells = {(row["share"], row["model"]): row for row in curve.to_dict("records")}
    models = list(dict.fromkeys(curve["model"]))
    return {
        "models": models,
        "rows": [
            (share, rows["trained_on"].iloc[0], [cells.get((share, model)) for model in models])
            for share, rows in curve.groupby("share", sort=True)
        ],
    }


def _calibration_fit(report: TaskReport, context: PlotContext) -> dict[str, Any]:
    """Models in rows, horizons or classes in columns; an empty cell where nothing was given."""
    fit = report.evaluation.calibration_fit
    cells = {(row["model"], row["target"]): row for row in fit.to_dict("records")}
    targets = list(dict.fromkeys(fit["target"]))
    models = [model for model in report.models if (fit["model"] == model).any()]
    return {
        "targets": [plots.target_in_words(target, context) for target in targets],
        "rows": [(model, [cells.get((model, target)) for target in targets]) for model in models],
    }

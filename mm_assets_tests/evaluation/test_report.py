"""Plots and reports: complete, escaped, self-contained, small enough, stamped."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest

from mm_assets.evaluation import plots
from mm_assets.evaluation.ablation import ablation_bars, ablation_table
from mm_assets.evaluation.comparison import evaluate, paired_difference
from mm_assets.evaluation.descriptions import metric_label, one_per_kind
from mm_assets.evaluation.options import OptionComparison, option_rows
from mm_assets.evaluation.report import (
    CohortReport,
    FlowStep,
    TaskReport,
    render_cohort_report,
    render_task_report,
)
from mm_assets_tests.evaluation.made_up import HORIZONS, class_task, survival_task

NOISE = {
    "heec": 0.5,
    "heec_imaging": 1.0,
    "heec_omics": 2.0,
    "heec_clinical": 3.0,
    "heec_no_expression": 0.8,
    "heec_omics_no_expression": 4.0,
    "clinical_cox": 3.0,
    "amil": 1.0,
    "snn": 2.0,
    "mmf": 0.7,
}
SINGLE = ("heec_imaging", "heec_omics", "clinical_cox")
EXCLUDED = pd.DataFrame({"patient_id": ["A", "B", "C"], "reason": ["no endpoint"] * 2 + ["time 0"]})
LEARNING = pd.DataFrame(
    [
        (model, share, 120 * share, 2, "c_index", value, value - 0.1, value + 0.1, *gain)
        for share, value, gain in (
            (0.5, 0.6, (np.nan, np.nan, np.nan)),
            (1.0, 0.7, (0.1, 0.021, 0.179)),
        )
        for model in ("heec", "clinical_cox")
    ],
    columns=[
        *("model", "share", "trained_on", "draws", "metric", "value", "low", "high"),
        *("gain", "gain_low", "gain_high"),
    ],
)
NASTY = "<script>alert('x')</script>"


def report_of(task, name, horizons=(), **fields):
    return TaskReport(
        cohort="demo",
        task=name,
        endpoint="A made-up outcome.",
        evaluation=evaluate(*task.arguments, horizons=horizons, bootstrap=100),
        full_model="heec",
        single_models=SINGLE,
        excluded=EXCLUDED,
        classes=task.endpoint.classes,
        weights="resnet50 random:0",
        **fields,
    )


@pytest.fixture(scope="module")
def survival() -> TaskReport:
    task = survival_task(150, NOISE)
    names = {"heec": "HEEC, all modalities"}
    return report_of(task, "survival", HORIZONS, attainable={"c_index": 0.81}, names=names)


@pytest.fixture(scope="module")
def grade() -> TaskReport:
    return report_of(class_task(150, NOISE, classes=4), "grade")


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.texts, self.alternatives = [], [], [], []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        named = dict(attrs)
        self.addresses += [named[key] for key in ("src", "href") if key in named]
        if tag == "img":
            self.alternatives.append(named["alt"])

    def handle_data(self, data):
        self.texts.append(data)


def test_a_task_report_says_what_matters(survival):
    page = Page(render_task_report(survival))
    assert survival.verdict in page.text
    errors = survival.evaluation.uninformed["value"]
    assert "Nobody told apart " + " ".join(f"{error:.3f}" for error in errors) in page.text
    assert "Integrated Brier score" in page.text
    assert "Would more patients help?" not in page.text
    share = f"{100 * survival.attained_share:.0f} % of the way from chance is attained"
    assert share in page.text
    for model in NOISE:
        assert survival.names.get(model, model) in page.text
    assert "Encoder weights: resnet50 random:0 - not for use" in page.text
    assert "2 patients: no endpoint" in page.text
    assert "1 patient: time 0" in page.text
    assert "0.810 best attainable C-index" in page.text
    assert "out-of-fold, 5 folds, 1 repeat" in page.text
    assert "site: 1 group masked <5" in page.text
    main = survival.evaluation.metrics.iloc[0]
    assert f"{main['value']:.3f} {main['low']:.3f} to {main['high']:.3f}" in page.text
    assert len(page.alternatives) == 6
    assert all(page.alternatives)


def test_attained_is_measured_from_chance_to_the_best(survival):
    own = survival.evaluation.metrics.iloc[0]["value"]
    assert survival.attained_share == pytest.approx((own - 0.5) / 0.31)
    assert np.isnan(replace(survival, attainable={}).attained_share)


def test_patients_are_followed_from_the_table_to_the_predictions(survival):
    flow = (
        FlowStep("patients in the clinical table", 153),
        FlowStep("with a usable endpoint", 150, "3 left out, for the reasons below"),
    )
    text = Page(render_task_report(replace(survival, flow=flow, follow_up=41.25))).text
    assert "153 patients in the clinical table 150 with a usable endpoint 3 left out" in text
    assert "41.2 months of median follow-up" in text


def test_decisions_of_two_classes_are_in_the_report():
    task = class_task(150, {"heec": 0.5, "heec_omics": 2.0})
    report = report_of(task, "subtype")
    page = Page(render_task_report(report))
    row = report.evaluation.confusion.iloc[0]
    assert "B at the threshold chosen on training patients" in page.text
    assert f"{row['true_positive']} / {row['false_negative']}" in page.text
    assert f"{row['sensitivity']:.2f} {row['sensitivity_low']:.2f} to" in page.text


def test_a_learning_curve_says_what_more_patients_would_give(survival):
    evaluation = replace(survival.evaluation, learning_curve=LEARNING)
    page = Page(render_task_report(replace(survival, evaluation=evaluation)))
    assert "Would more patients help?" in page.text
    assert "60 50 %, 2 draws" in page.text
    assert "+0.100 0.021 to 0.179" in page.text
    assert "C-index by number of training patients" in page.alternatives


def test_options_stand_beside_their_default(survival):
    plain = Page(render_task_report(survival))
    assert "Would another option" not in plain.text
    compared = OptionComparison(
        "Which is better?", "heec", {"snn": "another network", "mmf": "fused"}
    )
    report = replace(survival, options=(compared,))
    page = Page(render_task_report(report))
    assert "Would another option be better?" in page.text
    assert "Which is better?" in page.text
    assert "another network" in page.text
    evaluation = survival.evaluation
    rows = option_rows(evaluation.metrics, evaluation.differences, "c_index", compared)
    assert [row["model"] for row in rows] == ["heec", "snn", "mmf"]
    assert rows[0]["gap"] is None
    gap = rows[1]["gap"]
    assert gap == paired_difference(evaluation.differences, "snn", "heec", "c_index")
    assert gap["low"] < gap["difference"] < gap["high"] < 0
    assert gap["p_adjusted"] >= gap["p"]
    assert f"{gap['difference']:+.3f} {gap['low']:.3f} to {gap['high']:.3f}" in page.text


def test_a_cohort_report_holds_every_task_and_loads_nothing(survival, grade):
    html = render_cohort_report(
        CohortReport(
            cohort="demo",
            created="today",
            tasks=(survival, grade),
            flow=(FlowStep("slides found", 130), FlowStep("slides used", 127, "3 in quarantine")),
            quarantined=pd.DataFrame({"slide_id": ["S1"], "reason": ["truncated"]}),
            provenance={"code version": "0.1.0", "MLflow": "http://127.0.0.1:5000/run"},
        )
    )
    page = Page(html)
    assert survival.verdict in page.text
    assert grade.verdict in page.text
    assert "S1 Reason truncated" in page.text.replace("Slide Reason S1", "S1 Reason")
    assert "127 slides used 3 in quarantine" in page.text
    assert not {"script", "link", "iframe"} & set(page.tags)
    allowed = ("data:image/svg+xml;base64,", "#", "http://127.0.0.1:5000/run")
    assert all(address.startswith(allowed) for address in page.addresses)
    assert "@import" not in html
    assert "url(" not in html


def test_whatever_comes_from_outside_is_escaped(survival):
    hostile = replace(
        survival,
        endpoint=NASTY,
        excluded=EXCLUDED.assign(reason=NASTY),
        names={"heec": NASTY},
        descriptions={"heec": NASTY},
        registered=pd.DataFrame(
            {
                "model": ["heec"],
                "version": [1],
                "alias": [NASTY],
                "url": ["javascript:alert(1)"],
                "outcome": [NASTY],
            }
        ),
        provenance={NASTY: NASTY, "run": "javascript:alert(1)"},
    )
    html = render_cohort_report(
        CohortReport(
            cohort=NASTY,
            created=NASTY,
            tasks=(hostile,),
            flow=(FlowStep(NASTY, 1, NASTY),),
            quarantined=pd.DataFrame({"slide_id": ["S1"], "reason": [NASTY]}),
        )
    )
    page = Page(html)
    assert "script" not in page.tags
    assert html.count("&lt;script&gt;") >= 10
    assert not any(address.startswith("javascript") for address in page.addresses)


def test_one_model_and_no_images_is_a_report_too():
    task = survival_task(60, {"clinical_cox": 1.0})
    bare = task.predictions[["model", "repeat", "fold", "patient_id", "risk"]]
    report = replace(
        report_of(replace(task, predictions=bare), "survival"),
        full_model="clinical_cox",
        weights=None,
    )
    page = Page(render_task_report(report))
    assert "no other model to be compared with" in page.text
    assert "Encoder weights" not in page.text
    assert len(page.alternatives) == 1


def every_plot(survival, grade, image):
    context, evaluation = survival.plot_context, survival.evaluation
    classes = grade.evaluation
    return {
        "forest": plots.metric_forest(evaluation.metrics, "c_index", context, image),
        "difference": plots.difference_forest(
            evaluation.differences, "c_index", "heec", context, image
        ),
        "survival": plots.kaplan_meier_plot(evaluation.risk_groups, "heec", context, image),
        "calibration": plots.calibration_plot(evaluation.calibration, list(NOISE), context, image),
        "ablation": ablation_bars(evaluation.metrics, "c_index", "heec", context, image),
        "learning": plots.learning_curve_plot(LEARNING, context, image),
        "roc": plots.roc_curves(
            classes.roc, classes.metrics, list(NOISE), grade.plot_context, image
        ),
    }


def test_small_plots_fit_into_dagster_metadata(survival, grade):
    from PIL import Image

    for name, image in every_plot(survival, grade, "small").items():
        assert len(image) < 45_000, name
        with Image.open(BytesIO(image)) as opened:
            assert opened.format == "PNG"
            assert opened.width > 500


def test_plots_repeat_byte_for_byte_and_leave_matplotlib_alone(survival, grade):
    before = dict(matplotlib.rcParams)
    assert every_plot(survival, grade, "svg") == every_plot(survival, grade, "svg")
    assert dict(matplotlib.rcParams) == before


def test_a_plot_states_subject_counts_protocol_and_weights(survival, monkeypatch):
    # With text kept as text, the SVG can be read.
    monkeypatch.setitem(plots.styled.__globals__["_STYLE"], "svg.fonttype", "none")
    context = survival.plot_context
    image = plots.metric_forest(survival.evaluation.metrics, "c_index", context, "svg").decode()
    events = survival.evaluation.metrics["events"].iloc[0]
    assert f"C-index by model (150 patients, {events} events)" in image
    assert "Cohort demo, task survival" in image
    assert "Out-of-fold, 5 folds, 1 repeat; Harrell C inside each test fold" in image
    assert "Encoder weights: resnet50 random:0 - not for use" in image
    assert "best attainable 0.810" in image
    assert "HEEC, all modalities" in image


def test_a_model_keeps_its_colour_and_none_looks_like_another(survival):
    context = survival.plot_context
    looks = {(context.colour(model), context.marker(model)) for model in context.models}
    assert len(looks) == len(NOISE)


def test_real_weights_are_named_without_a_warning(survival):
    page = Page(render_task_report(replace(survival, weights="resnet50 imagenet")))
    assert "Encoder weights: resnet50 imagenet" in page.text
    assert "not for use" not in page.text


def test_definitions_name_all_horizons_of_a_metric_at_once():
    names = ["c_index", "auc_12", "brier_12", "auc_36", "brier_36", "integrated_brier"]
    joined = one_per_kind(names)
    assert joined == ["c_index", "auc_12, 36", "brier_12, 36", "integrated_brier"]
    assert metric_label(joined[1]) == "AUC at 12, 36 months"
    assert one_per_kind(["auc", "log_loss"]) == ["auc", "log_loss"]


def test_ablations_are_found_by_name(survival):
    table = ablation_table(survival.evaluation.metrics, "c_index", "heec")
    found = {row.model: (row.modalities, row.expression) for row in table.itertuples()}
    beside = ablation_table(survival.evaluation.metrics, "c_index", "heec", "clinical_cox")
    assert beside["model"].iloc[-1] in ("heec", "heec_no_expression")
    row = beside.set_index("model").loc["clinical_cox"]
    assert (row["modalities"], row["expression"]) == ("Clinical alone", "")
    assert found == {
        "heec_imaging": ("Imaging alone", ""),
        "heec_omics": ("Omics alone", "with"),
        "heec_omics_no_expression": ("Omics alone", "without"),
        "heec_clinical": ("Clinical alone", ""),
        "heec": ("All modalities", "with"),
        "heec_no_expression": ("All modalities", "without"),
    }
    kept = survival.evaluation.metrics
    kept = kept[~kept["model"].str.endswith("_no_expression")]
    assert (ablation_table(kept, "c_index", "heec")["expression"] == "").all()

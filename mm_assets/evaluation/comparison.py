"""Evaluate and compare models on their out-of-fold predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_assets.evaluation.decisions import confusion_table
from mm_assets.evaluation.descriptions import (
    interval_in_words,
    metric_in_words,
    metric_label,
    p_in_words,
    protocol_in_words,
)
from mm_assets.evaluation.learning import learning_table
from mm_assets.evaluation.metrics import higher_is_better, nan_mean
from mm_assets.evaluation.out_of_fold import OutOfFold, check_predictions
from mm_assets.evaluation.resampling import holm, interval, patient_counts, two_sided_p
from mm_assets.evaluation.strata import (
    calibration_fit_table,
    calibration_table,
    risk_group_table,
    roc_table,
    subgroup_table,
)
from mm_assets.evaluation.uninformed import uninformed_table

if TYPE_CHECKING:
    from mm_assets.cohort.clinical import Endpoint

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Evaluation:
    """Everything the report says about the models of one task, as tables.

    Attributes
    ----------
    metrics
        model, metric, value, low, high, fold_sd, patients, events, protocol. `value` is the mean
        over folds, `low` and `high` its 95 % interval; `events` counts deaths, or patients of the
        rarest class.
    per_fold
        model, repeat, fold, metric, value, patients, events.
    differences
        model_a, model_b, metric, difference (a minus b), low, high, p, p_adjusted (Holm, over all
        pairs of one metric), patients (scored by both).
    subgroups
        model, variable, group, patients, events, metric, value, low, high. Counts are strings;
        groups under 5 patients show "<5" and no value.
    calibration
        model, target (class, or horizon as `%g`), bin, predicted, observed, low, high, patients.
    calibration_fit
        model, target, patients, predicted, observed, slope, intercept, ece.
    risk_groups
        Survival with a `risk_cut`: model, group, time, survival, low, high, at_risk, patients,
        events, log_rank_p; one row a step of the Kaplan-Meier curve.
    roc
        Classes: model, target, false_positive_rate, true_positive_rate (mean over folds).
    confusion
        Classes: model, target, threshold, true_positive, false_positive, false_negative,
        true_negative, and sensitivity, specificity, ppv, npv with _low and _high.
    uninformed
        metric, value: of predictions that tell nobody apart.
    learning_curve
        model, share, trained_on, draws, metric, value, low, high, gain, gain_low, gain_high; empty
        unless models were fitted to parts of the training patients.
    notes
        note: what could not be computed and why.
    """

    metrics: pd.DataFrame
    per_fold: pd.DataFrame
    differences: pd.DataFrame
    subgroups: pd.DataFrame
    calibration: pd.DataFrame
    calibration_fit: pd.DataFrame
    risk_groups: pd.DataFrame
    roc: pd.DataFrame
    confusion: pd.DataFrame
    uninformed: pd.DataFrame
    learning_curve: pd.DataFrame
    notes: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by name; ``Evaluation(**tables)`` is the way back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def evaluate(
    predictions: pd.DataFrame,
    endpoint: "Endpoint",
    splits: pd.DataFrame,
    clinical: pd.DataFrame,
    *,
    horizons: Sequence[float] = (),
    bootstrap: int = 1000,
    seed: int = 0,
    learning: pd.DataFrame | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Metrics with intervals, paired differences, subgroups, calibration and risk groups.

    Parameters
    ----------
    predictions
        Long table: model, repeat, fold, patient_id, then risk and survival_<h>, or
        probability_<class>. Optional, chosen on the training patients of the model and fold:
        `risk_cut`, their median risk, and `threshold`, of the second of two classes. Survival may
        be given at more months than `horizons`, to integrate over time.
    endpoint
        Outcome of each patient of the task.
    splits
        repeat, fold, patient_id, role.
    clinical
        Index patient_id; site, sex and age make subgroups when present.
    horizons
        Months at which survival predictions are evaluated; none for classes.
    bootstrap
        Number of resamples.
    seed
        Of the resamples.
    learning
        Predictions of models fitted to parts of the training patients, see `learning_table`.
    progress
        Called with (done, total).

    Raises
    ------
    ValueError
        When predictions are not out-of-fold, incomplete, duplicated or not finite.
    """
    splits = splits[splits["patient_id"].isin(endpoint.table.index)]
    horizons = tuple(horizons) if endpoint.kind == "survival" else ()
    check_predictions(predictions, endpoint, splits)
    tests = splits.loc[splits["role"] == "test", ["repeat", "fold", "patient_id"]]
    counts = patient_counts(tests, bootstrap, seed)
    scores = OutOfFold(predictions, endpoint, splits, counts, horizons)
    total = 2 * len(scores.models) + 1
    report = progress or (lambda done, total: None)
    for done, model in enumerate(scores.models, 1):
        scores.values(model, scores.scored(model))
        report(done, total)
    differences = _differences(scores)
    report(len(scores.models) + 1, total)
    subgroups = []
    for done, model in enumerate(scores.models, len(scores.models) + 2):
        subgroups.append(subgroup_table(scores, model, clinical))
        report(done, total)
    calibration_fit = calibration_fit_table(scores)
    risk_groups, skipped = risk_group_table(scores)
    confusion, undecided = confusion_table(scores)
    notes = [*_coverage_notes(scores), *skipped, *undecided]
    return Evaluation(
        metrics=_metrics(scores, protocol_in_words(splits, clinical), bootstrap),
        per_fold=_per_fold(scores),
        differences=differences,
        subgroups=pd.concat(subgroups, ignore_index=True),
        calibration=calibration_table(scores),
        calibration_fit=calibration_fit,
        risk_groups=risk_groups,
        roc=roc_table(scores),
        confusion=confusion,
        uninformed=uninformed_table(predictions, endpoint, splits, counts, horizons),
        learning_curve=learning_table(learning, endpoint, splits, counts),
        notes=pd.DataFrame({"note": pd.Series(notes, dtype="str")}),
    )


def verdict(
    evaluation: Evaluation,
    main_metric: str,
    full_model: str,
    single_models: Sequence[str],
    names: Mapping[str, str] | None = None,
) -> str:
    """One sentence: does the full model beat the best single modality, and how surely.

    Parameters
    ----------
    evaluation
        Of one task.
    main_metric
        ``c_index`` or ``auc``.
    full_model
        The model with every modality.
    single_models
        Candidates for the best single modality; models that were not evaluated are ignored. The
        full model is among them where the cohort has no second modality.
    names
        Model -> name for people.
    """
    called = dict(names or {})
    rows = evaluation.metrics[evaluation.metrics["metric"] == main_metric]
    values = dict(zip(rows["model"], rows["value"].astype(float), strict=True))
    label = metric_label(main_metric)
    if np.isnan(values.get(full_model, np.nan)):
        return f"No {label} could be computed for {called.get(full_model, full_model)}."
    attained = f"{called.get(full_model, full_model)} ({label} {values[full_model]:.3f})"
    sign = 1 if higher_is_better(main_metric) else -1
    rivals = {
        model: sign * values[model]
        for model in single_models
        if model != full_model and not np.isnan(values.get(model, np.nan))
    }
    kind = "other" if full_model in single_models else "single-modality"
    if not rivals:
        return f"{attained} has no {kind} model to be compared with."
    best = max(rivals, key=lambda model: rivals[model])
    gap = paired_difference(evaluation.differences, full_model, best, main_metric)
    against = f"the best {kind} model, {called.get(best, best)} ({values[best]:.3f})"
    evidence = (
        f"difference {gap['difference']:+.3f}, {interval_in_words(gap['low'], gap['high'])}, "
        f"{p_in_words(gap['p'])} ({p_in_words(gap['p_adjusted'])} after Holm's correction)"
    )
    if not (gap["low"] > 0 or gap["high"] < 0):
        return f"{attained} cannot be told apart from {against}: {evidence}."
    relation = "beats" if sign * gap["difference"] > 0 else "is worse than"
    if gap["p_adjusted"] < SIGNIFICANCE:
        return f"{attained} {relation} {against}: {evidence}."
    pairs = int((evaluation.differences["metric"] == main_metric).sum())
    return (
        f"{attained} {relation} {against} in a single comparison, but not once corrected for "
        f"the {pairs} comparisons made: {evidence}."
    )


def paired_difference(
    differences: pd.DataFrame, model_a: str, model_b: str, metric: str
) -> dict[str, float]:
    """The paired difference a minus b, whichever way round it is stored.

    Returns
    -------
    difference
        Keys difference, low, high, p, p_adjusted.

    Raises
    ------
    KeyError
        When the pair was not compared on this metric.
    """
    keys = ["difference", "low", "high", "p", "p_adjusted"]
    for first, second, sign in ((model_a, model_b, 1.0), (model_b, model_a, -1.0)):
        found = differences[
            (differences["model_a"] == first)
            & (differences["model_b"] == second)
            & (differences["metric"] == metric)
        ]
        if len(found):
            gap = {key: float(found[key].iloc[0]) for key in keys}
            low, high = sorted((sign * gap["low"], sign * gap["high"]))
            return {**gap, "difference": sign * gap["difference"], "low": low, "high": high}
    raise KeyError(f"{model_a} and {model_b} were not compared on {metric}")


def _metrics(scores: OutOfFold, protocol: str, bootstrap: int) -> pd.DataFrame:
    rows = []
    for model in scores.models:
        scored = scores.scored(model)
        for metric, by_fold in scores.values(model, scored).items():
            means = nan_mean(by_fold)
            defined = by_fold[:, 0][~np.isnan(by_fold[:, 0])]
            low, high = interval(means[1:])
            rows.append(
                {
                    "model": model,
                    "metric": metric,
                    "value": float(means[0]),
                    "low": low,
                    "high": high,
                    "fold_sd": float(defined.std(ddof=1)) if len(defined) > 1 else np.nan,
                    "patients": int(scored.sum()),
                    "events": int(scores.outcomes["event"].to_numpy()[scored].sum()),
                    "protocol": f"{protocol}; {metric_in_words(metric, scores.horizons)}, "
                    f"mean over folds; 95 % interval: {bootstrap:,} patient-level bootstrap "
                    "resamples inside test folds, models held fixed",
                }
            )
    return pd.DataFrame(rows)


def _per_fold(scores: OutOfFold) -> pd.DataFrame:
    events = scores.outcomes["event"].to_numpy()
    rows = []
    for model in scores.models:
        scored = scores.scored(model)
        values = scores.values(model, scored)
        for index, fold in enumerate(scores.folds):
            tested = fold.positions[scored[fold.positions]]
            shared = {
                "model": model,
                "repeat": fold.repeat,
                "fold": fold.fold,
                "patients": len(tested),
                "events": int(events[tested].sum()),
            }
            rows += [
                {**shared, "metric": metric, "value": float(by_fold[index, 0])}
                for metric, by_fold in values.items()
            ]
    columns = ["model", "repeat", "fold", "metric", "value", "patients", "events"]
    return pd.DataFrame(rows, columns=columns)


def _differences(scores: OutOfFold) -> pd.DataFrame:
    rows = []
    for model_a, model_b in combinations(scores.models, 2):
        shared = scores.scored(model_a) & scores.scored(model_b)
        values_a, values_b = (scores.values(model, shared) for model in (model_a, model_b))
        for metric in values_a:
            gaps = nan_mean(values_a[metric] - values_b[metric])
            low, high = interval(gaps[1:])
            rows.append(
                {
                    "model_a": model_a,
                    "model_b": model_b,
                    "metric": metric,
                    "difference": float(gaps[0]),
                    "low": low,
                    "high": high,
                    "p": two_sided_p(gaps[0], gaps[1:]),
                    "patients": int(shared.sum()),
                }
            )
    columns = ["model_a", "model_b", "metric", "difference", "low", "high", "p", "patients"]
    table = pd.DataFrame(rows, columns=columns)
    adjusted = table.groupby("metric", sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    table.insert(7, "p_adjusted", adjusted.astype(np.float64))
    return table


def _coverage_notes(scores: OutOfFold) -> list[str]:
    absent = {model: int((~scores.scored(model)).sum()) for model in scores.models}
    return [
        f"{model} has no prediction for {count} of {len(scores.patients)} patients; it is compared "
        "with other models on the patients both can score."
        for model, count in absent.items()
        if count
    ]

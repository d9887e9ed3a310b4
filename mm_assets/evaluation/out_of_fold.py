"""Out-of-fold predictions joined with outcomes: every metric on every resample of every fold."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mm_assets.evaluation import metrics
from mm_assets.evaluation.ranking import Flags, Floats, Integers, concordant_pairs, ranked_pairs
from mm_assets.evaluation.survival_curves import CensoringCurve

if TYPE_CHECKING:
    from mm_assets.cohort.clinical import Endpoint

SURVIVAL = "survival_"
KEYS = ["model", "repeat", "fold", "patient_id"]


@dataclass(frozen=True)
class TestFold:
    """The test patients of one fold.

    Attributes
    ----------
    repeat, fold
        Which fold.
    positions
        Of its patients in `OutOfFold.patients`, shape ``(n,)``.
    outcome
        Columns `label`, or `time` and `event`; one row a patient, numbered from 0.
    counts
        Bootstrap counts of the patients, shape ``(n, 1 + resamples)``.
    censoring
        Of the training patients of the fold; None for classes.
    """

    __test__ = False

    repeat: int
    fold: int
    positions: Integers
    outcome: pd.DataFrame
    counts: Floats
    censoring: CensoringCurve | None


class OutOfFold:
    """Predictions by model and fold, scored on demand.

    Parameters
    ----------
    predictions
        Checked by `check_predictions`.
    endpoint, splits, horizons
        As in `comparison.evaluate`; every patient of `splits` has an outcome.
    counts
        From `resampling.patient_counts`.

    Attributes
    ----------
    models
        In the order of the predictions.
    patients
        Every test patient once, sorted; masks over patients follow this order.
    outcomes
        Outcome of each, with `event` also for classes: whether it is the rarest class.
    """

    def __init__(
        self,
        predictions: pd.DataFrame,
        endpoint: "Endpoint",
        splits: pd.DataFrame,
        counts: pd.DataFrame,
        horizons: tuple[float, ...],
    ):
        self.kind, self.classes, self.horizons = endpoint.kind, endpoint.classes, horizons
        self.models = list(dict.fromkeys(predictions["model"]))
        self.patients = pd.Index(sorted(counts.index))
        self.outcomes = _outcomes(endpoint, self.patients)
        self.folds = _test_folds(endpoint, splits, counts, self.patients)
        columns = predictions.columns.difference(KEYS)
        tables = {
            key: rows.set_index("patient_id")[columns]
            for key, rows in predictions.groupby(KEYS[:3], sort=False)
        }
        self._tables: dict[tuple[str, int], pd.DataFrame] = {}
        self._present: dict[tuple[str, int], Flags] = {}
        for model, (index, fold) in product(self.models, enumerate(self.folds)):
            rows = tables[model, fold.repeat, fold.fold]
            patients = self.patients[fold.positions]
            self._present[model, index] = patients.isin(rows.index)
            self._tables[model, index] = rows.reindex(patients).reset_index(drop=True)
        self._values: dict[tuple[str, bytes], dict[str, Floats]] = {}

    def scored(self, model: str) -> Flags:
        """Which patients the model has predictions for in every repeat."""
        scored = np.ones(len(self.patients), dtype=bool)
        for index, fold in enumerate(self.folds):
            scored[fold.positions] &= self._present[model, index]
        return scored

    def test_set(
        self, model: str, index: int, members: Flags
    ) -> tuple[pd.DataFrame, pd.DataFrame, Floats]:
        """Outcome, predictions and counts of the members in one fold whom the model scored."""
        fold = self.folds[index]
        kept = self._present[model, index] & members[fold.positions]
        return fold.outcome[kept], self._tables[model, index][kept], fold.counts[kept]

    def values(self, model: str, members: Flags) -> dict[str, Floats]:
        """Every metric in every fold, on the data (column 0) and on every resample.

        Parameters
        ----------
        model
            Name of the model.
        members
            Patients to score, so that two models are compared on the patients of both.

        Returns
        -------
        values
            Metric -> array of shape ``(folds, 1 + resamples)``.
        """
        key = (model, members.tobytes())
        if key not in self._values:
            scores = [self._score(model, index, members) for index in range(len(self.folds))]
            self._values[key] = {
                name: np.stack([score[name] for score in scores]) for name in scores[0]
            }
        return self._values[key]

    def pairs(self, model: str, members: Flags) -> tuple[Floats, Floats]:
        """Ranked pairs among members, summed over folds, because risks compare only in a fold.

        Returns
        -------
        ranked, all_pairs
            Shape ``(classes, 1 + resamples)``; one row for survival and for two classes.
        """
        sets = [self.test_set(model, index, members) for index in range(len(self.folds))]
        pairs = [
            _survival_pairs(outcome, table, counts)
            if self.kind == "survival"
            else _class_pairs(outcome, probabilities(table, self.classes), counts)
            for outcome, table, counts in sets
            if len(outcome)
        ]
        return (
            np.sum([ranked for ranked, _ in pairs], axis=0),
            np.sum([total for _, total in pairs], axis=0),
        )

    def first_repeat(self, model: str) -> pd.DataFrame:
        """Predictions and outcome of each scored patient once: of the first repeat."""
        everyone = np.ones(len(self.patients), dtype=bool)
        first = self.folds[0].repeat
        sets = [
            self.test_set(model, index, everyone)
            for index, fold in enumerate(self.folds)
            if fold.repeat == first
        ]
        return pd.concat([table.join(outcome) for outcome, table, _ in sets], ignore_index=True)

    def _score(self, model: str, index: int, members: Flags) -> dict[str, Floats]:
        outcome, table, counts = self.test_set(model, index, members)
        censoring = self.folds[index].censoring
        if censoring is None:
            return class_scores(outcome, probabilities(table, self.classes), counts)
        return survival_scores(outcome, table, counts, censoring, self.horizons)


def survival_scores(
    outcome: pd.DataFrame,
    table: pd.DataFrame,
    counts: Floats,
    censoring: CensoringCurve,
    horizons: Sequence[float],
) -> dict[str, Floats]:
    """c_index, uno_c, auc_<h>, brier_<h> and integrated_brier of a fold, of shape ``(b,)``."""
    time, event = survival_arrays(outcome)
    risk = table["risk"].to_numpy(np.float64)
    truncation = censoring.truncation(tuple(horizons))
    scores = {
        "c_index": metrics.harrell_c(time, event, risk, counts),
        "uno_c": metrics.uno_c(time, event, risk, censoring, truncation, counts),
    }
    for horizon in horizons:
        scores[f"auc_{horizon:g}"] = metrics.auc_at(time, event, risk, horizon, censoring, counts)
        survival = horizon_survival(table, horizon)
        scores[f"brier_{horizon:g}"] = metrics.brier_at(
            time, event, survival, horizon, censoring, counts
        )
    if horizons:
        months = survival_months(table)
        months = months[months <= max(horizons)]
        curve = table[[f"{SURVIVAL}{month:g}" for month in months]].to_numpy(np.float64)
        scores["integrated_brier"] = metrics.integrated_brier(
            time, event, curve, months, censoring, counts
        )
    return scores


def class_scores(outcome: pd.DataFrame, probability: Floats, counts: Floats) -> dict[str, Floats]:
    """auc, average_precision, brier and log_loss of one test fold, each of shape ``(b,)``."""
    label = outcome["label"].to_numpy(np.int64)
    return {
        "auc": metrics.macro(metrics.roc_auc, label, probability, counts),
        "average_precision": metrics.macro(metrics.average_precision, label, probability, counts),
        "brier": metrics.brier(label, probability, counts),
        "log_loss": metrics.log_loss(label, probability, counts),
    }


def survival_arrays(outcome: pd.DataFrame) -> tuple[Floats, Flags]:
    """Months of follow-up and whether the event was observed."""
    return outcome["time"].to_numpy(np.float64), outcome["event"].to_numpy() == 1


def horizon_survival(table: pd.DataFrame, horizon: float) -> Floats:
    """Predicted probability of surviving beyond `horizon`; NaN when the model gives none."""
    column = f"{SURVIVAL}{horizon:g}"
    if column not in table:
        return np.full(len(table), np.nan)
    return table[column].to_numpy(np.float64)


def survival_months(table: pd.DataFrame) -> Floats:
    """Months at which predictions give survival, ascending."""
    names = [str(name) for name in table.columns if str(name).startswith(SURVIVAL)]
    return np.sort(np.array([float(name.removeprefix(SURVIVAL)) for name in names]))


def probabilities(table: pd.DataFrame, classes: Sequence[str]) -> Floats:
    """Class probabilities, shape ``(n, classes)``."""
    return table[[f"probability_{name}" for name in classes]].to_numpy(np.float64)


def _survival_pairs(
    outcome: pd.DataFrame, table: pd.DataFrame, counts: Floats
) -> tuple[Floats, Floats]:
    risk = table["risk"].to_numpy(np.float64)
    ranked, comparable = concordant_pairs(*survival_arrays(outcome), risk, counts, counts)
    return ranked[None], comparable[None]


def _class_pairs(
    outcome: pd.DataFrame, probability: Floats, counts: Floats
) -> tuple[Floats, Floats]:
    label = outcome["label"].to_numpy(np.int64)
    classes = [1] if probability.shape[1] == 2 else range(probability.shape[1])
    pairs = [
        ranked_pairs(
            probability[:, c], counts * (label == c)[:, None], counts * (label != c)[:, None]
        )
        for c in classes
    ]
    return np.stack([above for above, _ in pairs]), np.stack([total for _, total in pairs])


def _outcomes(endpoint: "Endpoint", patients: pd.Index) -> pd.DataFrame:
    outcome = endpoint.table.loc[patients]
    if endpoint.kind == "survival":
        return outcome[["time", "event"]]
    sizes = np.bincount(outcome["label"], minlength=len(endpoint.classes))
    rarest = int(np.argmin(np.where(sizes > 0, sizes, len(outcome) + 1)))
    return outcome[["label"]].assign(event=(outcome["label"] == rarest).astype(np.int64))


def _test_folds(
    endpoint: "Endpoint", splits: pd.DataFrame, counts: pd.DataFrame, patients: pd.Index
) -> list[TestFold]:
    columns = ["time", "event"] if endpoint.kind == "survival" else ["label"]
    folds = []
    for repeat, fold in sorted(set(zip(splits["repeat"], splits["fold"], strict=True))):
        rows = splits[(splits["repeat"] == repeat) & (splits["fold"] == fold)]
        train, test = (
            pd.Index(sorted(rows.loc[rows["role"] == role, "patient_id"]))
            for role in ("train", "test")
        )
        censoring = None
        if endpoint.kind == "survival":
            censoring = CensoringCurve.fit(*survival_arrays(endpoint.table.loc[train]))
        folds.append(
            TestFold(
                repeat=int(repeat),
                fold=int(fold),
                positions=patients.get_indexer(test).astype(np.int64),
                outcome=endpoint.table.loc[test, columns].reset_index(drop=True),
                counts=counts.loc[test].to_numpy(np.float64),
                censoring=censoring,
            )
        )
    return folds


def check_predictions(
    predictions: pd.DataFrame, endpoint: "Endpoint", splits: pd.DataFrame
) -> None:
    """Refuse predictions that are not out-of-fold, incomplete by fold, duplicated or not finite.

    Raises
    ------
    ValueError
        Names the model, the fold or the patient.
    """
    values = (
        ["risk"]
        if endpoint.kind == "survival"
        else [f"probability_{name}" for name in endpoint.classes]
    )
    absent = [column for column in [*KEYS, *values] if column not in predictions]
    if absent:
        raise ValueError(f"predictions lack the columns {', '.join(absent)}")
    repeated = predictions[predictions.duplicated(KEYS)]
    if len(repeated):
        raise ValueError(f"predictions hold {_row(repeated)} more than once")
    given = [f"{SURVIVAL}{month:g}" for month in survival_months(predictions)]
    unusable = predictions[
        ~np.isfinite(predictions[values].to_numpy(np.float64)).all(axis=1)
        | np.isinf(predictions[given].to_numpy(np.float64)).any(axis=1)
    ]
    if len(unusable):
        raise ValueError(f"{len(unusable)} predictions are not finite, first {_row(unusable)}")
    tests = splits.loc[splits["role"] == "test", KEYS[1:]]
    joined = predictions[KEYS].merge(tests, how="left", on=KEYS[1:], indicator=True)
    foreign = joined[joined["_merge"] == "left_only"]
    if len(foreign):
        raise ValueError(
            f"{len(foreign)} predictions are not out-of-fold: {_row(foreign)} "
            "is no test patient of that fold"
        )
    wanted = set(tests[["repeat", "fold"]].itertuples(index=False, name=None))
    for model, rows in predictions.groupby("model", sort=False):
        found = set(rows[["repeat", "fold"]].itertuples(index=False, name=None))
        if found != wanted:
            raise ValueError(
                f"{model} has no predictions for (repeat, fold) {sorted(wanted - found)}"
            )


def _row(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        f"model {first['model']}, repeat {first['repeat']}, fold {first['fold']}, "
        f"patient {first['patient_id']}"
    )

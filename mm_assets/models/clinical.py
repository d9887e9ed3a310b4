"""Models on clinical covariates alone: ridge Cox regression, or logistic regression for classes.

Covariates are encoded, imputed and scaled inside the training patients. `lifelines` and
`sklearn` are imported inside functions.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.calibration import SurvivalCurve, class_table, youden_threshold
from mm_assets.models.folds import list_folds
from mm_assets.models.losses import Floats, Labels, Outcome, log_prior, softmax

MODELS = {"survival": "clinical_cox", "classification": "clinical_logistic"}
PENALTY = 0.01
MIN_PATIENTS_OF_LEVEL = 10
MIN_EVENTS = 3
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CovariateEncoder:
    """Numbers for covariates: numeric columns as they are, others one column a frequent level.

    The most frequent level has no column, nor have levels of fewer than
    `MIN_PATIENTS_OF_LEVEL` training patients and levels unknown in training. The same holds for
    numeric columns of two values: sex, say, where one in a hundred patients is a man.

    Attributes
    ----------
    columns
        Source column and level of every encoded column; level None for a numeric column.
    median, mean, scale
        Of every encoded column, from the training patients.
    """

    inputs: tuple[str, ...]
    columns: tuple[tuple[str, str | None], ...]
    median: Floats
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, covariates: pd.DataFrame) -> "CovariateEncoder":
        """Learn levels, medians and scales from training patients; constant columns are dropped."""
        columns = [(str(name), level) for name in covariates for level in _levels(covariates[name])]
        raw = _encode(covariates, columns)
        kept = [i for i in range(len(columns)) if np.ptp(raw[~np.isnan(raw[:, i]), i]) > 0]
        raw = raw[:, kept]
        median = np.nanmedian(raw, axis=0)
        filled = np.where(np.isnan(raw), median, raw)
        return cls(
            tuple(map(str, covariates.columns)),
            tuple(columns[i] for i in kept),
            median,
            filled.mean(axis=0),
            filled.std(axis=0),
        )

    def names(self) -> list[str]:
        """Names of the encoded columns, e.g. ``age`` and ``oncotree_code=ILC``."""
        return [name if level is None else f"{name}={level}" for name, level in self.columns]

    def encode(self, covariates: pd.DataFrame) -> Floats:
        """Encoded covariates [patients, columns], missing values kept as NaN."""
        return _encode(covariates, self.columns)

    def standardize(self, covariates: pd.DataFrame) -> Floats:
        """Encoded covariates, missing values set to the median, scaled to unit variance."""
        raw = self.encode(covariates)
        return (np.where(np.isnan(raw), self.median, raw) - self.mean) / self.scale


@dataclass(frozen=True)
class ClinicalModel:
    """A linear predictor of standardized covariates and what turns it into a prediction.

    Attributes
    ----------
    coefficients
        [columns] for survival, [columns, classes] for classification.
    intercept
        [classes]; unused for survival.
    threshold
        Of two classes, see `class_table`.
    """

    encoder: CovariateEncoder
    classes: tuple[str, ...]
    coefficients: Floats
    intercept: Floats
    curve: SurvivalCurve | None
    threshold: float = np.nan

    @classmethod
    def fit(
        cls, covariates: pd.DataFrame, endpoint: Endpoint, horizons: Sequence[float] = ()
    ) -> "ClinicalModel":
        """Fit to training patients.

        Parameters
        ----------
        covariates
            Indexed by patient_id; only training patients, all of them in `endpoint.table`.
        horizons
            Months at which survival is predicted.
        """
        table = endpoint.table.loc[covariates.index]
        encoder = CovariateEncoder.fit(covariates)
        values = encoder.standardize(covariates)
        if endpoint.kind == "survival":
            outcome = Outcome.of(table)
            weights = _cox(values, encoder.names(), outcome)
            curve = SurvivalCurve.fit(values @ weights, outcome, horizons, slope=1.0)
            return cls(encoder, (), weights, np.zeros(0), curve)
        labels = Labels(table["label"].to_numpy(np.int64), len(endpoint.classes))
        weights, intercept = _logistic(values, labels)
        threshold = np.nan
        if labels.classes == 2:
            probability = softmax(values @ weights + intercept)[:, 1]
            threshold = youden_threshold(labels.code, probability)
        return cls(encoder, endpoint.classes, weights, intercept, None, threshold)

    @property
    def feature_names(self) -> list[str]:
        """Columns that `predict` reads."""
        return list(self.encoder.inputs)

    def score(self, covariates: pd.DataFrame) -> Floats:
        """Linear predictor: log hazard ratio [patients], or logits [patients, classes]."""
        product = self.encoder.standardize(covariates) @ self.coefficients
        return product + self.intercept if self.classes else product

    def predict(self, covariates: pd.DataFrame) -> pd.DataFrame:
        """Columns risk, risk_cut and survival_<h>, or those of `class_table`; index as given."""
        score = self.score(covariates)
        if self.curve is not None:
            return self.curve(score).set_index(covariates.index)
        found = class_table(softmax(score), self.classes, self.threshold)
        return found.set_index(covariates.index)


def run_clinical_folds(
    covariates: pd.DataFrame,
    endpoint: Endpoint,
    splits: pd.DataFrame,
    horizons: Sequence[float] = (),
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Out-of-fold predictions of `ClinicalModel`.

    Parameters
    ----------
    covariates
        Indexed by patient_id, only columns that models may use.
    splits
        Columns repeat, fold, patient_id, role.
    progress
        Called with folds done and folds in all.

    Returns
    -------
    DataFrame
        Columns model, repeat, fold, patient_id, then those of `ClinicalModel.predict`.
    """
    folds = list_folds(splits)
    tables = []
    for done, fold in enumerate(folds, start=1):
        model = ClinicalModel.fit(covariates.reindex(fold.train), endpoint, horizons)
        predicted = model.predict(covariates.reindex(fold.test))
        tables.append(fold.label(predicted, MODELS[endpoint.kind]))
        if progress:
            progress(done, len(folds))
    return pd.concat(tables, ignore_index=True)


def _levels(column: pd.Series) -> list[str | None]:
    """Levels that get a column of their own; a single None for a numeric column."""
    if pd.api.types.is_numeric_dtype(column):
        values = column.dropna().value_counts()
        rare = len(values) == 2 and values.min() < MIN_PATIENTS_OF_LEVEL
        return [] if values.empty or rare else [None]
    counts = column.dropna().astype(str).value_counts()
    counts = counts.sort_index().sort_values(ascending=False, kind="stable")
    return [str(level) for level in counts.index[1:] if counts[level] >= MIN_PATIENTS_OF_LEVEL]


def _encode(
    covariates: pd.DataFrame, columns: Sequence[tuple[str, str | None]]
) -> NDArray[np.float64]:
    encoded = np.empty((len(covariates), len(columns)))
    for i, (name, level) in enumerate(columns):
        column = covariates[name]
        if level is None:
            encoded[:, i] = pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan)
        else:
            equal = (column.astype(str) == level).to_numpy(np.float64)
            encoded[:, i] = np.where(column.isna(), np.nan, equal)
    return encoded


def _cox(values: Floats, names: Sequence[str], outcome: Outcome) -> Floats:
    """Coefficients of a ridge Cox regression; zeros where there are too few events for one."""
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError

    if outcome.event.sum() < MIN_EVENTS or not len(names):
        return np.zeros(len(names))
    table = pd.DataFrame(values, columns=range(len(names)))
    table = table.assign(time=outcome.time, event=outcome.event)
    with warnings.catch_warnings():
        # Separation in a small cohort is what the ridge is for.
        warnings.simplefilter("ignore")
        try:
            fitted = CoxPHFitter(penalizer=PENALTY).fit(table, "time", "event")
        except ConvergenceError:
            return np.zeros(len(names))
    return fitted.params_.to_numpy(np.float64)


def _logistic(values: Floats, labels: Labels) -> tuple[Floats, Floats]:
    """Weights [columns, classes] and intercepts of an L2 logistic regression."""
    from sklearn.linear_model import LogisticRegression

    weights = np.zeros((values.shape[1], labels.classes))
    present = np.unique(labels.code)
    if len(present) < 2 or not values.shape[1]:
        return weights, log_prior(labels)
    fitted = LogisticRegression(max_iter=1000).fit(values, labels.code)
    # Two classes come as one difference of logits; classes without a patient get probability 0.
    two = len(present) == 2
    intercept = np.full(labels.classes, -np.inf)
    intercept[present] = [0.0, fitted.intercept_[0]] if two else fitted.intercept_
    weights[:, present[1:] if two else present] = fitted.coef_.T
    return weights, intercept

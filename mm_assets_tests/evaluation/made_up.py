"""Predictions of known quality on made-up cohorts."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint

HORIZONS = (12.0, 36.0, 60.0)
NOTHING_EXCLUDED = pd.DataFrame({"patient_id": [], "reason": []}, dtype="str")


@dataclass(frozen=True)
class Task:
    """Arguments of `evaluate`, in its order."""

    predictions: pd.DataFrame
    endpoint: Endpoint
    splits: pd.DataFrame
    clinical: pd.DataFrame

    @property
    def arguments(self) -> tuple[pd.DataFrame, Endpoint, pd.DataFrame, pd.DataFrame]:
        """For ``evaluate(*task.arguments)``."""
        return self.predictions, self.endpoint, self.splits, self.clinical


def survival_task(
    patients: int, noise: dict[str, float], *, folds: int = 5, repeats: int = 1, seed: int = 0
) -> Task:
    """Exponential survival; each model sees the log hazard with noise of the given size."""
    generator = np.random.default_rng(seed)
    ids = _ids(patients)
    hazard = generator.normal(size=patients)
    death = generator.exponential(60 * np.exp(-hazard))
    censored = generator.exponential(80, size=patients)
    table = pd.DataFrame(
        {"time": np.minimum(death, censored) + 0.1, "event": (death <= censored).astype(np.int64)},
        index=ids,
    )
    splits = _splits(ids, folds, repeats, generator)
    predictions = []
    for model, size in noise.items():
        risk = pd.Series(hazard + size * generator.normal(size=patients), index=ids)
        shrunk = risk / (1 + size**2)
        for (repeat, fold), rows in splits.groupby(["repeat", "fold"]):
            test = rows.loc[rows["role"] == "test", "patient_id"]
            train = rows.loc[rows["role"] == "train", "patient_id"]
            predicted = pd.DataFrame(
                {
                    "model": model,
                    "repeat": repeat,
                    "fold": fold,
                    "patient_id": test.to_numpy(),
                    "risk": risk[test].to_numpy(),
                    "risk_cut": risk[train].median(),
                }
            )
            for horizon in HORIZONS:
                alive = np.exp(-horizon / 60 * np.exp(shrunk[test].to_numpy()))
                predicted[f"survival_{horizon:g}"] = alive
            predictions.append(predicted)
    endpoint = Endpoint("survival", (), table, NOTHING_EXCLUDED)
    return Task(pd.concat(predictions, ignore_index=True), endpoint, splits, _clinical(ids))


def class_task(
    patients: int, noise: dict[str, float], *, classes: int = 2, folds: int = 5, seed: int = 0
) -> Task:
    """Ordered classes cut from a latent; each model sees the latent with noise."""
    generator = np.random.default_rng(seed)
    ids = _ids(patients)
    latent = generator.normal(size=patients)
    label = np.searchsorted(np.linspace(-0.5, 0.5, classes - 1), latent)
    names = tuple("ABCDE"[:classes])
    splits = _splits(ids, folds, 1, generator)
    predictions = []
    for model, size in noise.items():
        seen = latent + size * generator.normal(size=patients)
        score = np.exp(-((seen[:, None] - np.linspace(-1, 1, classes)) ** 2))
        share = pd.DataFrame(score / score.sum(axis=1, keepdims=True), index=ids)
        for fold in range(folds):
            chosen = (splits["fold"] == fold) & (splits["role"] == "test")
            test = splits.loc[chosen, "patient_id"]
            predicted = pd.DataFrame(
                {"model": model, "repeat": 0, "fold": fold, "patient_id": test.to_numpy()}
            )
            for column, name in enumerate(names):
                predicted[f"probability_{name}"] = share.loc[test, column].to_numpy()
            if classes == 2:
                train = splits.loc[(splits["fold"] == fold) & (splits["role"] == "train")]
                predicted["threshold"] = share.loc[train["patient_id"], 1].median()
            predictions.append(predicted)
    table = pd.DataFrame({"label": label.astype(np.int64)}, index=ids)
    endpoint = Endpoint("classification", names, table, NOTHING_EXCLUDED)
    return Task(pd.concat(predictions, ignore_index=True), endpoint, splits, _clinical(ids))


def _ids(patients: int) -> pd.Index:
    return pd.Index([f"P{number:04d}" for number in range(patients)], name="patient_id")


def _splits(
    ids: pd.Index, folds: int, repeats: int, generator: np.random.Generator
) -> pd.DataFrame:
    rows = []
    for repeat in range(repeats):
        own = generator.permutation(np.arange(len(ids)) % folds)
        for fold in range(folds):
            role = np.where(own == fold, "test", "train")
            rows.append(
                pd.DataFrame({"repeat": repeat, "fold": fold, "patient_id": ids, "role": role})
            )
    return pd.concat(rows, ignore_index=True)


def _clinical(ids: pd.Index) -> pd.DataFrame:
    """Three sites, one of three patients; two sexes; ages with one missing."""
    number = np.arange(len(ids))
    return pd.DataFrame(
        {
            "site": np.where(number < 3, "tiny", np.where(number % 2, "east", "west")),
            "sex": np.where(number % 3, "female", "male"),
            "age": np.where(number == 5, np.nan, 40.0 + number % 40),
        },
        index=ids,
    )

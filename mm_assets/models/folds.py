"""Folds as the models walk through them."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Fold:
    """Training and test patients of one fold of one repeat, sorted."""

    repeat: int
    fold: int
    train: list[str]
    test: list[str]

    def label(self, predicted: pd.DataFrame, model: str) -> pd.DataFrame:
        """Predictions indexed by patient with columns model, repeat, fold, patient_id in front."""
        labels = pd.DataFrame({"model": model, "repeat": self.repeat, "fold": self.fold}, [0])
        table = predicted.rename_axis("patient_id").reset_index()
        return labels.merge(table, how="cross")


def list_folds(splits: pd.DataFrame) -> list[Fold]:
    """The folds of a table with columns repeat, fold, patient_id, role, in order.

    Raises
    ------
    ValueError
        When a patient is on both sides of a fold.
    """
    folds = []
    for repeat, fold in sorted(set(zip(splits["repeat"], splits["fold"], strict=True))):
        rows = splits[(splits["repeat"] == repeat) & (splits["fold"] == fold)]
        train, test = (
            sorted(rows.loc[rows["role"] == role, "patient_id"]) for role in ("train", "test")
        )
        if both := sorted(set(train).intersection(test)):
            raise ValueError(
                f"repeat {repeat}, fold {fold}: {len(both)} patients in both train and test, e.g. "
                f"{both[0]}; a patient is on one side of a fold"
            )
        folds.append(Fold(int(repeat), int(fold), train, test))
    return folds

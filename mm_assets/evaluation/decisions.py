"""Classes decided by probability: how many patients are put into the right one."""

import numpy as np
import pandas as pd

from mm_assets.evaluation.calibration import wilson
from mm_assets.evaluation.out_of_fold import OutOfFold, probabilities
from mm_assets.evaluation.ranking import Flags

THRESHOLD = "threshold"
MEASURES = ("sensitivity", "specificity", "ppv", "npv")
_COUNTS = ("true_positive", "false_positive", "false_negative", "true_negative")


def confusion_table(scores: OutOfFold) -> tuple[pd.DataFrame, list[str]]:
    """Right and wrong decisions; each patient once, from the first repeat.

    With two classes a patient is put into the second when its probability reaches the `threshold`
    that the model chose on the training patients of the fold; a model that names none is left
    out. With more classes a patient is put into the most probable one, and each class stands
    against the rest.

    Returns
    -------
    table
        Columns model, target (class), threshold (mean over patients; NaN for more than two
        classes), true_positive, false_positive, false_negative, true_negative (patients), and,
        each with _low and _high for its 95 % interval (Wilson), sensitivity, specificity, ppv and
        npv.
    notes
        Which models were left out and why.
    """
    rows, notes = [], []
    for model in scores.models if scores.kind == "classification" else []:
        table = scores.first_repeat(model)
        if len(scores.classes) == 2 and not _has_threshold(table):
            notes.append(f"No decisions for {model}: it came without a threshold of its own.")
            continue
        shown = [1] if len(scores.classes) == 2 else range(len(scores.classes))
        rows += [
            {"model": model, "target": scores.classes[code], **_decided(scores, table, code)}
            for code in shown
        ]
    measures = [name + end for name in MEASURES for end in ("", "_low", "_high")]
    columns = ["model", "target", "threshold", *_COUNTS, *measures]
    return pd.DataFrame(rows, columns=columns), notes


def _has_threshold(table: pd.DataFrame) -> bool:
    return THRESHOLD in table and not table[THRESHOLD].isna().any()


def _decided(scores: OutOfFold, table: pd.DataFrame, code: int) -> dict[str, float]:
    """Counts of one class against the rest and what they amount to."""
    positive = (table["label"] == code).to_numpy()
    called = _called(scores, table, code)
    true, false = int((positive & called).sum()), int((~positive & called).sum())
    missed, spared = int((positive & ~called).sum()), int((~positive & ~called).sum())
    two = len(scores.classes) == 2
    row: dict[str, float] = {"threshold": float(table[THRESHOLD].mean()) if two else np.nan}
    row |= dict(zip(_COUNTS, (true, false, missed, spared), strict=True))
    shares = {
        "sensitivity": (true, true + missed),
        "specificity": (spared, spared + false),
        "ppv": (true, true + false),
        "npv": (spared, spared + missed),
    }
    for name, (part, whole) in shares.items():
        share = part / whole if whole else np.nan
        low, high = wilson(share, whole)
        row |= {name: share, f"{name}_low": low, f"{name}_high": high}
    return row


def _called(scores: OutOfFold, table: pd.DataFrame, code: int) -> Flags:
    """Who is put into the class."""
    probability = probabilities(table, scores.classes)
    if len(scores.classes) > 2:
        return np.asarray(probability.argmax(axis=1) == code)
    return np.asarray(probability[:, code] >= table[THRESHOLD].to_numpy(np.float64))

"""Decisions by class against scikit-learn, and where there are none."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from mm_assets.evaluation.comparison import evaluate
from mm_assets.evaluation.decisions import MEASURES
from mm_assets_tests.evaluation.made_up import class_task

COUNTS = ["true_negative", "false_positive", "false_negative", "true_positive"]


def test_two_classes_are_decided_at_each_folds_threshold():
    task = class_task(200, {"full": 0.3, "noise": 5.0})
    table = evaluate(*task.arguments, bootstrap=200).confusion.set_index("model")
    rows = task.predictions[task.predictions["model"] == "full"]
    assert rows["threshold"].nunique() > 1
    label = task.endpoint.table.loc[rows["patient_id"], "label"]
    called = (rows["probability_B"] >= rows["threshold"]).to_numpy()
    own = table.loc["full"]
    assert own[COUNTS].tolist() == confusion_matrix(label, called).ravel().tolist()
    assert own["threshold"] == pytest.approx(rows["threshold"].mean())
    assert own["sensitivity"] == pytest.approx(recall_score(label, called))
    assert own["specificity"] == pytest.approx(recall_score(1 - label, ~called))
    assert own["ppv"] == pytest.approx(precision_score(label, called))
    assert own["npv"] == pytest.approx(precision_score(1 - label, ~called))
    for name in MEASURES:
        assert own[f"{name}_low"] < own[name] <= own[f"{name}_high"] <= 1
        assert own[name] > table.loc["noise", name]


def test_of_more_classes_the_most_probable_is_taken():
    task = class_task(200, {"full": 0.3}, classes=3)
    table = evaluate(*task.arguments, bootstrap=100).confusion
    assert table["target"].tolist() == ["A", "B", "C"]
    assert table["threshold"].isna().all()
    rows = task.predictions
    label = task.endpoint.table.loc[rows["patient_id"], "label"]
    best = rows[[f"probability_{name}" for name in "ABC"]].to_numpy().argmax(axis=1)
    expected = recall_score(label, best, average=None)
    assert table["sensitivity"].tolist() == pytest.approx(expected.tolist())
    assert (table[COUNTS].sum(axis=1) == 200).all()


def test_without_a_threshold_nothing_is_decided_and_that_is_said():
    task = class_task(100, {"full": 0.3})
    bare = replace(task, predictions=task.predictions.drop(columns="threshold"))
    found = evaluate(*bare.arguments, bootstrap=100)
    assert found.confusion.empty
    assert "No decisions for full: it came without a threshold of its own." in set(
        found.notes["note"]
    )


def test_nobody_called_has_no_predictive_value():
    task = class_task(100, {"full": 0.3})
    silent = replace(task, predictions=task.predictions.assign(threshold=1.1))
    row = evaluate(*silent.arguments, bootstrap=100).confusion.iloc[0]
    assert row["sensitivity"] == 0
    assert row["specificity"] == 1
    # Nothing wrong among some fifty patients is no certainty.
    assert 0.85 < row["specificity_low"] < 0.95
    assert np.isnan(row["ppv"])
    assert pd.isna(row["ppv_low"])

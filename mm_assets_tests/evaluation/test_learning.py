"""The learning curve's table: means over folds and draws, paired gains."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mm_assets.evaluation.comparison import evaluate
from mm_assets_tests.evaluation.made_up import class_task

# Less noise the more patients a model was fitted to; two draws of the smaller shares.
NOISE = {(0.25, 0): 3.0, (0.25, 1): 3.5, (0.5, 0): 1.0, (0.5, 1): 1.2, (1.0, 0): 0.3}


@pytest.fixture(scope="module")
def learning() -> pd.DataFrame:
    names = {f"{share:g}/{draw}": size for (share, draw), size in NOISE.items()}
    rows = class_task(200, names).predictions
    parts = rows["model"].str.split("/", expand=True)
    share = parts[0].astype(float)
    return rows.assign(
        model="heec", share=share, draw=parts[1].astype(int), trained_on=(160 * share).astype(int)
    )


def test_values_are_means_over_folds_and_draws(learning):
    task = class_task(200, {"full": 0.3})
    found = evaluate(*task.arguments, bootstrap=200, learning=learning).learning_curve
    assert found["share"].tolist() == [0.25, 0.5, 1.0]
    assert found["trained_on"].tolist() == [40, 80, 160]
    assert found["draws"].tolist() == [2, 2, 1]
    assert set(found["metric"]) == {"auc"}
    quarter = learning[learning["share"] == 0.25]
    label = task.endpoint.table["label"]
    expected = [
        roc_auc_score(label[rows["patient_id"]], rows["probability_B"])
        for _, rows in quarter.groupby(["draw", "fold"])
    ]
    assert found["value"].iloc[0] == pytest.approx(np.mean(expected), abs=1e-12)
    assert (found["low"] < found["value"]).all()
    assert (found["value"] < found["high"]).all()
    assert np.isnan(found["gain"].iloc[0])
    assert found["gain"].iloc[1:].tolist() == pytest.approx(np.diff(found["value"]).tolist())
    # Paired: narrower than if both had been drawn anew.
    last = found.iloc[-1]
    assert 0 < last["gain_low"] < last["gain"] < last["gain_high"]


def test_without_a_learning_curve_the_table_is_empty(learning):
    task = class_task(60, {"full": 0.3})
    assert evaluate(*task.arguments, bootstrap=100).learning_curve.empty


def test_predictions_of_training_patients_are_refused(learning):
    task = class_task(200, {"full": 0.3})
    leaked = learning.assign(fold=(learning["fold"] + 1) % 5)
    with pytest.raises(ValueError, match="not out-of-fold"):
        evaluate(*task.arguments, bootstrap=100, learning=leaked)

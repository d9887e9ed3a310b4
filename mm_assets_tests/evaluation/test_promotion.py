"""When a challenger may take the champion's place."""

import numpy as np
import pandas as pd
import pytest

from mm_assets.evaluation.comparison import evaluate, paired_difference
from mm_assets.evaluation.promotion import Comparison, compare
from mm_assets_tests.evaluation.made_up import HORIZONS, Task, class_task, survival_task

MARGIN = 0.02


@pytest.fixture(scope="module")
def survival() -> Task:
    return survival_task(300, {"good": 0.3, "bad": 3.0}, repeats=2)


def predictions(task: Task, model: str) -> pd.DataFrame:
    return task.predictions[task.predictions["model"] == model]


def compared(task: Task, new: pd.DataFrame, old: pd.DataFrame, metric: str) -> Comparison:
    return compare(new, old, task.endpoint, task.splits, metric, bootstrap=200, seed=3)


def test_a_worse_model_is_kept_out_and_a_better_one_let_in(survival: Task) -> None:
    good, bad = predictions(survival, "good"), predictions(survival, "bad")
    worse, better = (compared(survival, *pair, "c_index") for pair in ((bad, good), (good, bad)))
    assert worse.high < -MARGIN
    assert not worse.excludes_harm(MARGIN)
    assert better.excludes_harm(MARGIN)
    assert better.difference == pytest.approx(-worse.difference)
    assert "does not exclude a loss of 0.02" in worse.in_words("C-index", MARGIN)


def test_the_same_predictions_differ_by_nothing(survival: Task) -> None:
    good = predictions(survival, "good")
    found = compared(survival, good, good, "c_index")
    assert (found.difference, found.low, found.high, found.patients) == (0, 0, 0, 300)
    assert found.excludes_harm(MARGIN)
    assert not found.excludes_harm(0)


def test_the_difference_is_that_of_the_evaluation(survival: Task) -> None:
    found = compared(
        survival, predictions(survival, "good"), predictions(survival, "bad"), "c_index"
    )
    whole = evaluate(*survival.arguments, horizons=HORIZONS, bootstrap=200, seed=3)
    gap = paired_difference(whole.differences, "good", "bad", "c_index")
    assert (found.difference, found.low, found.high) == pytest.approx(
        (gap["difference"], gap["low"], gap["high"])
    )


def test_patients_that_only_one_has_are_left_out(survival: Task) -> None:
    good, bad = predictions(survival, "good"), predictions(survival, "bad")
    fewer = bad[~bad["patient_id"].isin(bad["patient_id"].unique()[:40])]
    assert compared(survival, good, fewer, "c_index").patients == 260


def test_other_folds_are_no_ground_for_a_decision(survival: Task) -> None:
    good = predictions(survival, "good")
    for other in (
        good.assign(fold=(good["fold"] + 1) % 5),
        good[good["repeat"] == 0],
        good.assign(patient_id=good["patient_id"] + "x"),
    ):
        found = compared(survival, good, other, "c_index")
        assert found.obstacle
        assert not found.excludes_harm(1.0)
        assert "not compared" in found.in_words("C-index", MARGIN)


def test_classes() -> None:
    task = class_task(300, {"good": 0.3, "bad": 3.0}, classes=3)
    good, bad = predictions(task, "good"), predictions(task, "bad")
    assert compared(task, good, bad, "auc").low > 0
    renamed = bad.rename(columns={"probability_A": "probability_Z"})
    assert "another outcome" in compared(task, good, renamed, "auc").obstacle


def test_an_undefined_interval_promotes_nobody() -> None:
    assert not Comparison(0.1, np.nan, np.nan, 5).excludes_harm(0.5)

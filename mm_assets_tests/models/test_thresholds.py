"""The threshold of two classes, chosen on training patients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from mm_assets.models.calibration import class_table, youden_threshold

PATIENT = st.tuples(st.integers(0, 1), st.integers(0, 10))


@settings(max_examples=40, deadline=None)
@given(st.lists(PATIENT, min_size=1, max_size=30))
def test_no_threshold_decides_the_training_patients_better(patients: list[tuple[int, int]]) -> None:
    label = np.array([one for one, _ in patients])
    probability = np.array([tenths for _, tenths in patients]) / 10
    threshold = youden_threshold(label, probability)
    assert 0 <= threshold <= 1
    if not 0 < label.sum() < len(label):
        assert threshold == 0.5
        return
    others = np.linspace(-0.05, 1.05, 23)
    reached = [balanced_accuracy_score(label, probability >= cut) for cut in others]
    if max(reached) > 0.5 + 1e-12:
        own = balanced_accuracy_score(label, probability >= threshold)
        assert own == pytest.approx(max(reached))


def test_between_separated_classes_it_lies_in_the_middle() -> None:
    label = np.array([0, 0, 1, 1])
    assert youden_threshold(label, np.array([0.0, 0.2, 0.8, 1.0])) == pytest.approx(0.5)
    assert youden_threshold(label, np.array([0.0, 0.1, 0.3, 0.4])) == pytest.approx(0.2)
    assert youden_threshold(label, np.full(4, 0.3)) == 0.5


def test_only_two_classes_have_one() -> None:
    two = class_table(np.array([[0.2, 0.8]]), ("A", "B"), 0.4)
    assert two.iloc[0].to_dict() == {"probability_A": 0.2, "probability_B": 0.8, "threshold": 0.4}
    three = class_table(np.full((1, 3), 1 / 3), ("A", "B", "C"), np.nan)
    assert list(three) == ["probability_A", "probability_B", "probability_C"]

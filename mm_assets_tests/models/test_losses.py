"""Derivatives of the losses against numerical differentiation, values against references."""

import numpy as np
import pytest
from lifelines import NelsonAalenFitter

from mm_assets.models.losses import (
    AftLoss,
    CoxLoss,
    DevianceLoss,
    Floats,
    HazardLoss,
    Labels,
    Loss,
    Outcome,
    SoftmaxLoss,
    nelson_aalen,
)

PATIENTS = 40


def outcome(seed: int = 0) -> Outcome:
    """Follow-up with ties."""
    generator = np.random.default_rng(seed)
    time = np.ceil(generator.exponential(20, PATIENTS))
    return Outcome(time, (generator.random(PATIENTS) < 0.5).astype(float))


def losses() -> dict[str, Loss]:
    train, rows = outcome(1), outcome(2)
    code = np.random.default_rng(3).integers(0, 3, PATIENTS)
    return {
        "cox": CoxLoss(rows),
        "hazard": HazardLoss(train, rows),
        "aft": AftLoss(train, rows),
        "deviance": DevianceLoss(train, rows),
        "softmax": SoftmaxLoss(Labels(code, 3), Labels(code, 3)),
    }


def scores(loss: Loss) -> Floats:
    shape = (PATIENTS, loss.outputs) if loss.outputs > 1 else (PATIENTS,)
    return np.random.default_rng(4).normal(size=shape)


@pytest.mark.parametrize("name", losses())
def test_gradient_is_the_derivative(name: str) -> None:
    loss = losses()[name]
    score = scores(loss)
    first, second = loss.gradient(score)
    step = 1e-4
    for place in np.ndindex(score.shape):
        up, down = score.copy(), score.copy()
        up[place] += step
        down[place] -= step
        assert first[place] == pytest.approx(
            (loss.value(up) - loss.value(down)) / (2 * step), abs=1e-5
        )
        if name != "softmax":  # whose second derivative is an upper bound
            numeric = (loss.value(up) - 2 * loss.value(score) + loss.value(down)) / step**2
            assert second[place] == pytest.approx(numeric, abs=1e-4)


@pytest.mark.parametrize("name", losses())
def test_second_derivatives_are_positive(name: str) -> None:
    loss = losses()[name]
    assert (loss.gradient(20 * scores(loss))[1] > 0).all()


@pytest.mark.parametrize("name", ["cox", "hazard", "aft", "deviance"])
def test_higher_score_is_worse(name: str) -> None:
    """Every loss prefers scores that rise with the hazard to their reverse."""
    rows = outcome(2)
    score = -np.log(rows.time) + rows.event
    score -= score.mean()
    loss = losses()[name]
    assert loss.value(score) < loss.value(np.zeros(PATIENTS)) < loss.value(-score)


def test_cox_equals_lifelines() -> None:
    import pandas as pd
    from lifelines import CoxPHFitter

    rows = outcome(5)
    rows = Outcome(rows.time + np.arange(PATIENTS) / 100, rows.event)  # no ties: lifelines is Efron
    value = np.random.default_rng(6).normal(size=PATIENTS)
    table = pd.DataFrame({"x": value, "t": rows.time, "e": rows.event})
    fitted = CoxPHFitter().fit(table, "t", "e")
    score = fitted.params_["x"] * value
    assert CoxLoss(rows).value(score) == pytest.approx(-fitted.log_likelihood_, abs=1e-6)
    assert CoxLoss(rows).gradient(score)[0] @ value == pytest.approx(0, abs=1e-4)


def test_cox_does_not_overflow() -> None:
    score = np.linspace(-2000, 2000, PATIENTS)
    first, second = CoxLoss(outcome()).gradient(score)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()


def test_nelson_aalen_equals_lifelines() -> None:
    rows = outcome(7)
    reference = NelsonAalenFitter(nelson_aalen_smoothing=False).fit(rows.time, rows.event)
    at = np.array([0.5, 3.0, 17.2, 1e4])
    expected = reference.cumulative_hazard_at_times(at)
    # Tied deaths: lifelines adds 1/n + 1/(n-1) + ..., Nelson-Aalen d/n.
    np.testing.assert_allclose(nelson_aalen(rows, at), expected, atol=0.06)
    untied = Outcome(rows.time + np.arange(PATIENTS) / 100, rows.event)
    reference.fit(untied.time, untied.event)
    np.testing.assert_allclose(
        nelson_aalen(untied, at), reference.cumulative_hazard_at_times(at), atol=1e-9
    )


@pytest.mark.parametrize("events", [0, 1, PATIENTS])
def test_losses_are_defined_for_any_number_of_events(events: int) -> None:
    rows = Outcome(outcome().time, (np.arange(PATIENTS) < events).astype(float))
    for loss in (
        CoxLoss(rows),
        *(kind(rows, rows) for kind in (HazardLoss, AftLoss, DevianceLoss)),
    ):
        score = np.zeros(PATIENTS)
        assert np.isfinite(loss.value(score))
        assert np.isfinite(loss.gradient(score)).all()

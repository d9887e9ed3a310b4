"""The discrete likelihood, intervals and survival curves."""

import numpy as np
import pytest
import torch

from mm_assets.models.losses import Outcome
from mm_assets.models.porpoise.hazards import Intervals, hazard_nll

HAZARDS = np.array([0.1, 0.2, 0.4, 0.5])
# By hand: event in interval k: -log(prod of (1 - h) before k, times h_k); censored in k: -log of
# the product of (1 - h) to k, k included.
TABLE = [
    (0, 1, 0.1),
    (1, 1, 0.9 * 0.2),
    (2, 1, 0.9 * 0.8 * 0.4),
    (3, 1, 0.9 * 0.8 * 0.6 * 0.5),
    (0, 0, 0.9),
    (1, 0, 0.9 * 0.8),
    (2, 0, 0.9 * 0.8 * 0.6),
    (3, 0, 0.9 * 0.8 * 0.6 * 0.5),
]


def logits(hazards: np.ndarray) -> torch.Tensor:
    """Log odds."""
    return torch.tensor(np.log(hazards / (1 - hazards)))


@pytest.mark.parametrize(("interval", "event", "likelihood"), TABLE)
def test_likelihood_by_hand(interval: int, event: int, likelihood: float) -> None:
    found = hazard_nll(logits(HAZARDS)[None], torch.tensor([interval]), torch.tensor([event]))
    assert found.item() == pytest.approx(-np.log(likelihood), abs=1e-12)


def test_outcomes_of_one_follow_up_sum_to_one() -> None:
    last = len(HAZARDS) - 1
    interval = torch.tensor([0, 1, 2, 3, last])
    event = torch.tensor([1, 1, 1, 1, 0])
    found = hazard_nll(logits(HAZARDS).expand(5, -1), interval, event)
    assert torch.exp(-found).sum().item() == pytest.approx(1, abs=1e-12)


def test_narrow_intervals_give_the_continuous_likelihood() -> None:
    """-(event * log(rate) - rate * time) of constant rates, as the width goes to 0."""
    rng = np.random.default_rng(0)
    rate, time = rng.uniform(0.01, 0.1, 40), rng.uniform(1, 30, 40)
    event = rng.integers(0, 2, 40)
    exact = -(event * np.log(rate) - rate * time)
    errors = []
    for intervals in (100, 1000, 10_000):
        width = 30 / intervals
        hazard = np.repeat(1 - np.exp(-rate * width)[:, None], intervals, axis=1)
        reached = np.ceil(time / width).astype(np.int64) - 1
        found = hazard_nll(logits(hazard), torch.tensor(reached), torch.tensor(event))
        # A density is a probability by the width of its interval.
        errors.append(np.abs(found.numpy() + event * np.log(width) - exact).max())
    assert errors[2] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.3)


def test_extreme_logits_stay_finite() -> None:
    extreme = torch.tensor([[-100.0, 100.0], [100.0, -100.0]], requires_grad=True)
    loss = hazard_nll(extreme, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(extreme.grad).all()


def test_intervals_are_quantiles_of_uncensored_training_times() -> None:
    time = np.array([1.0, 2, 3, 4, 5, 100, 200])
    event = np.array([1.0, 1, 1, 1, 1, 0, 0])
    found = Intervals.fit(Outcome(time, event))
    assert found.edges.tolist() == [0, 2, 3, 4, 200]
    assert found.of(np.array([0.5, 2, 2.1, 3, 4, 4.1, 999])).tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("time", "event", "intervals"),
    [([5.0, 7.0], [0.0, 0.0], 1), ([5.0, 7.0], [0.0, 1.0], 1), ([5.0, 5.0, 9.0], [1, 1, 0], 2)],
)
def test_few_events_make_fewer_intervals(time: list, event: list, intervals: int) -> None:
    found = Intervals.fit(Outcome(np.array(time), np.array(event, float)))
    assert len(found) == intervals
    table = found.predict(np.zeros((2, intervals)), (1.0, 12.0))
    assert np.isfinite(table.to_numpy()).all()


def test_survival_between_and_beyond_the_edges() -> None:
    intervals = Intervals(np.array([0.0, 10, 20, 40, 80]))
    odds = np.log(HAZARDS / (1 - HAZARDS))[None]
    table = intervals.predict(odds, (0.0, 10.0, 15.0, 80.0, 500.0))
    survival = np.cumprod(1 - HAZARDS)
    assert table["survival_0"][0] == pytest.approx(1)
    assert table["survival_10"][0] == pytest.approx(survival[0])
    assert table["survival_15"][0] == pytest.approx(0.9 * 0.8**0.5)
    assert table["survival_80"][0] == table["survival_500"][0] == pytest.approx(survival[3])
    assert table["risk"][0] == pytest.approx(1 - survival.mean())
    worse = intervals.predict(odds + 1, (10.0,))
    assert worse["risk"][0] > table["risk"][0]

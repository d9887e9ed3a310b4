"""Search for better settings of HEEC on the inner folds of the training patients of one fold.

A seeded tree-structured Parzen estimator (Bergstra et al. 2011) as in Optuna, which is imported
inside functions. The settings given are the first trial, and stay unless another is better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from mm_assets.models.boosting import Chosen
from mm_assets.models.heec_parameters import HeecParameters

if TYPE_CHECKING:
    from optuna import Trial

# Filters are searched from an eighth to four times the size given.
SMALLER, LARGER = 8, 4
_FILTERS = ("imaging_features", "omics_features")


@dataclass(frozen=True)
class Attempt:
    """Settings, the rounds and held-out scores they led to, and how good those are.

    Attributes
    ----------
    gain
        Held-out log-likelihood gained over knowing nothing, a patient; higher is better.
    """

    parameters: HeecParameters
    chosen: Mapping[str, Chosen]
    gain: float


@dataclass(frozen=True)
class Range:
    """Values a setting can take, both ends included."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def parse(self, text: str) -> float:
        """A value as a tuning service writes it."""
        return int(text) if self.integer else float(text)


def largest_filters(parameters: HeecParameters) -> tuple[int | None, int | None]:
    """Largest filters of imaging and omics that a search can ask for."""
    factor = LARGER if _searches_filters(parameters) else 1
    sizes = parameters.imaging_features, parameters.omics_features
    imaging, omics = (size and factor * size for size in sizes)
    return imaging, omics


def search_space(start: HeecParameters) -> dict[str, Range]:
    """Settings searched for: regularisation of the trees, and sizes of the filters there are."""
    filters = {
        name: Range(max(1, size // SMALLER), LARGER * size, log=True, integer=True)
        for name, size in _filters(start).items()
    }
    return {
        "num_leaves": Range(2, 16, log=True, integer=True),
        "leaf_size": Range(0.25, 4.0, log=True),
        "learning_rate": Range(0.02, 0.2, log=True),
        "feature_fraction": Range(0.03, 1.0, log=True),
        "lambda_l1": Range(0.0, 5.0),
        "lambda_l2": Range(0.01, 100.0, log=True),
        **filters,
    }


def with_settings(start: HeecParameters, settings: Mapping[str, float]) -> HeecParameters:
    """The parameters with other values of what is searched for."""
    filters: dict[str, Any] = {name: settings[name] for name in _filters(start)}
    trees: dict[str, Any] = {n: value for n, value in settings.items() if n not in _FILTERS}
    return replace(start, boosting=replace(start.boosting, **trees), **filters)


def tune(
    attempt: Callable[[HeecParameters], Attempt],
    start: HeecParameters,
    candidate: Mapping[str, float] | None = None,
) -> tuple[Attempt, pd.DataFrame]:
    """The best attempt within `start.tuning`, and a row a trial.

    Parameters
    ----------
    attempt
        Judges settings on inner folds.
    start
        Settings of the first trial.
    candidate
        Settings that were searched for elsewhere: the second and last trial.

    Returns
    -------
    tuple
        Best attempt, the earliest of equals; table with columns trial, gain, seconds and the
        settings searched, empty without a search.
    """
    if start.tuning.trials < 2:
        return attempt(start), pd.DataFrame(columns=["trial", "gain", "seconds"])
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tried: list[Attempt] = []
    space = search_space(start)

    def judge(trial: "Trial") -> float:
        found = attempt(with_settings(start, _propose(trial, space)))
        if not tried or found.gain > tried[0].gain:
            tried[:] = [found]
        return found.gain

    sampler = optuna.samplers.TPESampler(seed=start.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(_given(start, space))
    if candidate is None:
        study.optimize(judge, n_trials=start.tuning.trials, timeout=start.tuning.seconds)
    else:
        study.enqueue_trial(dict(candidate))
        study.optimize(judge, n_trials=2)
    rows = [
        {"trial": trial.number, "gain": trial.value, "seconds": trial.duration.total_seconds()}
        | trial.params
        for trial in study.trials
        if trial.duration is not None
    ]
    return tried[0], pd.DataFrame(rows)


def _searches_filters(parameters: HeecParameters) -> bool:
    return parameters.tuning.trials > 1 and parameters.tuning.filters


def _filters(start: HeecParameters) -> dict[str, int]:
    """Sizes of the filters that are searched for."""
    if not _searches_filters(start):
        return {}
    sizes = {name: getattr(start, name) for name in _FILTERS}
    return {name: size for name, size in sizes.items() if size is not None}


def _given(start: HeecParameters, space: Mapping[str, Range]) -> dict[str, float]:
    """The settings searched for, at their values in `start`."""
    return {name: getattr(start if name in _FILTERS else start.boosting, name) for name in space}


def _propose(trial: "Trial", space: Mapping[str, Range]) -> dict[str, float]:
    return {
        name: trial.suggest_int(name, int(limits.low), int(limits.high), log=limits.log)
        if limits.integer
        else trial.suggest_float(name, limits.low, limits.high, log=limits.log)
        for name, limits in space.items()
    }

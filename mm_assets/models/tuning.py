"""Search for better settings of HEEC on the inner folds of the training patients of one fold.

A seeded tree-structured Parzen estimator (Bergstra et al. 2011) as in Optuna, which is imported
inside functions. The settings given are the first trial, and stay unless another is better.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from mm_assets.models.boosting import Chosen
from mm_assets.models.heec_parameters import HeecParameters

if TYPE_CHECKING:
    from optuna import Trial

# Filters are searched from an eighth to four times the size given.
SMALLER, LARGER = 8, 4


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


def largest_filters(parameters: HeecParameters) -> tuple[int | None, int | None]:
    """Largest filters of imaging and omics that a search can ask for."""
    factor = LARGER if _searches_filters(parameters) else 1
    sizes = parameters.imaging_features, parameters.omics_features
    imaging, omics = (size and factor * size for size in sizes)
    return imaging, omics


def tune(
    attempt: Callable[[HeecParameters], Attempt], start: HeecParameters
) -> tuple[Attempt, pd.DataFrame]:
    """The best attempt within `start.tuning`, and a row a trial.

    Parameters
    ----------
    attempt
        Judges settings on inner folds.
    start
        Settings of the first trial.

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

    def judge(trial: "Trial") -> float:
        found = attempt(_propose(trial, start))
        if not tried or found.gain > tried[0].gain:
            tried[:] = [found]
        return found.gain

    sampler = optuna.samplers.TPESampler(seed=start.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(_searched(start))
    study.optimize(judge, n_trials=start.tuning.trials, timeout=start.tuning.seconds)
    rows = [
        {"trial": trial.number, "gain": trial.value, "seconds": trial.duration.total_seconds()}
        | trial.params
        for trial in study.trials
        if trial.duration is not None
    ]
    return tried[0], pd.DataFrame(rows)


def _searches_filters(parameters: HeecParameters) -> bool:
    return parameters.tuning.trials > 1 and parameters.tuning.filters


def _searched(start: HeecParameters) -> dict[str, float]:
    """The settings searched for, at their values in `start`."""
    boosting = start.boosting
    filters = {
        name: size
        for name in ("imaging_features", "omics_features")
        if (size := getattr(start, name)) is not None and _searches_filters(start)
    }
    return filters | {
        "num_leaves": boosting.num_leaves,
        "leaf_size": boosting.leaf_size,
        "learning_rate": boosting.learning_rate,
        "feature_fraction": boosting.feature_fraction,
        "lambda_l1": boosting.lambda_l1,
        "lambda_l2": boosting.lambda_l2,
    }


def _propose(trial: "Trial", start: HeecParameters) -> HeecParameters:
    """Settings of a trial: regularisation of the trees, and sizes of the filters."""
    boosting = replace(
        start.boosting,
        num_leaves=trial.suggest_int("num_leaves", 2, 16, log=True),
        leaf_size=trial.suggest_float("leaf_size", 0.25, 4.0, log=True),
        learning_rate=trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        feature_fraction=trial.suggest_float("feature_fraction", 0.03, 1.0, log=True),
        lambda_l1=trial.suggest_float("lambda_l1", 0.0, 5.0),
        lambda_l2=trial.suggest_float("lambda_l2", 0.01, 100.0, log=True),
    )

    def size(name: str, given: int | None) -> int | None:
        if given is None or not _searches_filters(start):
            return given
        return trial.suggest_int(name, max(1, given // SMALLER), LARGER * given, log=True)

    return replace(
        start,
        boosting=boosting,
        imaging_features=size("imaging_features", start.imaging_features),
        omics_features=size("omics_features", start.omics_features),
    )

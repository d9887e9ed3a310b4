"""Gradient boosting with LightGBM whose number of rounds is chosen on inner folds.

Strongly regularised, for few patients and many features: four leaves a tree, a tenth of the
features and seven tenths of the patients a tree. `lightgbm` is imported inside functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from mm_assets.models.features import Matrix
from mm_assets.models.losses import Floats, Loss


@dataclass(frozen=True)
class BoostingParameters:
    """Regularisation of the trees and how many there are.

    Attributes
    ----------
    leaf_size
        Least patients in a leaf, as a multiple of a thirtieth of the patients (of 2 to 20).
    min_rounds
        Least number of trees. Held-out likelihood punishes scores for being too large as well as
        for being in the wrong order, and so stops long before the order is at its best; scores
        are calibrated afterwards, so that only the order counts.
    stage
        Rounds between two looks at the inner folds.
    patience
        Looks without a better held-out loss before boosting ends.
    """

    learning_rate: float = 0.05
    num_leaves: int = 4
    leaf_size: float = 1.0
    feature_fraction: float = 0.1
    bagging_fraction: float = 0.7
    lambda_l1: float = 0.0
    lambda_l2: float = 1.0
    max_bin: int = 63
    min_rounds: int = 75
    max_rounds: int = 400
    stage: int = 25
    patience: int = 2

    def lightgbm(self, patients: int, outputs: int, seed: int) -> dict[str, Any]:
        """LightGBM's own parameters for a number of training patients."""
        return {
            "objective": "none",
            "num_class": outputs,
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "feature_fraction": self.feature_fraction,
            "bagging_fraction": self.bagging_fraction,
            "bagging_freq": 1,
            "lambda_l1": self.lambda_l1,
            "lambda_l2": self.lambda_l2,
            "min_data_in_leaf": max(1, round(self.leaf_size * np.clip(patients // 30, 2, 20))),
            "min_sum_hessian_in_leaf": 1e-3,
            "max_bin": self.max_bin,
            "feature_pre_filter": False,
            "seed": seed,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }


@dataclass(frozen=True)
class InnerFold:
    """Matrices and losses of one inner fold.

    Attributes
    ----------
    train, held
        Features of its training and its held-out patients.
    rows
        Positions of the held-out patients among all training patients of the outer fold.
    train_losses, held_losses
        By name, bound to these patients.
    """

    train: Matrix
    held: Matrix
    rows: np.ndarray
    train_losses: Mapping[str, Loss]
    held_losses: Mapping[str, Loss]


@dataclass(frozen=True)
class Chosen:
    """Outcome of the inner folds: how many rounds, and the held-out scores at that number."""

    rounds: int
    scores: Floats


class Boosters:
    """Boosters of several losses on the same features, which are binned once."""

    def __init__(
        self,
        matrix: Matrix,
        losses: Mapping[str, Loss],
        parameters: BoostingParameters,
        seed: int,
    ) -> None:
        import lightgbm as lgb

        first = next(iter(losses.values()))
        options = parameters.lightgbm(len(matrix), first.outputs, seed)
        data = lgb.Dataset(matrix, np.zeros(len(matrix)), params=options).construct()
        self._losses = losses
        # LightGBM refuses to grow a tree when no feature has two bins, as in very small cohorts.
        self._can_grow = any(data.feature_num_bin(i) > 1 for i in range(data.num_feature()))
        # Trees of different losses draw different features and patients.
        self._boosters = {
            name: lgb.Booster(options | {"seed": seed + place}, data)
            for place, name in enumerate(losses)
        }

    def advance(self, name: str, rounds: int) -> None:
        """Add trees to the booster of one loss; none where the features are constant."""
        loss = self._losses[name]
        for _ in range(rounds if self._can_grow else 0):
            self._boosters[name].update(fobj=lambda score, _: loss.gradient(score))

    def score(self, name: str, matrix: Matrix, start: int, rounds: int) -> Floats:
        """Sum of the trees of some rounds, [patients] or [patients, outputs]."""
        return np.asarray(
            self._boosters[name].predict(
                matrix, start_iteration=start, num_iteration=rounds, raw_score=True
            )
        )

    def text(self, name: str) -> str:
        """The booster of one loss as LightGBM's text."""
        return str(self._boosters[name].model_to_string())


@contextmanager
def one_thread() -> Iterator[None]:
    """Boost with one OpenMP thread, whatever LightGBM's own setting.

    At every small tree its threads wait for each other: beside other work that takes longer than
    the trees.
    """
    import lightgbm  # noqa: F401  # loaded before threads are limited, so that its own are too

    with threadpool_limits(1):
        yield


def choose_rounds(
    folds: Sequence[InnerFold], parameters: BoostingParameters, seed: int
) -> dict[str, Chosen]:
    """Number of rounds of each loss that is best over the inner folds together.

    All inner folds grow in step, so that boosting ends when the sum of their held-out losses no
    longer falls.
    """
    boosters = [Boosters(f.train, f.train_losses, parameters, seed) for f in folds]
    return {name: _choose(name, folds, boosters, parameters) for name in folds[0].train_losses}


def _choose(
    name: str, folds: Sequence[InnerFold], boosters: Sequence[Boosters], limits: BoostingParameters
) -> Chosen:
    outputs = folds[0].train_losses[name].outputs
    patients = sum(len(fold.rows) for fold in folds)
    score = np.zeros((patients, outputs) if outputs > 1 else patients)
    best, best_loss, looks = Chosen(0, score), np.inf, 0
    for rounds in range(limits.stage, limits.max_rounds + 1, limits.stage):
        score, loss = score.copy(), 0.0
        for fold, grown in zip(folds, boosters, strict=True):
            grown.advance(name, limits.stage)
            score[fold.rows] += grown.score(name, fold.held, rounds - limits.stage, limits.stage)
            loss += fold.held_losses[name].value(score[fold.rows])
        if rounds < limits.min_rounds:
            continue
        looks += 1
        if loss < best_loss:
            best, best_loss, looks = Chosen(rounds, score), loss, 0
        if looks >= limits.patience:
            break
    return best


def predict_text(text: str, matrix: Matrix) -> Floats:
    """Raw scores of a booster kept as text."""
    import lightgbm as lgb

    booster = lgb.Booster(model_str=text)
    return np.asarray(booster.predict(matrix, raw_score=True, num_threads=1))

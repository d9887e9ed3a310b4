"""A clinical model's score as the place from which boosting starts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.clinical import ClinicalModel
from mm_assets.models.losses import Floats, Loss

MAX_SLOPE = 5.0


@dataclass(frozen=True)
class ClinicalOffset:
    """Linear predictor of a clinical model, without intercept, on the scale of every loss.

    Attributes
    ----------
    slopes
        By loss: factor of the linear predictor with the least training loss, at least 0.
    """

    model: ClinicalModel
    slopes: dict[str, float]

    @classmethod
    def fit(
        cls, covariates: pd.DataFrame, endpoint: Endpoint, losses: Mapping[str, Loss]
    ) -> "ClinicalOffset":
        """Fit to training patients, to whom the losses are bound."""
        from scipy.optimize import minimize_scalar

        model = ClinicalModel.fit(covariates, endpoint)
        score = _linear(model, covariates)
        slopes = {
            name: float(
                minimize_scalar(
                    lambda slope, loss=loss: loss.value(slope * score),
                    bounds=(0.0, MAX_SLOPE),
                    method="bounded",
                ).x
            )
            for name, loss in losses.items()
        }
        return cls(model, slopes)

    def __call__(self, name: str, covariates: pd.DataFrame) -> Floats:
        """Start of the scores of one loss, [patients] or [patients, classes]."""
        return self.slopes[name] * _linear(self.model, covariates)

    def bind(self, losses: Mapping[str, Loss], covariates: pd.DataFrame) -> dict[str, Loss]:
        """The losses of scores that are added to the offset of these patients."""
        return {name: OffsetLoss(loss, self(name, covariates)) for name, loss in losses.items()}


class OffsetLoss:
    """A loss of a score that is added to a fixed offset."""

    def __init__(self, loss: Loss, offset: Floats) -> None:
        self.outputs = loss.outputs
        self._loss, self._offset = loss, offset

    def gradient(self, score: Floats) -> tuple[Floats, Floats]:
        """Derivatives at the sum."""
        return self._loss.gradient(self._offset + score)

    def value(self, score: Floats) -> float:
        """Loss of the sum."""
        return self._loss.value(self._offset + score)


def _linear(model: ClinicalModel, covariates: pd.DataFrame) -> Floats:
    return np.asarray(model.encoder.standardize(covariates) @ model.coefficients)

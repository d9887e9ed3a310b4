"""How much each feature of a HEEC model adds to a patient's score.

The trees' parts are LightGBM's own (`pred_contrib`, TreeSHAP of Lundberg et al. 2020) and are
combined just as the model combines its members, so that base and contributions sum to what is
explained:

- Classification: the logit of the predicted class less the mean logit of the others, averaged
  over the boosters, with the parts of the clinical model from which they start. With two classes
  this is the log odds of the predicted class.
- Survival: the risk, which is a mean of places among training patients. A member's place is no
  sum of features but rises with a score that is one; its distance from the place of the mean
  training patient is shared out in proportion to the parts of the score (the rescale rule of
  DeepLIFT, Shrikumar et al. 2017). Members without a vote contribute nothing.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from mm_assets.models.calibration import QuantileMap
from mm_assets.models.features import Matrix
from mm_assets.models.heec import HeecModel
from mm_assets.models.losses import Floats
from mm_assets.models.offset import ClinicalOffset
from mm_assets.models.votes import CLINICAL, TREES

RISK = "risk"


@dataclass(frozen=True)
class Contributions:
    """What the features of some patients add to the score that is explained.

    Attributes
    ----------
    table
        float64, a row a patient, a column a feature of the model.
    base
        Score of the mean training patient, by patient.
    towards
        ``risk``, or the predicted class, by patient.
    """

    table: pd.DataFrame
    base: pd.Series
    towards: pd.Series

    @property
    def score(self) -> pd.Series:
        """What is explained: base and contributions together, by patient."""
        return self.base + self.table.sum(axis=1)

    @property
    def meaning(self) -> str:
        """What a contribution is, in words."""
        if (self.towards == RISK).all():
            return "share of the risk, which runs from 0 to 1 as the place among training patients"
        return "log odds of the predicted class against the mean of the other classes"


def explain_heec(model: HeecModel, frame: pd.DataFrame) -> Contributions:
    """Contributions of every feature to the model's prediction.

    Parameters
    ----------
    frame
        As for `HeecModel.predict`. Features that a patient lacks contribute too: trees send
        missing values one way.

    Raises
    ------
    ValueError
        If the model is of survival and starts from a clinical offset: its parts of a place are not
        worked out.
    """
    if model.curve is None:
        return _of_class(model, frame)
    if model.offset is not None:
        raise ValueError("a survival model with a clinical offset cannot be explained")
    return _of_risk(model, frame)


def feature_values(model: HeecModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Values of the model's features as measured, before winsorising; covariates as encoded."""
    parts = [frame[table["feature"].tolist()] for table in model.preprocessor.filtered]
    covariates = model.covariates
    if covariates:
        encoded = covariates.encode(frame)
        parts.append(pd.DataFrame(encoded, index=frame.index, columns=covariates.names()))
    return pd.concat([pd.DataFrame(index=frame.index), *parts], axis=1)


def _of_class(model: HeecModel, frame: pd.DataFrame) -> Contributions:
    matrix, classes = model.preprocessor.transform(frame), len(model.classes)
    parts = np.zeros((len(frame), classes, matrix.shape[1] + 1))
    for text in model.boosters.values():
        parts += _tree_parts(text, matrix).reshape(parts.shape) / len(model.boosters)
    parts[..., -1] += model.prior
    names = model.preprocessor.names
    if model.offset is not None:
        parts = np.concatenate([_offset_parts(model.offset, frame), parts], axis=2)
        names = [*model.offset.model.encoder.names(), *names]
    chosen = parts.sum(axis=2).argmax(axis=1)
    own = parts[np.arange(len(frame)), chosen]
    margin = own - (parts.sum(axis=1) - own) / (classes - 1)
    return Contributions(
        pd.DataFrame(margin[:, : len(names)], frame.index, names),
        pd.Series(margin[:, -1], frame.index),
        pd.Series(np.array(model.classes)[chosen], frame.index),
    )


def _offset_parts(offset: ClinicalOffset, frame: pd.DataFrame) -> Floats:
    """What covariates add to the logits where boosting starts, [patients, classes, columns]."""
    slope = np.mean(list(offset.slopes.values()))
    values = offset.model.encoder.standardize(frame)
    return np.asarray(slope * values[:, None, :] * offset.model.coefficients.T)


def _of_risk(model: HeecModel, frame: pd.DataFrame) -> Contributions:
    matrix, names = model.preprocessor.transform(frame), model.preprocessor.names
    total = sum(model.votes.values())
    trees, clinical = (model.votes.get(member, 0.0) / total for member in (TREES, CLINICAL))
    table = pd.DataFrame(0.0, frame.index, names)
    # Without boosters every patient has the trees' middle place.
    base = np.full(len(frame), 0.0 if model.boosters else trees / 2)
    share = partial(_shares_of_place, patients=len(frame))
    for name, text in model.boosters.items():
        parts = _tree_parts(text, matrix)
        places, at_base = share(model.references[name], parts[:, : len(names)], parts[:, -1])
        table += trees / len(model.boosters) * places
        base += trees / len(model.boosters) * at_base
    if model.clinical is not None:
        encoder = model.clinical.encoder
        parts = encoder.standardize(frame) * model.clinical.coefficients
        places, at_base = share(model.references[CLINICAL], parts, np.zeros(len(frame)))
        cox = pd.DataFrame(clinical * places, frame.index, encoder.names())
        table = table.add(cox, fill_value=0.0)[[*names, *cox.columns.difference(names)]]
        base += clinical * at_base
    return Contributions(table, pd.Series(base, frame.index), pd.Series(RISK, frame.index))


def _shares_of_place(
    place: QuantileMap, parts: Floats, base: Floats, patients: int
) -> tuple[Floats, Floats]:
    """Parts of scores [patients, features] as parts of their places; places of the base."""
    rise = parts.sum(axis=1)
    at_base = place(base)
    gained = place(base + rise) - at_base
    slope = np.divide(gained, rise, out=np.zeros(patients), where=np.abs(rise) > 1e-12)
    return parts * slope[:, None], at_base


def _tree_parts(text: str, matrix: Matrix) -> Floats:
    """LightGBM's contributions, [patients, outputs * (features + 1)]; each last is the base."""
    import lightgbm as lgb

    booster = lgb.Booster(model_str=text)
    return np.asarray(booster.predict(matrix, pred_contrib=True, num_threads=1))

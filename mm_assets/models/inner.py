"""The inner folds of training patients: where rounds, settings and votes are chosen.

The filter is fitted anew in every inner fold, because features chosen with the outcomes of
held-out patients make any number of rounds look good. It is fitted once, at the largest size
wanted: a smaller filter keeps the first of its columns. The selection of tiles and nuclei is not
fitted anew: held-out patients of an inner fold, unlike test patients, had a part in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.cohort.splits import inner_split
from mm_assets.models.boosting import Chosen, InnerFold, choose_rounds
from mm_assets.models.clinical import ClinicalModel
from mm_assets.models.features import FeatureBlocks, Preprocessor
from mm_assets.models.heec_parameters import HeecParameters
from mm_assets.models.losses import Floats, bind_losses
from mm_assets.models.offset import ClinicalOffset

InnerFolds = list[tuple[list[str], list[str]]]


def inner_folds(
    endpoint: Endpoint, train: list[str], parameters: HeecParameters, sites: pd.Series | None
) -> InnerFolds:
    """Inner folds of at least five patients each, as far as there are so many."""
    folds = int(np.clip(len(train) // 5, 2, parameters.inner_folds))
    return list(inner_split(train, endpoint, folds, parameters.seed, sites))


def held_out_clinical(
    covariates: pd.DataFrame, endpoint: Endpoint, train: list[str], inner: InnerFolds
) -> Floats:
    """Held-out linear predictors of the clinical Cox model for all training patients."""
    score = np.zeros(len(train))
    for fitted, held in inner:
        model = ClinicalModel.fit(covariates.reindex(fitted), endpoint)
        score[np.searchsorted(train, held)] = model.score(covariates.reindex(held))
    return score


@dataclass(frozen=True)
class InnerData:
    """Matrices and losses of all inner folds, for filters of any size up to the one prepared.

    Attributes
    ----------
    preprocessors, folds
        One an inner fold; matrices hold the columns of the largest filters.
    offsets
        By loss: where the held-out scores of all training patients start; empty without offset.
    """

    preprocessors: list[Preprocessor]
    folds: list[InnerFold]
    offsets: dict[str, Floats]

    @classmethod
    def prepare(
        cls,
        blocks: FeatureBlocks,
        endpoint: Endpoint,
        train: list[str],
        inner: InnerFolds,
        sizes: tuple[int | None, int | None],
        offset: pd.DataFrame | None = None,
    ) -> "InnerData":
        """Filter and bind the inner folds.

        Parameters
        ----------
        blocks
            What the trees read.
        sizes
            Largest filters of imaging and omics; None keeps all that vary.
        offset
            Covariates of a clinical model from whose score boosting starts.
        """
        preprocessors, folds, offsets = [], [], dict[str, Floats]()
        for fitted, held in inner:
            preprocessor = Preprocessor.fit(blocks, endpoint, fitted, *sizes)
            rows = np.searchsorted(train, held)
            train_losses = bind_losses(endpoint, fitted, fitted)
            held_losses = bind_losses(endpoint, fitted, held)
            if offset is not None:
                start = ClinicalOffset.fit(offset.reindex(fitted), endpoint, train_losses)
                _place(offsets, start, offset.reindex(held), rows, len(train))
                train_losses = start.bind(train_losses, offset.reindex(fitted))
                held_losses = start.bind(held_losses, offset.reindex(held))
            folds.append(
                InnerFold(
                    train=preprocessor.transform(blocks.frame(fitted)),
                    held=preprocessor.transform(blocks.frame(held)),
                    rows=rows,
                    train_losses=train_losses,
                    held_losses=held_losses,
                )
            )
            preprocessors.append(preprocessor)
        return cls(preprocessors, folds, offsets)

    def choose(self, parameters: HeecParameters) -> dict[str, Chosen]:
        """Rounds of every loss and the held-out scores of all training patients, in their order."""
        folds = []
        for preprocessor, fold in zip(self.preprocessors, self.folds, strict=True):
            kept = preprocessor.columns(parameters.imaging_features, parameters.omics_features)
            folds.append(replace(fold, train=fold.train[:, kept], held=fold.held[:, kept]))
        chosen = choose_rounds(folds, parameters.boosting, parameters.seed)
        return {
            name: replace(choice, scores=choice.scores + self.offsets.get(name, 0.0))
            for name, choice in chosen.items()
        }

    def loss(self, scores: Mapping[str, Floats]) -> float:
        """Held-out loss of the mean score of losses that are all alike, over all inner folds."""
        name = next(iter(scores))
        mean = np.mean([scores[n] - self.offsets.get(n, 0.0) for n in scores], axis=0)
        return sum(fold.held_losses[name].value(mean[fold.rows]) for fold in self.folds)


def _place(
    offsets: dict[str, Floats],
    start: ClinicalOffset,
    covariates: pd.DataFrame,
    rows: np.ndarray,
    patients: int,
) -> None:
    """Write an inner fold's held-out offsets to their rows."""
    for name in start.slopes:
        of_held = start(name, covariates)
        offsets.setdefault(name, np.zeros((patients, *of_held.shape[1:])))[rows] = of_held

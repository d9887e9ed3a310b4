"""Attention over a patient's tiles as evidence, in the format that boosted models use.

Attention says where a network looked, not which way a tile spoke: scores are above 0 and have no
side.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mm_assets.explain.document import EvidenceDocument, Instance, Model
from mm_assets.models.calibration import probability_columns
from mm_assets.models.porpoise.model import Cohort, PorpoiseModel

MEANING = "attention weight of the tile; the weights of all tiles of the patient sum to 1"


@dataclass(frozen=True)
class Bag:
    """Tiles of one slide.

    Attributes
    ----------
    embeddings
        Float16, shape [n, D].
    x, y, size0
        Top-left corner and edge in level-0 pixels, int32, shape [n].
    """

    embeddings: NDArray[np.float16]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    size0: NDArray[np.int32]


def rank_tiles(
    model: PorpoiseModel, slides: Mapping[str, Bag], most: int, level: str = "tile"
) -> list[Instance]:
    """Tiles of one patient by attention, the strongest first.

    Parameters
    ----------
    model
        One that reads slides.
    slides
        All slides of the patient by id.
    most
        Tiles returned.
    level
        What the instances are called, where bags hold something else.
    """
    if not any(len(bag.embeddings) for bag in slides.values()):
        return []
    weights = model.attention(np.concatenate([bag.embeddings for bag in slides.values()]))
    tiles = pd.concat(
        [
            pd.DataFrame({"slide_id": slide, "x": bag.x, "y": bag.y, "size0": bag.size0})
            for slide, bag in slides.items()
        ],
        ignore_index=True,
    )
    tiles["score"] = weights.astype(np.float64)
    order = ["score", "slide_id", "y", "x"]
    strongest = tiles.sort_values(order, ascending=[False, True, True, True]).head(most)
    return [
        Instance.model_validate({"rank": rank, "level": level, **row})
        for rank, row in enumerate(strongest.to_dict("records"), start=1)
    ]


def attention_evidence(
    model: PorpoiseModel,
    slides: Mapping[str, Bag],
    omics: pd.DataFrame | None,
    patient: str,
    *,
    cohort: str,
    task: str,
    registered: Model,
    weights: str,
    seen_in_training: bool,
    most: int = 1000,
    level: str = "tile",
) -> EvidenceDocument:
    """The evidence of one patient over all slides, without crops and slide.

    Parameters
    ----------
    omics
        As from `read_omics`, for models that read them.
    weights
        Stamp of the encoder weights.
    most, level
        As for `rank_tiles`.

    Raises
    ------
    ValueError
        When the model cannot read the patient.
    """
    bags = {patient: [bag.embeddings for bag in slides.values()]}
    found = model.predict_patients(Cohort(bags, omics), [patient])
    if found.empty:
        raise ValueError(f"porpoise_{model.kind} cannot read patient {patient!r}: no {level}s")
    prediction = found.iloc[0].astype(float).to_dict()
    towards = "risk"
    if model.classes:
        likeliest = found[probability_columns(model.classes)].iloc[0].to_numpy().argmax()
        towards = model.classes[int(likeliest)]
    return EvidenceDocument(
        cohort=cohort,
        task=task,
        patient_id=patient,
        method=f"porpoise_{model.kind}",
        model=registered,
        weights=weights,
        seen_in_training=seen_in_training,
        towards=towards,
        meaning=MEANING,
        prediction={name: value for name, value in prediction.items() if np.isfinite(value)},
        instances=tuple(rank_tiles(model, slides, most, level)),
    )

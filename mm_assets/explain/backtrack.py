"""From a patient's contributions back to places on slides, genes and covariates, ranked."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mm_assets.explain.document import Instance, Item
from mm_assets.models.extremum import Places, locate, parse_feature, places_of

_EXTREMUM = re.compile(r"[^:]+:(min|max):\d+")


def rank_features(
    contributions: pd.Series,
    values: pd.Series,
    extrema: pd.DataFrame | None,
    covariates: Sequence[str],
) -> list[Item]:
    """Features that contribute to one patient's score, the strongest first.

    Parameters
    ----------
    contributions
        Contribution by feature name; features of no contribution are left out.
    values
        Value by feature name, NaN where the patient has none.
    extrema
        The patient's extrema (`mm_assets.models.extremum.patient_extrema`), None without slides.
    covariates
        Names of the clinical features.
    """
    used = contributions[contributions != 0]
    places = None if extrema is None else places_of(extrema)
    order = sorted(used.index, key=lambda name: (-abs(used[name]), name))
    return [
        _item(rank, name, float(used[name]), float(values[name]), places, name in covariates)
        for rank, name in enumerate(order, start=1)
    ]


def _item(
    rank: int,
    name: str,
    contribution: float,
    value: float,
    places: Places | None,
    clinical: bool,
) -> Item:
    known = None if np.isnan(value) else value
    item = Item(rank=rank, kind="omics", feature=name, value=known, contribution=contribution)
    if clinical:
        return item.model_copy(update={"kind": "clinical"})
    if not _EXTREMUM.fullmatch(name):
        return item
    feature = parse_feature(name)
    found = {"kind": "imaging", "level": feature.level, "dimension": feature.dimension}
    found["extremum"] = feature.extremum
    if known is not None and places is not None:
        place = locate(places, name)
        found |= {"slide_id": place.slide_id, "x": place.x, "y": place.y, "size0": place.size0}
    return item.model_copy(update=found)


def rank_instances(items: Sequence[Item]) -> list[Instance]:
    """Places that the items point to, the contributions of each summed, the strongest first."""
    scores: dict[tuple[str, str, int, int, int], list[float]] = {}
    for item in items:
        if item.slide_id is None:
            continue
        assert item.level is not None
        assert item.x is not None
        assert item.y is not None
        assert item.size0 is not None
        place = (item.slide_id, item.level, item.y, item.x, item.size0)
        scores.setdefault(place, []).append(item.contribution)
    order = sorted(scores, key=lambda place: (-abs(sum(scores[place])), place))
    return [
        Instance(
            rank=rank,
            slide_id=place[0],
            level=place[1],
            x=place[3],
            y=place[2],
            size0=place[4],
            score=sum(scores[place]),
            features=len(scores[place]),
        )
        for rank, place in enumerate(order, start=1)
    ]

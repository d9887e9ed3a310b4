"""How HEEC's survival risk is made of its members: places, votes, and their weighted mean."""

from collections.abc import Mapping

import numpy as np

from mm_assets.models.calibration import cox_slope
from mm_assets.models.losses import Floats, Outcome

TREES, CLINICAL = "trees", "clinical"


def cast_votes(modalities: int, places: Mapping[str, Floats], outcome: Outcome) -> dict[str, float]:
    """Weights of the trees and of the clinical Cox model, from held-out places.

    Parameters
    ----------
    modalities
        Votes of the trees: one for each of imaging and omics that they read.
    places
        Place of each patient by member; without `CLINICAL` the trees decide alone.
    """
    if CLINICAL not in places:
        return {TREES: 1.0}
    votes = {TREES: float(modalities), CLINICAL: 1.0}
    useful = {
        name: vote
        for name, vote in votes.items()
        if cox_slope(combine(places, {name: 1.0}, len(outcome.time)), outcome) > 0
    }
    return useful or votes


def combine(places: Mapping[str, Floats], votes: Mapping[str, float], patients: int) -> Floats:
    """Weighted mean of places; the trees' place is the mean over their losses."""
    trees = [place for name, place in places.items() if name != CLINICAL]
    means = {TREES: np.mean(trees, axis=0)} if trees else {TREES: np.full(patients, 0.5)}
    if CLINICAL in places:
        means[CLINICAL] = places[CLINICAL]
    total = np.zeros(patients)
    for name, vote in votes.items():
        total += vote * means[name]
    return total / sum(votes.values())

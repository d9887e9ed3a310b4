"""Cheap models fitted to parts of the training patients: do results grow with the cohort?

Only training patients are left out; every model is judged on the same test folds. Imaging is read
without selection, because a selection learned from the outcomes of all training patients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.clinical import run_clinical_folds
from mm_assets.models.features import FeatureBlocks, Variant
from mm_assets.models.heec import Sites
from mm_assets.models.heec_folds import run_folds
from mm_assets.models.heec_parameters import HeecParameters

Progress = Callable[[int, int], None]
EVERYBODY = 1.0


@dataclass(frozen=True)
class Part:
    """One draw of a share of the training patients."""

    share: float
    draw: int


def list_parts(shares: Sequence[float], draws: int) -> list[Part]:
    """Every draw of every share, ascending, and all training patients once."""
    smaller = [Part(share, draw) for share in sorted(set(shares)) for draw in range(draws)]
    return [*smaller, Part(EVERYBODY, 0)]


def draw_part(splits: pd.DataFrame, endpoint: Endpoint, part: Part, seed: int) -> pd.DataFrame:
    """The folds with a part of their training patients and all test patients.

    Training patients are drawn inside classes (survival: with and without event), at least one of
    each. Of one draw, a smaller share is a subset of a larger one.

    Parameters
    ----------
    splits
        Columns repeat, fold, patient_id, role.

    Returns
    -------
    DataFrame
        Rows of `splits`, in their order.
    """
    column = "event" if endpoint.kind == "survival" else "label"
    splits = splits.reset_index(drop=True)
    rows = splits.sort_values(["repeat", "fold", "patient_id"])
    train = rows[rows["role"] == "train"]
    generator = np.random.default_rng([seed, part.draw])
    shuffled = train.sample(frac=1, random_state=generator)
    stratum = shuffled["patient_id"].map(endpoint.table[column]).rename("stratum")
    group = shuffled.groupby(["repeat", "fold", stratum])["patient_id"]
    place = group.cumcount() / group.transform("size")
    left_out = shuffled.index[place >= part.share]
    return splits.drop(index=left_out)


def run_learning_curve(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    splits: pd.DataFrame,
    parts: Sequence[Part],
    *,
    seed: int = 0,
    parameters: HeecParameters | None = None,
    sites: Sites = None,
    progress: Progress | None = None,
    processes: int = 1,
) -> pd.DataFrame:
    """Out-of-fold predictions of HEEC and the clinical baseline, fitted to each part.

    Parameters
    ----------
    blocks
        Imaging without selection; filters are fitted to the part.
    splits
        Columns repeat, fold, patient_id, role; only patients with an endpoint.

    Returns
    -------
    DataFrame
        Columns share, draw, trained_on (patients the fold's model was fitted to), model, repeat,
        fold, patient_id and those of the models' predictions.
    """
    tables = []
    for done, part in enumerate(parts, start=1):
        chosen = draw_part(splits, endpoint, part, seed)
        train = chosen[chosen["role"] == "train"]
        trained_on = train.groupby(["repeat", "fold"]).size().rename("trained_on")
        for predictions in _predict(blocks, endpoint, chosen, parameters, sites, processes):
            labelled = predictions.join(trained_on, on=["repeat", "fold"])
            tables.append(labelled.assign(share=part.share, draw=part.draw))
        if progress:
            progress(done, len(parts))
    table = pd.concat(tables, ignore_index=True)
    first = ["share", "draw", "trained_on"]
    return table[[*first, *table.columns.drop(first)]]


def _predict(
    blocks: FeatureBlocks,
    endpoint: Endpoint,
    splits: pd.DataFrame,
    parameters: HeecParameters | None,
    sites: Sites,
    processes: int,
) -> Iterator[pd.DataFrame]:
    if blocks.imaging is not None or blocks.omics is not None:
        yield run_folds(
            blocks,
            endpoint,
            splits,
            variants=[Variant("heec")],
            parameters=parameters,
            sites=sites,
            processes=processes,
        )
    if blocks.clinical is not None:
        yield run_clinical_folds(blocks.clinical, endpoint, splits)

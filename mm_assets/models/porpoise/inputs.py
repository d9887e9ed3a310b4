"""What the networks read: bags of tiles, packed, and standardized omics features."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint
from mm_assets.models.losses import Floats
from mm_assets.models.porpoise.networks import Batch
from mm_assets.omics.filters import apply_filter, fit_filter

Tiles = NDArray[np.float16]
Bags = Mapping[str, Sequence[Tiles]]


@dataclass(frozen=True)
class OmicsScaler:
    """Winsorised, imputed and standardized omics features; all of it fitted in training.

    Attributes
    ----------
    fitted
        From `fit_filter`: features that vary in training, limits, medians.
    mean, scale
        Of the winsorised and imputed features, in the order of `fitted`.
    """

    fitted: pd.DataFrame
    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, omics: pd.DataFrame, endpoint: Endpoint, train: Sequence[str]) -> "OmicsScaler":
        """Learn from the training patients who have omics; the endpoint chooses nothing.

        Raises
        ------
        ValueError
            When no training patient has omics, or no feature varies among them.
        """
        fitted = fit_filter(omics, endpoint, train, None)
        if fitted.empty:
            raise ValueError("no omics feature varies among the training patients")
        # In the table's order: that of the filter's p-values would depend on the endpoint.
        place = pd.Series(range(omics.shape[1]), omics.columns)
        fitted = fitted.iloc[np.argsort(place[fitted["feature"]].to_numpy())]
        fitted = fitted.assign(rank=range(len(fitted)))
        known = endpoint.table.index.intersection(list(train)).intersection(omics.index)
        filled = _imputed(omics.loc[known], fitted)
        return cls(fitted.reset_index(drop=True), filled.mean(axis=0), filled.std(axis=0))

    @property
    def names(self) -> list[str]:
        """Features that are read, in order."""
        return self.fitted["feature"].to_list()

    def __call__(self, omics: pd.DataFrame) -> NDArray[np.float32]:
        """Shape [patients, features]; a missing value counts as the training median."""
        return ((_imputed(omics, self.fitted) - self.mean) / self.scale).astype(np.float32)


def _imputed(omics: pd.DataFrame, fitted: pd.DataFrame) -> Floats:
    values = apply_filter(omics, fitted).to_numpy(np.float64)
    return np.where(np.isnan(values), fitted["median"].to_numpy(), values)


@dataclass(frozen=True)
class Inputs:
    """Inputs of patients by id.

    Attributes
    ----------
    bags
        Float16 embeddings [n, D] of each slide of a patient, memory-mapped as a rule; patients
        without slides are absent.
    omics
        Standardized features of the patients who have omics; no columns where none are read.
    """

    bags: Bags
    omics: pd.DataFrame

    def tiles(self, patient: str) -> int:
        """Number of tiles on all slides of the patient."""
        return sum(len(slide) for slide in self.bags.get(patient, ()))

    def pack(self, patients: Sequence[str], device: torch.device) -> Batch:
        """One batch; a patient's slides follow one another.

        Float32 on the CPU; float16 elsewhere, so that half as much travels to the device.
        """
        slides = [list(self.bags.get(patient, ())) for patient in patients]
        sizes = [sum(map(len, found)) for found in slides]
        width = next((slide.shape[1] for found in slides for slide in found), 0)
        kind = torch.float32 if device.type == "cpu" else torch.float16
        tiles = torch.empty((sum(sizes), width), dtype=kind)
        start = 0
        for slide in (slide for found in slides for slide in found):
            tiles[start : start + len(slide)].copy_(_as_tensor(slide))
            start += len(slide)
        rows = self.omics.reindex(list(patients))
        return Batch(
            tiles.to(device),
            tuple(accumulate(sizes, initial=0)),
            torch.tensor(rows.fillna(0).to_numpy(np.float32)).to(device),
            torch.tensor(rows.index.isin(self.omics.index)).to(device),
        )

    def packs(
        self, patients: Sequence[str], most_tiles: int, device: torch.device
    ) -> Iterator[tuple[list[str], Batch]]:
        """Batches of patients in their order, up to `most_tiles` tiles or a single bag each.

        The next batch is read while the caller computes.
        """
        groups = self._groups(patients, most_tiles)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.pack, groups[0], device) if groups else None
            for number, group in enumerate(groups, start=1):
                assert ahead is not None
                batch = ahead.result()
                if number < len(groups):
                    ahead = reader.submit(self.pack, groups[number], device)
                yield group, batch

    def _groups(self, patients: Sequence[str], most_tiles: int) -> list[list[str]]:
        groups: list[list[str]] = []
        filled = 0
        for patient in patients:
            tiles = self.tiles(patient)
            if not groups or filled + tiles > most_tiles:
                groups.append([])
                filled = 0
            groups[-1].append(patient)
            filled += tiles
        return groups


def _as_tensor(array: Tiles) -> torch.Tensor:
    with warnings.catch_warnings():
        # Memory-mapped arrays cannot be written to, and are not.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)

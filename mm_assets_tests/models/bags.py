"""Simulated patients whose tiles are partly their class's own, partly what everyone has."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from mm_assets.cohort.clinical import Endpoint
from mm_assets_tests.models.simulation import make_endpoint

DIMENSIONS, TILES, OWN_SHARE = 12, 60, 0.4


@dataclass(frozen=True)
class SimulatedBags:
    """Tiles of each patient, which of them are the class's own, and the classes."""

    tiles: dict[str, NDArray[np.float16]]
    own: dict[str, NDArray[np.bool_]]
    endpoint: Endpoint

    @property
    def patients(self) -> list[str]:
        """All patients."""
        return list(self.tiles)

    def bags(self, chunk: int = TILES) -> list[tuple[str, NDArray[np.float16]]]:
        """Patient and tiles, `chunk` rows at a time."""
        return [
            (patient, tiles[start : start + chunk])
            for patient, tiles in self.tiles.items()
            for start in range(0, len(tiles), chunk)
        ]

    def splits(self, test: list[str]) -> pd.DataFrame:
        """One fold with the given test patients."""
        return pd.DataFrame(
            {
                "repeat": 0,
                "fold": 0,
                "patient_id": self.patients,
                "role": ["test" if patient in test else "train" for patient in self.patients],
            }
        )


def simulate_bags(patients: int = 40, seed: int = 0, effect: float = 3.0) -> SimulatedBags:
    """Class A's own tiles lie along the first axis, class B's along the second."""
    rng = np.random.default_rng(seed)
    names = [f"P{number:03d}" for number in range(patients)]
    label = np.arange(patients) % 2
    tiles, own = {}, {}
    for name, code in zip(names, label, strict=True):
        values = rng.normal(size=(TILES, DIMENSIONS)) * [1.5, 1.5, *[0.3] * (DIMENSIONS - 2)]
        is_own = rng.random(TILES) < OWN_SHARE
        values[is_own, code] += 2 * effect
        tiles[name], own[name] = values.astype(np.float16), is_own
    table = pd.DataFrame({"label": label}, pd.Index(names, name="patient_id"))
    return SimulatedBags(tiles, own, make_endpoint("classification", table))


def tile_table(tiles: NDArray[np.float16]) -> pa.Table:
    """Tiles as the store holds them, in a row."""
    flat = pa.array(tiles.ravel(), pa.float16())
    places = np.arange(len(tiles), dtype=np.int32)
    return pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(flat, tiles.shape[1]),
            "x": 256 * places,
            "y": 0 * places,
            "size0": 0 * places + 256,
        }
    )

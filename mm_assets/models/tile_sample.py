"""A bounded random sample of every patient's tiles, drawn in one pass over any number of them."""

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Tiles = NDArray[np.float16]

TILES_IN_ALL = 100_000
TILES_A_PATIENT = 256


def tiles_a_patient(patients: int) -> int:
    """How many tiles of each of so many patients to keep, so that all fit into memory."""
    return max(1, min(TILES_A_PATIENT, TILES_IN_ALL // max(patients, 1)))


def sample_tiles(
    bags: Iterable[tuple[str, NDArray[np.floating]]], most: int, seed: int
) -> dict[str, Tiles]:
    """At most `most` tiles of each patient, every tile equally likely.

    Each tile draws a number from the patient's own stream and the smallest numbers stay: the
    sample depends on the seed, the patient and the order of the patient's tiles, not on how they
    are cut into chunks or on what other patients there are.

    Parameters
    ----------
    bags
        Patient and embeddings [tiles, D] (float16 or float32), chunk by chunk; chunks of one
        patient may lie apart. Held no longer than it takes to draw from them.

    Returns
    -------
    dict
        Patient -> float16 [n, D] in the order in which the tiles came, sorted by patient. Patients
        without tiles are absent.

    Raises
    ------
    ValueError
        If an embedding is not finite.
    """
    reservoirs: dict[str, _Reservoir] = {}
    for patient, embeddings in bags:
        refuse_non_finite(embeddings, f"patient {patient}")
        if patient not in reservoirs:
            reservoirs[patient] = _Reservoir(patient, most, seed)
        reservoirs[patient].add(embeddings)
    return {p: reservoirs[p].tiles for p in sorted(reservoirs) if len(reservoirs[p].tiles)}


def refuse_non_finite(embeddings: NDArray[np.floating], whose: str) -> None:
    """Raise ValueError when an embedding is NaN or infinite."""
    if not np.isfinite(embeddings).all():
        raise ValueError(
            f"tile embeddings of {whose} hold values that are not finite; compute them anew"
        )


class _Reservoir:
    """Tiles with the smallest draws so far."""

    def __init__(self, patient: str, most: int, seed: int) -> None:
        self._rng = np.random.default_rng([seed, zlib.crc32(patient.encode())])
        self._most = most
        self._draws = np.empty(0)
        self.tiles: Tiles = np.empty((0, 0), np.float16)

    def add(self, embeddings: NDArray[np.floating]) -> None:
        """Draw from some more tiles."""
        draws = self._rng.random(len(embeddings))
        full = len(self._draws) == self._most
        wanted = np.flatnonzero(draws < self._draws.max()) if full else np.arange(len(draws))
        if not len(wanted):
            return
        tiles = embeddings[wanted].astype(np.float16)
        draws = np.concatenate([self._draws, draws[wanted]])
        stay = np.sort(np.argsort(draws, kind="stable")[: self._most])
        self.tiles = np.concatenate([self.tiles, tiles] if len(self.tiles) else [tiles])[stay]
        self._draws = draws[stay]

"""Tile scorers as they are applied, and those of all folds in one npz file without pickles."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mm_assets.models.pu_risk import Floats
from mm_assets.models.tile_sample import refuse_non_finite

FORMAT = "mm_assets tile scorers 1"
TIE_BREAK = 1e-3
ROWS = 8192


@dataclass(frozen=True, eq=False)
class TileScorer:
    """Scores tiles, higher = less like the negatives, and keeps those above a cutoff.

    Attributes
    ----------
    share
        Share of the training patients' tiles above `cutoff`, each scored by a model of others.
    classes
        Classes that there was something to learn about; without any, every tile is kept.
    priors
        Estimated share of negatives among the tiles of patients inside each class, float64 [C].
    projection, shift
        Standardization and whitened principal components: float32 [D, k] and [k].
    weights, offsets
        Linear score of every class: float64 [C, k] and [C].
    knots, ratios
        Linear score against tail ratio, float64 [C, G]; G = 0 where scores are not calibrated.
    """

    method: str
    share: float
    cutoff: float
    classes: tuple[str, ...]
    priors: Floats
    projection: NDArray[np.float32]
    shift: NDArray[np.float32]
    weights: Floats
    offsets: Floats
    knots: Floats
    ratios: Floats

    def score(self, embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
        """How little each tile looks like the negatives, in nats where calibrated.

        Parameters
        ----------
        embeddings
            float16 or float32 [n, D].

        Raises
        ------
        ValueError
            If an embedding is not finite, or has another dimension than those of the training.
        """
        if self.classes and embeddings.shape[1] != len(self.projection):
            raise ValueError(
                f"embeddings of dimension {embeddings.shape[1]}, but the scorer was fitted to "
                f"dimension {len(self.projection)}: materialize the tile scorer again"
            )
        scores = np.zeros(len(embeddings), np.float32)
        for start in range(0, len(embeddings), ROWS):
            block = embeddings[start : start + ROWS].astype(np.float32)
            refuse_non_finite(block, "this slide")
            if not self.classes:
                continue
            linear = (block @ self.projection + self.shift) @ self.weights.T + self.offsets
            scores[start : start + ROWS] = combine(linear, self.knots, self.ratios)
        return scores

    def keep(self, embeddings: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which of a slide's tiles to keep: never none of them, if there is one.

        Parameters and errors are those of `score`; pass all tiles of the slide at once.
        """
        scores = self.score(embeddings)
        kept = scores > self.cutoff
        if len(kept) and not kept.any():
            kept[scores.argmax()] = True
        return kept


def keep_all(method: str) -> TileScorer:
    """The scorer where there is nothing to learn from."""
    none, flat = np.empty(0), np.empty((0, 0))
    empty = np.empty((0, 0), np.float32)
    return TileScorer(method, 1.0, -np.inf, (), none, empty, empty.ravel(), flat, none, flat, flat)


def combine(linear: Floats, knots: Floats, ratios: Floats) -> Floats:
    """Score of tiles from the linear scores [n, C] of the classes: the largest of them."""
    if not knots.shape[1]:
        return np.asarray(linear.max(axis=1))
    # Where the ratio is flat, the linear score keeps the order.
    return np.asarray(
        np.max(
            [
                np.interp(linear[:, c], knots[c], ratios[c]) + TIE_BREAK * linear[:, c]
                for c in range(len(knots))
            ],
            axis=0,
        )
    )


_ARRAYS = ("priors", "projection", "shift", "weights", "offsets", "knots", "ratios")
_FACTS = tuple(field.name for field in fields(TileScorer) if field.name not in _ARRAYS)


def dump_tile_scorers(scorers: Mapping[tuple[int, int], TileScorer]) -> bytes:
    """The scorers by (repeat, fold) as the bytes of an npz file; equal scorers give equal bytes.

    Member ``facts`` is UTF-8 JSON; ``<repeat>/<fold>/<name>`` are the arrays of a scorer.
    """
    facts = {
        _key(*key): {name: getattr(scorer, name) for name in _FACTS}
        for key, scorer in scorers.items()
    }
    text = json.dumps({"format": FORMAT, "scorers": facts}, sort_keys=True)
    arrays = {
        f"{_key(*key)}/{name}": getattr(scorer, name)
        for key, scorer in scorers.items()
        for name in _ARRAYS
    }
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.frombuffer(text.encode(), np.uint8), **arrays)
    return buffer.getvalue()


def load_tile_scorers(path: Path | IO[bytes]) -> dict[tuple[int, int], TileScorer]:
    """The scorers by (repeat, fold) of a file written by `dump_tile_scorers`.

    Raises
    ------
    ValueError
        If the file is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = json.loads(file["facts"].tobytes())
            if facts["format"] != FORMAT:
                raise ValueError(facts["format"])
            return {
                _parse(key): TileScorer(
                    **{**own, "classes": tuple(own["classes"])},
                    **{name: file[f"{key}/{name}"] for name in _ARRAYS},
                )
                for key, own in facts["scorers"].items()
            }
    except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise ValueError(
            "not a file of tile scorers of this version: materialize the tile scorer again"
        ) from error


def _key(repeat: int, fold: int) -> str:
    return f"{repeat}/{fold}"


def _parse(key: str) -> tuple[int, int]:
    repeat, fold = key.split("/")
    return int(repeat), int(fold)

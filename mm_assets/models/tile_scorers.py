"""Tile scorers of all folds in one file: numpy's npz, read without unpickling anything."""

import io
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO

import numpy as np

from mm_assets.models.pu import TileScorer

FORMAT = "mm_assets tile scorers 1"
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

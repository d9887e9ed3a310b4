"""How many tiles one pass over a GPU takes: the fastest batch that fits, found once, remembered."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mm_assets.encoders.base import CUDA_PASS
from mm_assets.files import publish

if TYPE_CHECKING:
    from mm_assets.encoders.base import Encoder

LARGEST = 512
# A larger batch must be worth its memory.
LEAST_GAIN = 1.03


def with_best_batch(encoder: "Encoder", tile_px: int, memory: Path) -> "Encoder":
    """The encoder with as many tiles a pass as serve it best on its GPU; unchanged on a CPU.

    On a CPU one tile a pass is as fast as any, and tiles share no pass.

    Parameters
    ----------
    tile_px
        Edge of the tiles that will be embedded.
    memory
        JSON file of what was found on this machine; made if missing.

    Raises
    ------
    torch.OutOfMemoryError
        Not even one tile fits.
    """
    import torch

    if encoder.device.type != "cuda":
        return encoder
    device = torch.cuda.get_device_name(encoder.device)
    key = f"{encoder.name} {encoder.dtype} {tile_px}px, {device}, torch {torch.__version__}"
    known = _remembered(memory)
    if key not in known:
        known[key] = find_batch(encoder, tile_px)
        publish(memory, json.dumps(known, indent=1, sort_keys=True).encode())
    return replace(encoder, pass_tiles=known[key])


def find_batch(encoder: "Encoder", tile_px: int) -> int:
    """Tiles a pass: a power of two that fits, is fastest and gives the same bytes.

    The standard pass, or as much of it as fits, sets the bytes; from there the batch is doubled as
    long as it fits, embeds every tile to the same bytes and is faster.
    """
    tiles = np.random.default_rng(0).integers(0, 256, (8, tile_px, tile_px, 3), np.uint8)
    fitting = ((size, _measure(encoder, tiles, size)) for size in _halves(CUDA_PASS))
    best, (embeddings, speed) = next((size, made) for size, made in fitting if made)
    while best < LARGEST:
        made = _measure(encoder, tiles, 2 * best)
        if made is None or made[1] < LEAST_GAIN * speed:
            break
        if not np.array_equal(made[0], np.resize(embeddings[: len(tiles)], made[0].shape)):
            break
        best, speed = 2 * best, made[1]
    return best


def _halves(size: int) -> Iterator[int]:
    while size >= 1:
        yield size
        size //= 2


def _measure(
    encoder: "Encoder", tiles: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.float16], float] | None:
    """Embeddings of one pass of `size` tiles, and tiles a second; None if memory is short."""
    import torch

    trial = replace(encoder, pass_tiles=size)
    batch = np.resize(tiles, (size, *tiles.shape[1:]))
    try:
        trial.encode(batch)
        start = time.perf_counter()
        made = trial.encode(batch)
        seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        if size == 1:
            raise
        torch.cuda.empty_cache()
        return None
    return made, size / seconds


def _remembered(memory: Path) -> dict[str, int]:
    try:
        return dict(json.loads(memory.read_text("utf-8")))
    except (OSError, ValueError):
        return {}

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mm_assets.encoders import batch as batches
from mm_assets.encoders.base import Encoder
from mm_assets.encoders.batch import find_batch, with_best_batch


class Network(torch.nn.Module):
    """Means of the channels; memory for `fits` tiles, seconds a pass and a pair of tiles."""

    def __init__(self, fits: int, each_pass: float, each_pair: float, drift: bool = False) -> None:
        super().__init__()
        self.fits, self.each_pass, self.each_pair = fits, each_pass, each_pair
        self.drift = drift

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        if len(tiles) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        time.sleep(self.each_pass + self.each_pair * len(tiles) ** 2)
        return tiles.mean((2, 3)) + (0.01 * len(tiles) if self.drift else 0)


def encoder(network: Network) -> Encoder:
    return Encoder(
        name="means",
        weights_id="none",
        weights_sha256="",
        dimension=3,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        input_px=None,
        network=network,
        device=torch.device("cpu"),
        dtype=torch.float32,
        pass_tiles=1,
    )


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (Network(fits=256, each_pass=0.05, each_pair=0), 256),
        (Network(fits=20, each_pass=0.05, each_pair=0), 16),
        (Network(fits=9999, each_pass=0, each_pair=0.00002), 64),
        (Network(fits=9999, each_pass=0.05, each_pair=0, drift=True), 64),
    ],
    ids=["as many as fit", "fewer than the standard", "no faster", "other bytes"],
)
def test_the_largest_batch_that_fits_pays_and_changes_nothing(network, found):
    assert find_batch(encoder(network), 16) == found


def test_no_room_for_one_tile_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        find_batch(encoder(Network(fits=0, each_pass=0, each_pair=0)), 16)


def test_any_pass_size_embeds_every_tile_in_order():
    tiles = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), np.uint8)
    one = encoder(Network(fits=9999, each_pass=0, each_pair=0))
    wanted = one.encode(tiles)
    assert wanted.shape == (150, 3)
    for size in (4, 64, 100, 128, 512):
        assert (replace(one, pass_tiles=size).encode(tiles) == wanted).all()


def test_what_was_found_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = replace(encoder(Network(1, 0, 0)), device=torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(batches, "find_batch", lambda encoder, tile_px: 128)
    memory = tmp_path / "cache" / "batches.json"
    assert with_best_batch(on_gpu, 256, memory).pass_tiles == 128
    (key,) = json.loads(memory.read_text())
    assert all(part in key for part in ("means", "float32", "256px", "a card", "torch"))

    monkeypatch.setattr(batches, "find_batch", lambda encoder, tile_px: 1 / 0)
    assert with_best_batch(on_gpu, 256, memory).pass_tiles == 128
    memory.write_text("{ broken")
    with pytest.raises(ZeroDivisionError):
        with_best_batch(on_gpu, 256, memory)
    assert with_best_batch(replace(on_gpu, device=torch.device("cpu")), 256, memory).pass_tiles == 1

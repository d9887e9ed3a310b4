"""How much longer embedding a slide takes than the forward passes it consists of.

    python -m mm_assets_tests.benchmarks.embed [--side 3000] [--repeats 5] [--encoder resnet50]

Whole slides of real texture, from the open file to the tables, divided by the encoder's passes
over the same pictures held in memory: median over repeats, each between two measurements of the
passes. Prints tiles a second and, on a GPU, the share of the card's arithmetic that is reached
(multiplications and additions of the network, against the card's dense bfloat16 rate).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from mm_assets.encoders.base import Encoder
from mm_assets.encoders.batch import with_best_batch
from mm_assets.encoders.registry import load_encoder
from mm_assets.wsi.embed import BATCH, embed_slide
from mm_assets.wsi.slide import Slide, open_slide
from mm_assets.wsi.tiling import TilePlan, plan_tiles
from mm_assets_tests.benchmarks.mosaic import write_mosaic

TILE = 256
# Dense bfloat16 operations a second, from the makers' data sheets.
CARDS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "A10G": 70e12, "L4": 121e12}


def plan_all(slide: Slide) -> TilePlan:
    """Every tile of the slide, none of it glass."""
    mask = np.ones((-(-slide.height // 16), -(-slide.width // 16)), bool)
    return plan_tiles(
        slide.width, slide.height, slide.mpp, mask, 16, slide.mpp, TILE, 16 * TILE, min_tissue=0.5
    )


def pictures(slide: Slide, plan: TilePlan) -> np.ndarray:
    """What the encoder is given for this plan: the pixels matter as little as their order."""
    held: list[np.ndarray] = []

    class Holding:
        dimension, pass_tiles = 1, 1

        def encode(self, batch: np.ndarray) -> np.ndarray:
            held.append(batch.copy())
            return np.zeros((len(batch), 1), np.float16)

    embed_slide(slide, plan, {"t": Holding()}, {"r": Holding()})
    return np.concatenate(held)


def passes(encoder: Encoder, tiles: np.ndarray) -> None:
    size = max(BATCH, encoder.pass_tiles)
    for start in range(0, len(tiles), size):
        encoder.encode(tiles[start : start + size])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def operations_per_tile(encoder: Encoder) -> int:
    one = replace(encoder, pass_tiles=1)
    with FlopCounterMode(display=False) as counter:
        one._forward(np.zeros((1, TILE, TILE, 3), np.uint8))
    return counter.get_total_flops()


def measure(path: Path, encoder: Encoder, repeats: int) -> None:
    with open_slide(path) as slide:
        plan = plan_all(slide)
        tiles = pictures(slide, plan)
        encoder.encode(tiles[: encoder.pass_tiles])
        found, before = [], seconds(lambda: passes(encoder, tiles))
        for _ in range(repeats):
            taken = seconds(lambda: embed_slide(slide, plan, {"t": encoder}, {"r": encoder}))
            after = seconds(lambda: passes(encoder, tiles))
            found.append(taken / ((before + after) / 2))
            before = after
    rate = len(tiles) / taken
    print(
        f"{encoder.name} on {encoder.device}, {encoder.dtype}, passes of {encoder.pass_tiles}: "
        f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f}) of the passes "
        f"alone, {rate:.1f} tiles/s"
    )
    if encoder.device.type == "cuda":
        show_card(encoder, rate)


def show_card(encoder: Encoder, rate: float) -> None:
    import torch

    card = torch.cuda.get_device_name(encoder.device)
    peak = next((value for name, value in CARDS.items() if name in card), None)
    needed = operations_per_tile(encoder)
    share = f"{rate * needed / peak:.1%} of" if peak else "unknown share of"
    print(f"{card}: {needed / 1e9:.1f} GFLOP a tile, {share} the card's arithmetic limit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=3000, help="edge of the slide, pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--encoder", default="resnet50")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_mosaic(Path(folder) / "slide.tiff", arguments.side, TILE)
        encoder = load_encoder(arguments.encoder, "random:0")
        encoder = with_best_batch(encoder, TILE, Path(folder) / "batches.json")
        measure(path, encoder, arguments.repeats)


if __name__ == "__main__":
    main()

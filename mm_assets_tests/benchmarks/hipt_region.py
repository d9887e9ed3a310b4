"""How fast HIPT embeds regions, against the device's arithmetic and against a tile at a time.

    python -m mm_assets_tests.benchmarks.hipt_region [--regions 1] [--repeats 5]

A region of 16 x 16 tiles held in memory goes through ViT-256 in one call and its tokens through
ViT-4K; beside it the same tiles go through ViT-256 one call each, which on a CPU keeps one core
busy, and through its network one by one with all cores on each. The limit is the same number of
multiplications and additions as products of large square matrices, measured on the same device in
the same precision between the repeats, medians. Prints the time a region, the share of the limit
that is reached, and how many times as long the other two take.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from mm_assets.encoders.base import Encoder
from mm_assets.encoders.hipt import RegionEncoder, load_region_encoder, token_grids
from mm_assets.encoders.registry import load_encoder

TILE, SIDE = 256, 16
MATRIX = {"cpu": 2048, "cuda": 8192}


def embed_region(tiles: np.ndarray, encoder: Encoder, regions: RegionEncoder) -> np.ndarray:
    """Regions of SIDE x SIDE tiles, given row by row; float16 (R, 192)."""
    tokens = encoder.encode(tiles)
    number = np.arange(len(tiles))
    place, region = number % SIDE**2, number // SIDE**2
    columns, rows = place % SIDE, region * SIDE + place // SIDE
    places = np.stack([columns, rows], axis=1).astype(np.int32)
    return regions.encode(token_grids(tokens, places, SIDE, np.zeros(384, np.float16))[0])


def embed_one_by_one(tiles: np.ndarray, encoder: Encoder) -> None:
    """All threads share each tile, and nothing else is computed beside it."""
    with torch.inference_mode():
        for tile in tiles:
            encoder.network(encoder.normalized(tile[None])).cpu()


def operations(encoder: Encoder, regions: RegionEncoder) -> float:
    """Of one region."""
    tile = torch.zeros(1, 3, TILE, TILE, device=encoder.device, dtype=encoder.dtype)
    grid = torch.zeros(1, 384, SIDE, SIDE, device=regions.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.network(tile)
    of_tile = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        regions.network(grid)
    return SIDE**2 * of_tile + counter.get_total_flops()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def arithmetic_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of square matrices."""
    edge = MATRIX[device.type]
    left, right = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    return 2 * edge**3 / seconds(lambda: torch.mm(left, right))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--regions", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    choice = parser.parse_args()
    encoder, regions = load_encoder("hipt", "random:0"), load_region_encoder("random:0")
    shape = (choice.regions * SIDE**2, TILE, TILE, 3)
    tiles = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    embed_region(tiles[: SIDE**2], encoder, regions)
    whole, calls, alone, rates = [], [], [], []
    for _ in range(choice.repeats):
        rates.append(arithmetic_rate(encoder.device, encoder.dtype))
        whole.append(seconds(lambda: embed_region(tiles, encoder, regions)) / choice.regions)
        some = tiles[:: len(tiles) // 64]
        each = seconds(lambda some=some: [encoder.encode(tile[None]) for tile in some])
        calls.append(each / len(some) * SIDE**2)
        each = seconds(lambda some=some: embed_one_by_one(some, encoder))
        alone.append(each / len(some) * SIDE**2)
    took = statistics.median(whole)
    limit = operations(encoder, regions) / statistics.median(rates)
    print(f"{encoder.device}, {encoder.dtype}, {torch.get_num_threads()} threads")
    print(f"one pass: {took:.3f} s a region, {SIDE**2 / took:.1f} tiles/s")
    print(f"arithmetic limit: {limit:.3f} s a region; reached {limit / took:.2f}")
    for way, times in {"one call a tile": calls, "all cores on each tile": alone}.items():
        longer = statistics.median(times) / took
        print(f"{way}: {statistics.median(times):.3f} s a region, {longer:.2f} times as long")


if __name__ == "__main__":
    main()

"""How fast tiles are read, against the speed of decoding alone and against other readers.

    python -m mm_assets_tests.benchmarks.read_tiles [--side 12000] [--repeats 7]

Every figure is a speed divided by the pure decode limit of the same run: the same compressed tiles
decoded one after the other into one reused buffer by the same decoder, in as many threads. The
slide is open beforehand. Median over repeats, each between two measurements of the limit; smallest
and largest in brackets.
"Difference" is the largest from OpenSlide's pixels, in grey levels, over a sample of tiles.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide

from mm_assets.wsi.levels import TiledLevel, tiled_levels
from mm_assets.wsi.slide import open_slide
from mm_assets.wsi.tiled import unaligned
from mm_assets_tests.benchmarks.mosaic import write_mosaic

Read = Callable[["Grid", int], Iterable[np.ndarray]]
Reader = Callable[[Path], AbstractContextManager[Read]]
SAMPLE = 200
MEMORY_SIDES = (10_000, 20_000, 40_000)


@dataclass(frozen=True)
class Grid:
    """Squares of `edge` pixels that lie whole inside a slide of `side`, from `origin` on."""

    side: int
    edge: int
    origin: int

    @property
    def starts(self) -> list[int]:
        return list(range(self.origin, self.side - self.edge + 1, self.edge))

    @property
    def corners(self) -> list[tuple[int, int]]:
        return [(x, y) for y in self.starts for x in self.starts]


@contextmanager
def ours(path: Path) -> Iterator[Read]:
    with open_slide(path) as slide:
        assert slide.reader_at(1).startswith("imagecodecs")

        def read(grid: Grid, threads: int) -> Iterable[np.ndarray]:
            wanted = {row: list(range(len(grid.starts))) for row in range(len(grid.starts))}
            edge = grid.edge
            return slide.read_squares(grid.starts, grid.starts, edge, edge, wanted, threads)

        yield read


@contextmanager
def with_openslide(path: Path) -> Iterator[Read]:
    with openslide.OpenSlide(path) as handle:

        def read(grid: Grid, threads: int) -> Iterable[np.ndarray]:
            size = (grid.edge, grid.edge)
            for corner in grid.corners:
                yield np.asarray(handle.read_region(corner, 0, size).convert("RGB"))

        yield read


@contextmanager
def with_tiffslide(path: Path) -> Iterator[Read]:
    import tiffslide

    with tiffslide.TiffSlide(path) as handle:

        def read(grid: Grid, threads: int) -> Iterable[np.ndarray]:
            for corner in grid.corners:
                yield handle.read_region(corner, 0, (grid.edge, grid.edge), as_array=True)

        yield read


@contextmanager
def with_pyvips(path: Path) -> Iterator[Read]:
    import pyvips

    def read(grid: Grid, threads: int) -> Iterable[np.ndarray]:
        region = pyvips.Region.new(pyvips.Image.new_from_file(str(path), access="sequential"))
        shape = (grid.edge, grid.edge, 3)
        for x, y in grid.corners:
            yield np.frombuffer(region.fetch(x, y, *shape[:2]), np.uint8).reshape(shape)

    yield read


@contextmanager
def with_cucim(path: Path) -> Iterator[Read]:
    import cucim

    image = cucim.CuImage(str(path))

    def read(grid: Grid, threads: int) -> Iterable[np.ndarray]:
        for corner in grid.corners:
            yield np.asarray(image.read_region(corner, (grid.edge, grid.edge), 0))

    yield read


PEERS: dict[str, Reader] = {
    "openslide": with_openslide,
    "tiffslide": with_tiffslide,
    "pyvips": with_pyvips,
    "cucim": with_cucim,
}


def decode_limit(path: Path, grid: Grid) -> Callable[[int], float]:
    """Seconds for decoding every compressed tile that the grid needs, by number of threads."""
    level: TiledLevel = tiled_levels(path)[0]
    data = memoryview(path.read_bytes())
    last = (grid.starts[-1] + grid.edge - 1, grid.origin)
    rows, columns = (
        range(last[1] // edge, last[0] // edge + 1)
        for edge in (level.tile_height, level.tile_width)
    )
    tiles = [row * level.columns + column for row in rows for column in columns]
    parts = [data[level.offsets[tile] :][: level.counts[tile]] for tile in tiles]
    shape = (level.tile_height, level.tile_width, 3)

    def decode(own: list[memoryview]) -> None:
        buffer = unaligned(int(np.prod(shape))).reshape(shape)
        for part in own:
            level.decode(part, out=buffer)

    def seconds(threads: int) -> float:
        workers = [
            threading.Thread(target=decode, args=(parts[number::threads],))
            for number in range(threads)
        ]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return time.perf_counter() - start

    return seconds


def timed(read: Read, grid: Grid, threads: int) -> float:
    start = time.perf_counter()
    for _ in read(grid, threads):
        pass
    return time.perf_counter() - start


def ratios(read: Read, path: Path, grid: Grid, threads: int, repeats: int) -> list[float]:
    limit = decode_limit(path, grid)
    found, before = [], limit(threads)
    for _ in range(repeats):
        taken, after = timed(read, grid, threads), limit(threads)
        found.append((before + after) / 2 / taken)
        before = after
    return found


def difference(read: Read, path: Path, grid: Grid) -> int:
    """Largest difference from OpenSlide over the first tiles."""
    with with_openslide(path) as reference:
        pairs = zip(read(grid, 1), reference(grid, 1), range(SAMPLE), strict=False)
        return max(int(np.abs(a.astype(int) - b).max()) for a, b, _ in pairs)


def show(name: str, case: str, threads: int, found: list[float], largest: int) -> None:
    middle, low, high = statistics.median(found), min(found), max(found)
    print(
        f"{case:28} {name:10} {threads} thread{'s' if threads > 1 else ' '} "
        f"{middle:5.2f} ({low:.2f} to {high:.2f})  difference {largest}",
        flush=True,
    )


def compare(folder: Path, side: int, repeats: int) -> None:
    cases = {
        "256 px, aligned": ("jpeg", 256, 256, 0),
        "512 px, aligned": ("jpeg", 512, 512, 0),
        "JPEG 2000, aligned": ("jpeg2000", 256, 256, 0),
        "256 px, shifted by 100": ("jpeg", 256, 256, 100),
        "256 px from tiles of 240": ("jpeg", 240, 256, 0),
        "256 px from 512, shifted": ("jpeg", 512, 256, 100),
        "JPEG 2000, shifted by 100": ("jpeg2000", 256, 256, 100),
    }
    cores = os.cpu_count() or 1
    for case, (codec, tile, edge, origin) in cases.items():
        # JPEG 2000 decodes fifty times slower: a quarter of the edge takes long enough.
        size = side // 4 if codec == "jpeg2000" else side
        path = folder / f"{codec}_{tile}_{size}.{'svs' if codec == 'jpeg2000' else 'tiff'}"
        if not path.exists():
            write_mosaic(path, size, tile, codec)
        grid = Grid(size, edge, origin)
        with ours(path) as read:
            largest = difference(read, path, grid)
            for threads in sorted({1, cores}):
                found = ratios(read, path, grid, threads, repeats)
                show("mm_assets", case, threads, found, largest)
        for name, peer in PEERS.items():
            try:
                with peer(path) as read:
                    largest = difference(read, path, grid)
                    found = ratios(read, path, grid, 1, max(1, repeats // 3))
                    show(name, case, 1, found, largest)
            except Exception as error:
                print(f"{case:28} {name:10} not run: {type(error).__name__}", flush=True)


def peak_memory(folder: Path) -> None:
    """Peak memory of a process that reads all tiles with every core."""
    for side in MEMORY_SIDES:
        path = write_mosaic(folder / f"memory_{side}.tiff", side, 256)
        for origin in (0, 100):
            command = [sys.executable, "-m", __spec__.name, "--peak", str(path), str(origin)]
            peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{side} px, origin {origin}: peak memory {int(peak) / 1024:.0f} MiB", flush=True)
        path.unlink()


def print_peak(path: Path, origin: int) -> None:
    with openslide.OpenSlide(path) as handle:
        grid = Grid(handle.dimensions[0], 256, origin)
    with ours(path) as read:
        for _ in read(grid, os.cpu_count() or 1):
            pass
    # Not ru_maxrss, which begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=12_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak", nargs=2, metavar=("SLIDE", "ORIGIN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(Path(arguments.peak[0]), int(arguments.peak[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments.side, arguments.repeats)
        peak_memory(Path(folder))


if __name__ == "__main__":
    main()

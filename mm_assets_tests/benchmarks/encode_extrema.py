"""Speed and memory of extremum encoding, beside NumPy's own reduction of the same file.

    python -m mm_assets_tests.benchmarks.encode_extrema [--tiles 50000] [--repeats 7]

Memory-mapped float16 embeddings of 1024 dimensions as `tile_embeddings` stores them, one thread.
The reference is one `max` over the tiles of the file's float16 array; another reference converts
blocks to float32 first, as encoding does, because NumPy reduces float16 slowly. Encoding finds
minima, maxima and their coordinates. Ratios are medians of paired runs; 1 is as fast as NumPy.
Memory is what a process holds of its own at the peak (not the pages of the file).

Measured (2 cores, others at work): 1.80 of NumPy over float16 (1.55 to 2.25), .67 over float32 (.52
to .94); 6 MiB at 25,000, 50,000 and 100,000 tiles.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pyarrow as pa

from mm_assets.models.extremum import CHUNK_ROWS, encode_extrema

DIMENSIONS, ACROSS, SIZE = 1024, 300, 256
MEMORY_TILES = (25_000, 50_000, 100_000)


def write_embeddings(path: Path, tiles: int) -> None:
    """Normal values, written a block at a time."""
    random = np.random.default_rng(0)
    with pa.OSFile(str(path), "wb") as sink:
        writer = None
        for start in range(0, tiles, 4096):
            at = np.arange(start, min(start + 4096, tiles), dtype=np.int32)
            values = random.standard_normal((len(at), DIMENSIONS), np.float32).astype(np.float16)
            columns = {
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(values.ravel()), DIMENSIONS
                ),
                "x": pa.array(at % ACROSS * SIZE),
                "y": pa.array(at // ACROSS * SIZE),
                "size0": pa.array(np.full(len(at), SIZE, np.int32)),
            }
            table = pa.table(columns)
            writer = writer or pa.ipc.new_file(sink, table.schema)
            writer.write_table(table)
        writer.close()


def read(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def blocks(table: pa.Table, rows: int | None = None) -> Iterator[np.ndarray]:
    for batch in table.to_batches(max_chunksize=rows):
        yield batch.column("embedding").flatten().to_numpy().reshape(-1, DIMENSIONS)


def encode(table: pa.Table) -> None:
    encode_extrema([table], "tile")


def numpy_max(table: pa.Table) -> None:
    np.max([block.max(axis=0) for block in blocks(table)], axis=0)


def numpy_max_float32(table: pa.Table) -> None:
    blocked = blocks(table, CHUNK_ROWS)
    np.max([block.astype(np.float32).max(axis=0) for block in blocked], axis=0)


def seconds(work: Callable[[pa.Table], None], table: pa.Table) -> float:
    started = time.perf_counter()
    work(table)
    return time.perf_counter() - started


def compare(path: Path, repeats: int) -> None:
    table = read(path)
    encode(table)
    for name, reference in (("float16", numpy_max), ("float32", numpy_max_float32)):
        pairs = [(seconds(reference, table), seconds(encode, table)) for _ in range(repeats)]
        ratios = sorted(theirs / ours for theirs, ours in pairs)
        rate = path.stat().st_size / statistics.median(ours for _, ours in pairs) / 1e9
        print(
            f"numpy max over {name}: encoding reaches {statistics.median(ratios):.2f} of its speed "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}), {rate:.2f} GB/s",
            flush=True,
        )


def peak_memory(path: Path) -> None:
    """MiB of its own that this process gains while encoding, at the most."""
    table = read(path)
    encode(table.slice(0, CHUNK_ROWS))
    before, peak, ended = own_memory(), [0], Event()

    def look() -> None:
        while not ended.wait(0.002):
            peak[0] = max(peak[0], own_memory())

    thread = Thread(target=look)
    thread.start()
    encode(table)
    ended.set()
    thread.join()
    print(f"{(peak[0] - before) / 1024:.0f}")


def own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_memory(arguments.peak)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.arrow"
        write_embeddings(path, arguments.tiles)
        compare(path, arguments.repeats)
        for tiles in MEMORY_TILES:
            write_embeddings(path, tiles)
            command = [sys.executable, "-m", __spec__.name, "--peak", str(path)]
            peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print(f"{tiles} tiles: encoding adds {peak.strip()} MiB at its peak", flush=True)


if __name__ == "__main__":
    main()

"""An epoch of PORPOISE's slide network against what the device allows.

Run as ``python -m mm_assets_tests.benchmarks.porpoise_epoch [bags [tiles]]``. Bags of 5,000 × 1024
float16 embeddings are written as uncompressed Arrow files, as the store does, and memory-mapped.
Two limits are measured in the same run, between the epochs: the time of nothing but the matrix
products that an epoch needs (forward, gradients of weights, and of all inputs but the embeddings,
which need none), on the batches of the epoch and with the same number of threads; and the time of
one copy of all embeddings from the files to the network's memory. The later of the two binds.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mm_assets.models.porpoise.inputs import Inputs
from mm_assets.models.porpoise.networks import GATE, HIDDEN, Porpoise
from mm_assets.models.porpoise.training import Training, TrainingParameters

BAGS, TILES, EMBEDDING = 64, 5_000, 1024
ROUNDS = 3


def write_bags(folder: Path, bags: int, tiles: int) -> dict[str, list[NDArray[np.float16]]]:
    """Bags of noise in Arrow files, memory-mapped."""
    rng = np.random.default_rng(0)
    found = {}
    for number in range(bags):
        values = rng.standard_normal((tiles, EMBEDDING), np.float32).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(values.ravel(), EMBEDDING)
        table = pa.table({"embedding": column})
        path = str(folder / f"{number}.arrow")
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        mapped = pa.ipc.open_file(pa.memory_map(path)).read_all()["embedding"]
        flat = mapped.combine_chunks().flatten().to_numpy()
        found[f"P{number:04d}"] = [flat.reshape(-1, EMBEDDING)]
    return found


def products(tiles: int, device: torch.device) -> Callable[[], None]:
    """The matrix products of one batch, on memory that is there already."""
    new = torch.randn
    inputs, hidden = new(tiles, EMBEDDING, device=device), new(tiles, HIDDEN, device=device)
    gate, entry = new(tiles, GATE, device=device), new(HIDDEN, EMBEDDING, device=device)
    gates = new(GATE, HIDDEN, device=device)
    if device.type == "cuda":
        inputs, hidden, gate, entry, gates = (
            tensor.bfloat16() for tensor in (inputs, hidden, gate, entry, gates)
        )
    results = [
        torch.empty(shape, dtype=inputs.dtype, device=device)
        for shape in ((tiles, HIDDEN), (tiles, GATE), entry.shape, gates.shape, hidden.shape)
    ]

    def run() -> None:
        torch.mm(inputs, entry.T, out=results[0])
        torch.mm(hidden.T, inputs, out=results[2])
        for _ in range(2):
            torch.mm(hidden, gates.T, out=results[1])
            torch.mm(gate.T, hidden, out=results[3])
            torch.mm(gate, gates, out=results[4])

    return run


def flops(tiles: int) -> float:
    """Multiplications and additions of `products`."""
    return 2.0 * tiles * (2 * EMBEDDING * HIDDEN + 3 * 2 * HIDDEN * GATE)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the epoch, both limits and the share reached, best and median of the rounds."""
    numbers = [int(argument) for argument in sys.argv[1:]]
    bags, tiles = [*numbers, *(BAGS, TILES)[len(numbers) :]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"{device.type}: {name}, {torch.get_num_threads()} threads; {bags} bags of {tiles}")
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(write_bags(Path(folder), bags, tiles), pd.DataFrame())
        patients = list(inputs.bags)
        labels = torch.arange(bags, device=device) % 2
        place = dict(zip(patients, labels, strict=True))
        training = Training(
            Porpoise("amil", EMBEDDING, 0, 4),
            inputs,
            lambda logits, group: functional.cross_entropy(
                logits, torch.stack([place[patient] for patient in group]), reduction="none"
            ),
            patients,
            [],
            TrainingParameters(),
        )
        most = TrainingParameters().most_tiles
        a_batch = max(1, most // tiles)
        half = max(1, bags // a_batch // 2)
        multiply = products(a_batch * tiles, device)
        multiply()
        training.learn_epoch(0)
        rows = []
        for epoch in range(1, ROUNDS + 1):
            copied = timed(lambda: [inputs.pack([p], device) for p in patients], device)
            before = timed(lambda: [multiply() for _ in range(half)], device)
            spent = timed(lambda epoch=epoch: training.learn_epoch(epoch), device)
            after = timed(lambda: [multiply() for _ in range(half)], device)
            arithmetic = (before + after) * bags / (2 * half * a_batch)
            rows.append((spent, arithmetic, copied))
            print(f"  epoch {spent:.1f} s, products {arithmetic:.1f} s, copy {copied:.1f} s")
    table = pd.DataFrame(rows, columns=["epoch", "products", "copy"])
    limit = table[["products", "copy"]].max(axis=1)
    binds = "arithmetic" if table["products"].median() > table["copy"].median() else "bandwidth"
    share = limit / table["epoch"]
    work = flops(tiles) * bags / 1e9
    print(
        f"binds: {binds} ({work:.0f} GFLOP an epoch, {work / table['products'].median():.0f} "
        f"GFLOP/s attained by products alone)\n"
        f"share of the limit reached: median {share.median():.2f}, best {share.max():.2f}"
    )


if __name__ == "__main__":
    main()

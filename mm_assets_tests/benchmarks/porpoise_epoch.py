"""An epoch of PORPOISE's slide network against what the device allows.

Run as ``python -m mm_assets_tests.benchmarks.porpoise_epoch [--bags N] [--folder DIR]``. Bags of
5,000 × 1024 float16 embeddings are written as uncompressed Arrow files, as the store does, and
memory-mapped; with DIR they stay there for a second run, and ``--rounds 0`` only writes them.

Two limits are measured in the same run, before and after the epoch: the time of nothing but the
matrix products that an epoch needs (forward, gradients of weights, and of all inputs but the
embeddings, which need none), on the batches of the epoch and with the same number of threads; and
the time of one copy of the embeddings from the files to the network's memory. Each is measured on
``--sample`` of the bags and scaled up. The later of the two binds.
"""

import argparse
import os
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

TILES, EMBEDDING = 5_000, 1024
WARMING = 8  # bags of a short epoch that is not measured


def write_bags(folder: Path, bags: int, tiles: int) -> dict[str, list[NDArray[np.float16]]]:
    """Bags of noise in Arrow files, memory-mapped; files that are there are kept."""
    found = {}
    for number in range(bags):
        path = folder / f"{number}_{tiles}.arrow"
        if not path.exists():
            _write_bag(path, np.random.default_rng(number), tiles)
        mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["embedding"]
        flat = mapped.combine_chunks().flatten().to_numpy()
        found[f"P{number:04d}"] = [flat.reshape(-1, EMBEDDING)]
    return found


def _write_bag(path: Path, rng: np.random.Generator, tiles: int) -> None:
    values = rng.standard_normal((tiles, EMBEDDING), np.float32).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(values.ravel(), EMBEDDING)
    table, draft = pa.table({"embedding": column}), path.with_suffix(".tmp")
    with pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    draft.rename(path)


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


def make_training(inputs: Inputs, patients: list[str], device: torch.device) -> Training:
    """The slide network on some of the bags, two classes in turn."""
    place = {patient: number % 2 for number, patient in enumerate(patients)}
    return Training(
        Porpoise("amil", EMBEDDING, 0, 4),
        inputs,
        lambda logits, group: functional.cross_entropy(
            logits,
            torch.tensor([place[patient] for patient in group], device=device),
            reduction="none",
        ),
        patients,
        [],
        TrainingParameters(),
    )


def measure(
    inputs: Inputs, tiles: int, rounds: int, sample: float, device: torch.device
) -> pd.DataFrame:
    """Seconds of every round: columns epoch, products, copy."""
    patients = list(inputs.bags)
    sampled = patients[: max(1, round(sample * len(patients)))]
    a_batch = max(1, TrainingParameters().most_tiles // tiles)
    batches = max(1, len(sampled) // a_batch)
    multiply = products(a_batch * tiles, device)
    multiply()
    make_training(inputs, patients[:WARMING], device).learn_epoch(0)
    training, rows = make_training(inputs, patients, device), []

    def limits() -> tuple[float, float]:
        copied = timed(lambda: [inputs.pack([p], device) for p in sampled], device)
        multiplied = timed(lambda: [multiply() for _ in range(batches)], device)
        return (
            multiplied * len(patients) / (batches * a_batch),
            copied * len(patients) / len(sampled),
        )

    for epoch in range(rounds):
        before = limits()
        spent = timed(lambda epoch=epoch: training.learn_epoch(epoch), device)
        arithmetic, copy = np.mean([before, limits()], axis=0)
        rows.append((spent, arithmetic, copy))
        print(f"  epoch {spent:.1f} s, products {arithmetic:.1f} s, copy {copy:.1f} s", flush=True)
    return pd.DataFrame(rows, columns=["epoch", "products", "copy"])


def main() -> None:
    """Print the epoch, both limits and the share reached, best and median of the rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bags", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=TILES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=float, default=0.5)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"{device.type}: {name}, {torch.get_num_threads()} threads; {given.bags} bags")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        inputs = Inputs(write_bags(folder, given.bags, given.tiles), pd.DataFrame())
        if not given.rounds:
            return
        table = measure(inputs, given.tiles, given.rounds, given.sample, device)
    limit = table[["products", "copy"]].max(axis=1)
    binds = "arithmetic" if table["products"].median() > table["copy"].median() else "bandwidth"
    share = limit / table["epoch"]
    work = flops(given.tiles) * given.bags / 1e9
    print(
        f"binds: {binds} ({work:.0f} GFLOP an epoch, {work / table['products'].median():.0f} "
        f"GFLOP/s attained by products alone)\n"
        f"share of the limit reached: median {share.median():.2f}, best {share.max():.2f}"
    )


if __name__ == "__main__":
    main()

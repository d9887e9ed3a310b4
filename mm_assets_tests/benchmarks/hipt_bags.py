"""State and training time of HIPT's regions beside bags of ResNet50 tiles.

    python -m mm_assets_tests.benchmarks.hipt_bags [--patients 16] [--regions 20] [--filled 0.6]

Random embeddings in memory, float16 as in the store: of every patient so many regions of 16 x 16
tiles, of which a share holds tissue, once as 192 numbers a region and once as 1,024 a tile. The
same network of gated attention (`porpoise_amil_T` and `hipt_T` differ in nothing else) is trained
for some epochs on each, in turns, after one that is not counted. Prints bytes a patient, those of
the tiles' 384-d tokens which the regions are made of and which stay in the store too, parameters of
the network, and the median time of an epoch.
"""

import argparse
import statistics
import time

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from mm_assets.models.porpoise.inputs import Inputs
from mm_assets.models.porpoise.networks import Porpoise
from mm_assets.models.porpoise.training import Training, TrainingParameters

TILES_A_REGION = 16**2
WIDTHS = {"HIPT regions": 192, "ResNet50 tiles": 1024}
TOKEN_BYTES = 2 * 384
EPOCHS = 5


def training(bag: int, width: int, patients: int) -> tuple[Training, int]:
    """A training on bags of noise, and the parameters of its network."""
    rng = np.random.default_rng(0)
    bags = {
        f"P{number}": [rng.standard_normal((bag, width), np.float32).astype(np.float16)]
        for number in range(patients)
    }
    network = Porpoise("amil", width, 0, 4)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    label = {patient: torch.tensor(n % 2, device=device) for n, patient in enumerate(bags)}
    made = Training(
        network,
        Inputs(bags, pd.DataFrame()),
        lambda logits, group: functional.cross_entropy(
            logits, torch.stack([label[patient] for patient in group]), reduction="none"
        ),
        list(bags),
        [],
        TrainingParameters(),
    )
    return made, sum(tensor.numel() for tensor in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=16)
    parser.add_argument("--regions", type=int, default=20)
    parser.add_argument("--filled", type=float, default=0.6)
    choice = parser.parse_args()
    tiles = round(choice.regions * TILES_A_REGION * choice.filled)
    bags = dict(zip(WIDTHS, (choice.regions, tiles), strict=True))
    made = {kind: training(bags[kind], WIDTHS[kind], choice.patients) for kind in WIDTHS}
    times: dict[str, list[float]] = {kind: [] for kind in WIDTHS}
    for epoch in range(EPOCHS + 1):
        for kind, (network, _) in made.items():
            start = time.perf_counter()
            network.learn_epoch(epoch)
            times[kind].append(time.perf_counter() - start)
    print(f"{choice.patients} patients, {torch.get_num_threads()} threads")
    for kind, (_, parameters) in made.items():
        size, epoch = 2 * bags[kind] * WIDTHS[kind], statistics.median(times[kind][1:])
        print(
            f"{kind}: {bags[kind]} x {WIDTHS[kind]}, {size / 1024:,.0f} KiB a patient, "
            f"{parameters:,} parameters, {epoch:.3f} s an epoch"
        )
    print(f"tokens behind the regions: {tiles * TOKEN_BYTES / 1024:,.0f} KiB a patient")


if __name__ == "__main__":
    main()

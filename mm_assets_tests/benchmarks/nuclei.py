"""Time and memory of finding 100,000 nuclei on a slide and joining them to a graph.

    python -m mm_assets_tests.benchmarks.nuclei [--sides 4000 8000 12000]

Slides of painted tissue with 3,000 nuclei a square millimetre, every tile searched. The encoder
stands in for a network: it projects the mean colours of a crop to 1024 numbers, so that the time
is that of reading, segmentation and
measurement, and the memory that of a table with embeddings as wide as ResNet50's. The graph is
joined again from the stored centroids, alone, for its time. Memory is the peak of a process that
does nothing else; another line gives what such a process needs before it starts.

Measured (2 cores, other work on both): 103,032 nuclei on 12,400 px: 132 ms a tile, graph 2.3 s,
1.43 GiB at the peak, of which .68 before it starts; 10,952 nuclei on 4,000 px: .3 s and .83 GiB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mm_assets.nuclei.graph import neighbour_edges
from mm_assets.nuclei.search import find_nuclei
from mm_assets.wsi.slide import open_slide
from mm_assets_tests.benchmarks.embed import plan_all
from mm_assets_tests.benchmarks.mosaic import write_mosaic

DIMENSION = 1024
EDGE, NUCLEI = 2048, 3150


class Projection:
    """Mean colours of a crop, projected."""

    name, dimension, pass_tiles = "projection", DIMENSION, 1
    weights = np.random.default_rng(0).normal(size=(3, DIMENSION)).astype(np.float32)

    def encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float16]:
        return (crops.mean(axis=(1, 2), dtype=np.float32) @ self.weights / 255).astype(np.float16)


def cellular() -> NDArray[np.uint8]:
    """Pink with violet ellipses of 5 to 9 um, about a square millimetre at 0.5 um a pixel."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 6, (EDGE, EDGE, 3)).astype(np.float32)
    image = np.full((EDGE, EDGE, 3), (226, 168, 200), np.float32)
    for _ in range(NUCLEI):
        centre = random.integers(0, EDGE, 2).tolist()
        axes = random.integers(5, 10, 2).tolist()
        cv2.ellipse(image, centre, axes, random.uniform(0, 180), 0, 360, (96, 66, 146), -1)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.8) + noise, 0, 255).astype(np.uint8)


def measure(path: Path) -> None:
    """Print what one slide takes."""
    before = peak()
    with open_slide(path, 0.5) as slide:
        plan = plan_all(slide)
        tissue = np.ones((-(-slide.height // 16), -(-slide.width // 16)), bool)
        started = time.perf_counter()
        nodes, edges, area = find_nuclei(slide, plan, tissue, 16.0, Projection(), plan.tiles)
        searching = time.perf_counter() - started
    centroids = nodes.select(["centroid_x", "centroid_y"]).to_pandas().to_numpy(float) * slide.mpp
    started = time.perf_counter()
    neighbour_edges(centroids)
    joining = time.perf_counter() - started
    print(
        f"{slide.width} px, {area:.1f} mm2: {nodes.num_rows} nuclei, {edges.num_rows} edges; "
        f"search {searching:.0f} s ({1000 * searching / len(plan.tiles):.0f} ms a tile), "
        f"graph {joining:.2f} s; memory {before:.2f} GiB before, {peak():.2f} GiB at the peak",
        flush=True,
    )


def peak() -> float:
    """Peak memory of this process, GiB."""
    # Not ru_maxrss, which begins with the peak of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[4000, 8000, 12_000])
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.slide:
        measure(arguments.slide)
        return
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        for side in arguments.sides:
            path = write_mosaic(Path(folder) / f"{side}.tiff", side, 256, image=cellular())
            command = [sys.executable, "-m", __spec__.name, "--slide", str(path)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

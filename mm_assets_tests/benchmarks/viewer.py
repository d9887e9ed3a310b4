"""How long the viewer takes to answer with a tile, on a 40,000 px slide of real texture.

    python -m mm_assets_tests.benchmarks.viewer [--side 40000] [--tiles 40]

Over HTTP from `mm view`, one request after the other, random tiles of every zoom level: the first
time each is asked for (cold), and again (warm, from the viewer's memory). The slide has one level
only, the worst case for zooming out; a pyramid's coarse tiles cost what its fine ones cost. The
first tile of all also opens the slide, and the first coarse one makes the overview: both are
printed apart.

Measured (2 cores, other work on both): cold median 16 ms, 95 % within 232 ms over all levels; the
slowest level, one eighth, 226 ms; warm 1 ms; the overview of the single-level slide 8.6 s, once.
"""

import argparse
import logging
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mm_assets.assets.stage import Workspace
from mm_assets.cohort.loading import load_config
from mm_assets.resources.store import ArtefactStore
from mm_assets.resources.tracking import Tracking
from mm_assets.viewer.deepzoom import TILE_PX, Geometry
from mm_assets_tests.benchmarks.mosaic import write_mosaic
from mm_assets_tests.cohorts import make_cohort, slide_name
from mm_assets_tests.viewer.conftest import SLIDE, put_evidence
from mm_assets_tests.viewer.server import ask, running_viewer

LOWEST = 9


def tile_paths(side: int, count: int) -> list[list[str]]:
    """Random tiles of each level from one that fits a screen to the finest."""
    geometry, chance = Geometry(side, side), random.Random(0)
    levels = []
    for level in range(LOWEST, geometry.highest + 1):
        across = -(-geometry.size(level)[0] // TILE_PX)
        places = [(x, y) for x in range(across) for y in range(across)]
        chosen = chance.sample(places, min(count, len(places)))
        levels.append([f"/api/tiny/slides/{SLIDE}/tiles/{level}/{x}_{y}.jpg" for x, y in chosen])
    return levels


def answer_times(port: int, paths: Sequence[str]) -> list[float]:
    """Milliseconds until the whole answer is there."""
    times = []
    for path in paths:
        started = time.perf_counter()
        status, content, _ = ask(port, path)
        times.append(1000 * (time.perf_counter() - started))
        assert status == 200, content
    return times


def summary(times: Sequence[float]) -> str:
    ordered = sorted(times)
    late = ordered[int(0.95 * len(ordered))]
    return f"median {statistics.median(ordered):.0f} ms, 95 % {late:.0f} ms ({len(ordered)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--tiles", type=int, default=40, help="Of each level.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        yaml = make_cohort(Path(folder) / "cohorts" / "tiny", patients=4, slides=1)
        write_mosaic(yaml.parent / "slides" / slide_name("P000"), arguments.side, 256)
        home = Path(folder) / "mm"
        store = ArtefactStore(uri=str(home / "store"))
        put_evidence(Workspace(load_config(yaml), store, Tracking(), logging.getLogger()))
        levels = tile_paths(arguments.side, arguments.tiles)
        with running_viewer(home, yaml) as port:
            opening = answer_times(port, levels[-1][:1]) + answer_times(port, levels[0][:1])
            print("first tile {:.0f} ms, first coarse tile {:.0f} ms".format(*opening), flush=True)
            every = []
            for number, paths in enumerate(levels):
                cold = answer_times(port, paths[1:])
                every += cold
                warm = answer_times(port, paths[1:])
                print(
                    f"level {LOWEST + number}: cold {summary(cold)}; warm {summary(warm)}",
                    flush=True,
                )
            print(f"all levels, cold: {summary(every)}")


if __name__ == "__main__":
    main()

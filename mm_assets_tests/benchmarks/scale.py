"""What a slide costs beside the work on its pixels, and whether that stays so as cohorts grow.

    python -m mm_assets_tests.benchmarks.scale --counts 100 300 1000

Small slides go through `mm materialize` with Dagster's storage on a PostgreSQL server of its own.
Overhead is the CPU time of the command and its children less what the stages' workers used
themselves; the server's CPU time is counted apart. Start-up and loading of libraries are part of
the overhead.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm_assets import cli
from mm_assets_tests.cohorts import paint_slide, patient_ids, slide_name, write_tables, write_yaml
from mm_assets_tests.daemon import environment
from mm_assets_tests.postgres import Postgres, running_postgres

if TYPE_CHECKING:
    from mm_assets.assets.stage import Job, Produced, SlideWorker, Workspace

STAGES = {
    "slide": ("slide",),
    "tissue": ("tissue",),
    "tile_embeddings": ("tile_embeddings", "region_embeddings"),
}
IMAGING = {"mpp": 1.0, "weights": "random:0"}  # one tile and one region of a small slide
DIFFERENT = 8
LEDGER = "MM_SCALE_LEDGER"
# Runs a command and waits for what it leaves behind: the CPU time of processes that decode slides
# reaches who waits for them, and the command itself does not.
WAIT_FOR_ALL = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
code = subprocess.call(sys.argv[1:])
try:
    while True:
        os.wait()
except ChildProcessError:
    sys.exit(code)
"""
NAME = "mm_assets_tests.benchmarks.scale"


@dataclass(frozen=True)
class Cost:
    """CPU and wall seconds of one cohort.

    Attributes
    ----------
    assets
        Assets of a slide.
    command
        CPU of `mm materialize`, children included.
    again
        CPU of the same command when there is nothing left to do.
    science
        CPU of the stages' workers.
    server
        CPU of PostgreSQL during the first command.
    wall
        Wall time of the first command.
    """

    slides: int
    assets: int
    command: float
    again: float
    science: float
    server: float
    wall: float

    @property
    def overhead_ms(self) -> float:
        """Orchestration, milliseconds of CPU a slide and asset."""
        return 1000 * (self.command - self.science) / (self.slides * self.assets)

    @property
    def server_ms(self) -> float:
        """PostgreSQL, milliseconds of CPU a slide and asset."""
        return 1000 * self.server / (self.slides * self.assets)


def make_small_cohort(folder: Path, slides: int) -> Path:
    """A cohort of copies of a few tiny slides; its YAML."""
    (folder / "slides").mkdir(parents=True)
    patients = patient_ids(slides)
    write_tables(folder, patients)
    for number, patient in enumerate(patients):
        target = folder / "slides" / slide_name(patient)
        if number < DIFFERENT:
            paint_slide(target, number)
        else:
            shutil.copyfile(folder / "slides" / slide_name(patients[number % DIFFERENT]), target)
    return write_yaml(folder, "small", omics=None, imaging=IMAGING)


def measure(slides: int, stages: Sequence[str]) -> Cost:
    """Materialize a new cohort of so many slides."""
    with tempfile.TemporaryDirectory() as name, running_postgres() as postgres:
        folder, home = Path(name), Path(name) / "mm"
        yaml = make_small_cohort(folder / "cohorts" / "small", slides)
        postgres.configure(home / "dagster")
        variables = environment(home, yaml.parent.parent)
        ledger = folder / "ledger"
        variables[LEDGER] = str(ledger)
        command = [sys.executable, "-m", NAME, "materialize", str(yaml)]
        command += [option for stage in stages for option in ("--select", stage)]
        start, before = time.monotonic(), postgres.cpu_seconds()
        first = _cpu_seconds(command, variables)
        wall, server = time.monotonic() - start, postgres.cpu_seconds() - before
        science = sum(map(float, ledger.read_text().split()))
        again = _cpu_seconds(command, variables)
        assert_whole(postgres, slides, stages)
    assets = sum(len(STAGES[stage]) for stage in stages)
    return Cost(slides, assets, first, again, science, server, wall)


def count_work(ledger: Path) -> None:
    """Let every stage's worker note its CPU seconds in a file at its end."""
    from mm_assets.assets.stage import SlideStage

    make = SlideStage.__init__

    def counting(self: SlideStage, *, worker: Any, **fields: Any) -> None:
        make(self, worker=partial(_counted, ledger, worker), **fields)

    SlideStage.__init__ = counting  # type: ignore[method-assign]


@contextmanager
def _counted(
    ledger: Path,
    worker: "Callable[[Workspace], AbstractContextManager[SlideWorker]]",
    space: "Workspace",
) -> "Iterator[SlideWorker]":
    """The worker; importable by name, because some run in a process of their own."""
    from mm_assets.assets.stage import TwoSteps

    spent: list[float] = []

    def timed(work: Callable[[], Any], clock: Callable[[], float]) -> Any:
        start = clock()
        try:
            return work()
        finally:
            spent.append(clock() - start)

    with worker(space) as inner:
        if isinstance(inner, TwoSteps):
            # Of the whole process, for decoding and encoding have threads of their own; it holds
            # the preparation of the next slide too.
            two = inner

            @contextmanager
            def prepare(job: "Job") -> "Iterator[Callable[[], Mapping[str, Produced]]]":
                with two.prepare(job) as compute:
                    yield lambda: timed(compute, time.process_time)

            yield TwoSteps(prepare)
        else:
            one = inner
            yield lambda job: timed(lambda: one(job), time.thread_time)
    with ledger.open("a") as lines:
        lines.write(f"{sum(spent)}\n")


def growth(costs: Sequence[Cost]) -> float:
    """Orchestration of a slide in the last cohort over that in the first; 1 is linear.

    PostgreSQL counts, what does not depend on the number of slides (an idle run) does not.
    """
    each = [(c.command - c.science - c.again + c.server) / (c.slides * c.assets) for c in costs]
    return each[-1] / each[0]


def _cpu_seconds(command: Sequence[str], variables: dict[str, str]) -> float:
    """Run a command; CPU time of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", WAIT_FOR_ALL, *command],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def assert_whole(postgres: Postgres, slides: int, stages: Sequence[str]) -> None:
    """Every asset of every slide has its one event in the database."""
    import psycopg2

    connection = psycopg2.connect(
        host="127.0.0.1", port=postgres.port, user="dagster", dbname="dagster"
    )
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT asset_key, count(*), count(DISTINCT partition) FROM event_logs WHERE "
            "dagster_event_type = 'ASSET_MATERIALIZATION' AND partition IS NOT NULL "
            "GROUP BY asset_key"
        )
        found = {json.loads(key)[-1]: counts for key, *counts in cursor.fetchall()}
    connection.close()
    expected = {asset: [slides, slides] for stage in stages for asset in STAGES[stage]}
    if found != expected:
        raise RuntimeError(f"events in the database: {found}, not {expected}")


def main() -> None:
    """Print a line for each size, and how the cost grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    chosen = parser.parse_args()
    costs = []
    for count in sorted(chosen.counts):
        costs.append(measure(count, chosen.stages))
        cost = costs[-1]
        print(
            f"{cost.slides} slides x {cost.assets} assets: overhead {cost.overhead_ms:.1f} ms, "
            f"PostgreSQL {cost.server_ms:.1f} ms CPU a slide and asset; wall {cost.wall:.0f} s; "
            f"{json.dumps({k: round(v, 2) for k, v in asdict(cost).items()})}",
            flush=True,
        )
    print(f"growth of orchestration a slide, smallest to largest: {growth(costs):.2f}")


# Here, for the module is also what a process started for the work imports first.
if LEDGER in os.environ:
    count_work(Path(os.environ[LEDGER]))

if __name__ == "__main__":
    if LEDGER in os.environ:
        cli.main()
    else:
        main()

"""What a slide costs beside the work on its pixels, and whether that stays so as cohorts grow.

    python -m mm_assets_tests.benchmarks.scale --counts 100 300 1000

Small slides go through `mm materialize` with Dagster's storage on a PostgreSQL server of its own.
Overhead is the CPU time of the command and its children less that of the same work on the same
slides in a bare loop; the server's CPU time is counted apart. Start-up and loading of libraries
are part of the overhead.
"""

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from mm_assets_tests.cohorts import paint_slide, patient_ids, slide_name, write_tables, write_yaml
from mm_assets_tests.daemon import environment
from mm_assets_tests.postgres import Postgres, running_postgres

STAGES = {
    "slide": ("slide",),
    "tissue": ("tissue",),
    "tile_embeddings": ("tile_embeddings", "region_embeddings"),
}
IMAGING = {"mpp": 1.0, "weights": "random:0"}  # one tile and one region of a small slide
DIFFERENT = 8


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
        CPU of the work itself.
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
        command = [sys.executable, "-m", "mm_assets", "materialize", str(yaml)]
        command += [option for stage in stages for option in ("--select", stage)]
        start, before = time.monotonic(), postgres.cpu_seconds()
        first = _cpu_seconds(command, variables)
        wall, server = time.monotonic() - start, postgres.cpu_seconds() - before
        again = _cpu_seconds(command, variables)
        assert_whole(postgres, slides, stages)
        bare = [sys.executable, "-m", __spec__.name, "--bare", str(yaml), "--stages", *stages]
        elsewhere = {**variables, "MM_HOME": str(folder / "bare")}
        science = float(subprocess.check_output(bare, env=elsewhere, text=True))
    assets = sum(len(STAGES[stage]) for stage in stages)
    return Cost(slides, assets, first, again, science, server, wall)


def bare_loop(yaml: str, stages: Sequence[str]) -> float:
    """CPU seconds of the stages' work on every slide, without receipts, runs and events."""
    from mm_assets.assets.graph import cohort_stages
    from mm_assets.assets.slides import manifest_rows
    from mm_assets.assets.stage import Job, SlideStage, TwoSteps
    from mm_assets.cli import workspace
    from mm_assets.resources.store import Provenance

    space = workspace(yaml)
    slides = list(manifest_rows(space.config))
    spent = 0.0
    for stage in cohort_stages(space.config):
        if stage.name not in stages or not isinstance(stage, SlideStage):
            continue
        with stage.worker(space) as worker:
            start = time.process_time()
            for slide in slides:
                provenance = {asset: Provenance(asset, slide, "1") for asset in stage.outputs}
                job = Job(space, slide, provenance, {}, "")
                with ExitStack() as stack:
                    if isinstance(worker, TwoSteps):
                        stack.enter_context(worker.prepare(job))()
                    else:
                        worker(job)
            spent += time.process_time() - start
    return spent


def growth(costs: Sequence[Cost]) -> float:
    """CPU of a slide that is added to the largest cohort over one added to the smallest.

    Start-up costs cancel out; 1 is linear. Three sizes at least.
    """
    added = [(b.command - a.command) / (b.slides - a.slides) for a, b in pairwise(costs)]
    return added[-1] / added[0]


def _cpu_seconds(command: Sequence[str], variables: dict[str, str]) -> float:
    """Run a command; CPU time of it and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
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
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.bare:
        logging.disable()
        print(bare_loop(chosen.bare, chosen.stages))
        return
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
    if len(costs) > 2:
        print(f"an added slide costs {growth(costs):.2f} times as much in the largest cohort")


if __name__ == "__main__":
    main()

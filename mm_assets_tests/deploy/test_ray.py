"""Runs on a Ray cluster whose machines share PostgreSQL and S3, and no folder."""

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import boto3
import dagster as dg
import pytest

from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.stage import SlideStage, Workspace
from mm_assets.cli import workspace
from mm_assets.resources.home import dagster_instance
from mm_assets.resources.receipts import Receipts
from mm_assets.resources.store import COHORT, ArtefactStore
from mm_assets_tests.cohorts import Cohort, make_cohort, patient_ids
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.daemon import running_daemon, wait_for
from mm_assets_tests.mlflow_server import LOGIN, running_mlflow
from mm_assets_tests.postgres import find_programs, running_postgres
from mm_assets_tests.ray_cluster import RayCluster, running_ray

SUBTYPE = {"name": "subtype", "kind": "classification", "column": "subtype"}
CLASSES = {"classes": ["IDC", "ILC"]}


@dataclass
class Site:
    """A deployment: the control plane's folder and the cluster."""

    home: Path
    cohorts: Path
    cluster: RayCluster
    shared: dict[str, str]

    def start_node(self, name: str, gpus: int) -> None:
        """A worker with a copy of the cohorts' tables and a home of its own."""
        folder = self.cluster.folder / name
        for part in ("home", "tmp", "dagster"):
            (folder / part).mkdir(parents=True)
        shutil.copytree(self.cohorts, folder / "cohorts")
        own = {
            "MM_HOME": str(folder / "home"),
            "HOME": str(folder / "home"),
            "MM_COHORTS": str(folder / "cohorts"),
            "DAGSTER_HOME": str(folder / "dagster"),
            "TMPDIR": str(folder / "tmp"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.cluster.start_node(name, 4, gpus, {**self.shared, **own})


@pytest.fixture
def site(
    home: Path, tmp_path: Path, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], Site]]:
    """Starts a deployment for the cohort of a YAML; its slides move to S3."""
    if find_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    prefix = uuid.uuid4().hex
    with ExitStack() as stack:

        def start(yaml: Path) -> Site:
            _upload(yaml, prefix)
            database = stack.enter_context(running_postgres())
            cluster = stack.enter_context(running_ray(tmp_path))
            shared = {
                **LOGIN,
                "MM_ENGINE": "ray",
                "MM_RAY_ADDRESS": cluster.address,
                "MM_STORE": f"s3://artefacts/{prefix}/store",
                "MLFLOW_TRACKING_URI": stack.enter_context(
                    running_mlflow(f"s3://artefacts/{prefix}/models")
                ),
                "DAGSTER_PG_HOST": "127.0.0.1",
                "DAGSTER_PG_PORT": str(database.port),
                "DAGSTER_PG_DATABASE": "dagster",
                "DAGSTER_PG_USERNAME": "dagster",
                "DAGSTER_PG_PASSWORD": "any",
                "MM_LOG_BUCKET": "artefacts",
            }
            for name, value in shared.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("MM_COHORTS", str(yaml.parents[1]))
            settings = ("dagster.yaml", "ray/run_launcher.yaml")
            text = "".join((REPOSITORY / "deploy" / name).read_text() for name in settings)
            (home / "dagster").mkdir()
            (home / "dagster" / "dagster.yaml").write_text(text)
            return Site(home, yaml.parents[1], cluster, shared)

        yield start


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_a_cohort_runs_to_the_report_while_machines_are_lost(
    site: Callable[[Path], Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = make_cohort(
        tmp_path / "cohorts" / "tiny",
        patients=40,
        omics=None,
        tasks=[SUBTYPE | CLASSES],
        slides_config={"root": "${SLIDES}", "patient_pattern": r"^(P\d+)"},
        refresh={"cron": "*/4 * * * *", "sensor": True, "sensor_seconds": 5},
        compute={"tile_embeddings": {"chunk": 10}},
    )
    monkeypatch.setenv("SLIDES", str(yaml.parent / "slides"))
    one_machine = _embedded_alone(yaml, tmp_path / "alone")
    deployed = site(yaml)
    cluster, space = deployed.cluster, workspace(str(yaml))
    stages = cohort_stages(space.config)
    gpu = {f"tiny__{s.name}" for s in stages if s.compute_for(space.config).gpu}
    training = {f"tiny__{s.name}" for s in stages if not isinstance(s, SlideStage)} - gpu

    slides = {f"{patient}-S1" for patient in patient_ids(40)}
    whole = {s.name: slides if isinstance(s, SlideStage) else {COHORT} for s in stages}

    def running(ops: set[str], node: str) -> bool:
        return any(
            job.status == "RUNNING"
            and (job.metadata or {}).get("dagster/op") in ops
            and cluster.node_of(job) == node
            for job in cluster.jobs()
        )

    deployed.start_node("cpu", 0)
    deployed.start_node("gpu", 1)
    with dagster_instance() as instance, running_daemon(deployed.home, deployed.cohorts) as log:
        wait_for("embedding", lambda: running({"tiny__tile_embeddings"}, "gpu"), 400, log)
        wait_for("a slide", lambda: _done(space, "tile_embeddings"), 200, log)
        cluster.kill("gpu")
        deployed.start_node("gpu-2", 1)
        wait_for("a model", lambda: running(training, "cpu"), 900, log)
        cluster.kill("cpu")
        deployed.start_node("cpu-2", 0)
        # Refreshes that began before all slides were there are followed by one that has them all.
        # A champion of the few may read nothing of what is made after it: that, too, is evidence's
        # last word.
        wait_for("the end", lambda: all(_settled(space, s) == whole[s] for s in whole), 1800, log)
        failed = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[FAILED]))]
    nodes = {
        cluster.node_of(job)
        for job in cluster.jobs()
        if (job.metadata or {}).get("dagster/op") in gpu
    }
    assert nodes - {""} == {"gpu", "gpu-2"}
    lost = [job for job in cluster.jobs() if "node has died" in (job.message or "")]
    # Steps that waited for the node are lost with it, too.
    assert {cluster.node_of(job) for job in lost} - {""} == {"gpu", "cpu"}
    print(f"{len(cluster.jobs())} jobs, {len(lost)} lost, {len(failed)} runs begun again")
    receipts = space.receipts.read_all("tiny", "tile_embeddings")
    assert {slide: receipt.digest for slide, receipt in receipts.items()} == one_machine


FAILED = dg.DagsterRunStatus.FAILURE


def _embedded_alone(yaml: Path, home: Path) -> dict[str, str]:
    """Slide -> digest of its embeddings, made on one machine with a store of its own."""
    stages = ("slide", "tissue", "tile_embeddings")
    select = [part for stage in stages for part in ("--select", stage)]
    Cohort(yaml, home).mm("materialize", str(yaml), *select)
    receipts = Receipts(ArtefactStore(uri=str(home / "store"))).read_all("tiny", "tile_embeddings")
    return {slide: receipt.digest for slide, receipt in receipts.items()}


def _done(space: Workspace, stage: str) -> set[str]:
    receipts = space.receipts.read_all("tiny", stage)
    return {name for name, receipt in receipts.items() if receipt.state == "done"}


def _settled(space: Workspace, stage: str) -> set[str]:
    if stage.startswith("evidence"):
        return set(space.receipts.read_all("tiny", stage))
    return _done(space, stage)


def _upload(yaml: Path, prefix: str) -> None:
    client, folder = boto3.client("s3"), yaml.parent / "slides"
    for slide in sorted(folder.iterdir()):
        client.upload_file(str(slide), "artefacts", f"{prefix}/slides/{slide.name}")
    shutil.rmtree(folder)
    text = yaml.read_text().replace("${SLIDES}", f"s3://artefacts/{prefix}/slides")
    yaml.write_text(text)

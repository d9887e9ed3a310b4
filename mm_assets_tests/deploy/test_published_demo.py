"""The synthetic cohort on S3, as a deployed stage gets it: put, found, worked on, shown, removed."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from deploy.local.sagemaker.server import SageMaker
from mm_assets.cohort.problems import CohortError
from mm_assets.synthetic.cohort import create_demo_cohort
from mm_assets.synthetic.publication import publish_demo_cohort
from mm_assets_tests.daemon import free_port, wait_for
from mm_assets_tests.s3_proxy import forbidding_s3
from mm_assets_tests.sagemaker import keys

PATIENTS = 24
SLIDE = "DEMO-0003-S1"
TABLES = {"attainable.json", "clinical.csv", "defs.yaml", "demo.json", "slides.csv"}
Mm = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic cohort."""
    out = tmp_path_factory.mktemp("demo") / "cohort"
    create_demo_cohort(out, PATIENTS, slides_px=(600, 700))
    return out


@pytest.fixture
def prefix(s3_environment: str, home: Path) -> Iterator[str]:
    """Prefix of the tests' bucket, emptied after use."""
    name = uuid.uuid4().hex
    yield name
    for key in keys(name):
        boto3.client("s3").delete_object(Bucket="artefacts", Key=key)


@pytest.fixture
def stage(prefix: str, monkeypatch: pytest.MonkeyPatch) -> Mm:
    """A machine of the test stage: runs `mm` in a process of its own."""
    monkeypatch.setenv("MM_SYNTHETIC_ONLY", "1")
    monkeypatch.setenv("MM_COHORTS", f"s3://artefacts/{prefix}/cohorts")
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")

    def mm(*arguments: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "mm_assets", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == expect, done.stdout + done.stderr
        return " ".join((done.stdout + done.stderr).split())

    return mm


def publish(folder: Path, prefix: str, name: str = "synthetic") -> None:
    """Put a cohort where the stage looks for cohorts."""
    root = f"s3://artefacts/{prefix}"
    publish_demo_cohort(folder, f"{root}/slides/{name}", f"{root}/cohorts/{name}")


def test_a_stage_carries_the_cohort(
    folder: Path, prefix: str, stage: Mm, sagemaker_settings: SageMaker
) -> None:
    publish(folder, prefix)
    below = f"{prefix}/cohorts/synthetic/"
    names = {key.removeprefix(below) for key in keys(below)}
    assert {name for name in names if "/" not in name} == TABLES
    assert {name.partition("/")[0] for name in names} == TABLES | {"omics"}
    slides = {path.name for path in (folder / "slides").iterdir()}
    assert {Path(key).name for key in keys(f"{prefix}/slides")} == slides
    assert not [key for key in keys(prefix) if "truth" in key]
    problems = json.loads(stage("check", "synthetic", "--json"))
    assert {problem["severity"] for problem in problems} == {"warning"}
    select = [part for name in ("slide", "tissue") for part in ("--select", name)]
    stage("materialize", "synthetic", *select, "--slides", SLIDE)
    assert not sagemaker_settings.jobs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MM_LAUNCHER", "sagemaker")
        select = ["--select", "tile_embeddings"]
        stage("materialize", "synthetic", *select, "--slides", SLIDE)
    assert len(sagemaker_settings.jobs) == 1
    states = {row["asset"]: row["done"] for row in json.loads(stage("status", "synthetic", "--json"))}
    assert states["tile_embeddings"] == 1

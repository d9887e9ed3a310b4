"""The synthetic cohort on S3, as a stage gets it: put, found, worked on, shown, removed."""

import json
import os
import shutil
import signal
import socket
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
from mm_assets_tests.sagemaker import keys

PATIENTS = 16
SLIDE = "DEMO-0009-S1"
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


@pytest.mark.stress
def test_a_stage_carries_the_cohort(
    folder: Path,
    prefix: str,
    stage: Mm,
    sagemaker_settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
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
    one = ("materialize", "synthetic", "--slides", SLIDE)
    stage(*one, "--select", "slide", "--select", "tissue")
    assert not sagemaker_settings.jobs
    monkeypatch.setenv("MM_LAUNCHER", "sagemaker")
    stage(*one, "--select", "tile_embeddings")
    assert len(sagemaker_settings.jobs) == 1
    rows = json.loads(stage("status", "synthetic", "--json"))
    assert {row["asset"]: row["done"] for row in rows}["tile_embeddings"] == 1


def test_tables_change_and_cohorts_go(folder: Path, prefix: str, stage: Mm) -> None:
    publish(folder, prefix)
    publish(folder, prefix, "other")
    table, client = f"{prefix}/cohorts/synthetic/clinical.csv", boto3.client("s3")
    client.put_object(Bucket="artefacts", Key=table, Body=(folder / "slides.csv").read_bytes())
    client.put_object(Bucket="artefacts", Key=f"{prefix}/cohorts/synthetic/omics/old", Body=b"")
    told = stage("check", "synthetic", "--json", expect=1)
    assert "clinical.csv is not what the generator writes" in told
    assert "omics is not what the generator writes" in told
    publish(folder, prefix)
    stage("check", "synthetic")
    for key in keys(f"{prefix}/cohorts/synthetic"):
        client.delete_object(Bucket="artefacts", Key=key)
    assert "no such cohort; there are demo, other" in stage(
        "check", "synthetic", "--json", expect=1
    )


def test_an_upload_that_broke_off_is_no_cohort(folder: Path, prefix: str, tmp_path: Path) -> None:
    publish(folder, prefix)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    root = f"s3://artefacts/{prefix}"

    def lose_a_table(done: int, total: int) -> None:
        (copy / "clinical.csv").unlink(missing_ok=True)

    with pytest.raises(CohortError, match=r"clinical\.csv"):
        publish_demo_cohort(copy, f"{root}/s", f"{root}/cohorts/synthetic", lose_a_table)
    assert not [key for key in keys(prefix) if key.endswith("defs.yaml")]
    publish(folder, prefix)
    assert [key for key in keys(prefix) if key.endswith("defs.yaml")]


@pytest.mark.parametrize(
    ("slides", "address", "said"),
    [
        ("/slides", "s3://artefacts/cohorts/new", "/slides: is no address of S3"),
        ("s3://artefacts/s", "s3://", "s3://: is no address of S3"),
        ("s3://artefacts/s", "s3://artefacts", "names the cohort, and '' cannot"),
        ("s3://artefacts/s", "s3://artefacts/demo", "names the cohort, and 'demo' cannot"),
        ("s3://artefacts/s", "s3://artefacts/My-Demo", "names the cohort, and 'My-Demo' cannot"),
        ("s3://artefacts/s", "s3://artefacts/PREFIX", "something that is not a demo cohort"),
        ("s3://artefacts/s", "s3://no-such-bucket/new", "no-such-bucket/new: no such bucket"),
    ],
)
def test_other_places_are_refused(
    folder: Path, prefix: str, slides: str, address: str, said: str
) -> None:
    taken = f"c{prefix}"
    boto3.client("s3").put_object(Bucket="artefacts", Key=f"{taken}/mine.csv", Body=b"1")
    with pytest.raises(CohortError, match=said):
        publish_demo_cohort(folder, slides, address.replace("PREFIX", taken))
    assert keys("s/") == []
    assert keys(taken) == [f"{taken}/mine.csv"]


def test_what_is_no_demo_cohort_is_not_put(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="holds no demo cohort"):
        publish(tmp_path, prefix)
    assert keys(prefix) == []


def test_one_command_makes_and_puts_a_cohort_of_any_size(
    prefix: str, stage: Mm, tmp_path: Path
) -> None:
    root = f"s3://artefacts/{prefix}"
    to = ("--to", f"{root}/cohorts/tiny", "--slides-to", f"{root}/slides")
    create = ("demo", "create", "--out", str(tmp_path / "tiny"), "--patients", "4")
    assert "--slides-to go together" in stage(*create, *to[:2], expect=1)
    stage(*create, *to)
    assert len(keys(f"{prefix}/slides")) == 7
    assert {Path(key).name for key in keys(f"{prefix}/cohorts/tiny")} > TABLES


@pytest.mark.stress
def test_the_code_server_shows_what_has_come(
    folder: Path, prefix: str, stage: Mm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MM_CODE_HOST", "127.0.0.1")
    port, log = free_port(), tmp_path / "log"
    reload = ("reload", "--port", str(port))
    command = [Path(sys.executable).with_name("dagster"), "code-server", "start"]
    command += ["-h", "127.0.0.1", "-p", str(port), "-m", "mm_assets.definitions"]
    assert "does not answer" in stage(*reload, expect=1)
    with (
        log.open("w") as sink,
        subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True) as server,
    ):
        try:
            wait_for("the code server", lambda: _listens(port), 60, log)
            assert "nothing is there" in stage(*reload, expect=1)
            publish(folder, prefix)
            assert "has loaded the cohorts anew" in stage(*reload)
        finally:
            # It ends its own child by SIGINT, which tests in the background have ignored.
            os.killpg(server.pid, signal.SIGKILL)


def _listens(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True

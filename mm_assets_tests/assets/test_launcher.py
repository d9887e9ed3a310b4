"""Slide stages done by jobs of SageMaker: the same artefacts as when they are done here."""

import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from deploy.local.sagemaker.server import SageMaker
from mm_assets_tests.cohorts import make_cohort, slide_name, spoil_corner
from mm_assets_tests.daemon import environment
from mm_assets_tests.sagemaker import IMAGE, ROLE

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDINGS = ("tile_embeddings", "region_embeddings")


@pytest.fixture
def settings(sagemaker: SageMaker, monkeypatch: pytest.MonkeyPatch) -> SageMaker:
    """The server, with what the launcher reads from the environment."""
    monkeypatch.setenv("MM_SAGEMAKER_ROLE", ROLE)
    monkeypatch.setenv("MM_SAGEMAKER_IMAGE", IMAGE)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return sagemaker


def remote_cohort(folder: Path, slides: int, spoilt: str | None = None) -> tuple[Path, str]:
    """YAML of a cohort whose slides are on S3, and the prefix they share with its stores."""
    prefix = uuid.uuid4().hex
    yaml = make_cohort(
        folder / "tiny",
        patients=12,
        slides=slides,
        omics=None,
        slides_config={
            "root": f"s3://artefacts/{prefix}/slides",
            "patient_pattern": r"^(P\d+)",
        },
        compute={"tile_embeddings": {"launcher": "sagemaker", "gpu": 0}},
    )
    if spoilt:
        spoil_corner(yaml.parent / "slides" / spoilt)
    client = boto3.client("s3")
    for slide in sorted((yaml.parent / "slides").iterdir()):
        client.upload_file(str(slide), "artefacts", f"{prefix}/slides/{slide.name}")
        slide.unlink()
    return yaml, prefix


def test_a_job_makes_what_is_made_here(
    home: Path, tmp_path: Path, settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import walk, workspace

    yaml, prefix = remote_cohort(tmp_path, slides=3, spoilt=slide_name("P001"))
    found = {}
    for launcher in ("local", "sagemaker"):
        monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/{launcher}")
        space = workspace(str(yaml))
        if launcher == "local":
            space = replace(space, config=space.config.model_copy(update={"compute": {}}))
        assert walk(space, ["slide", "tissue", *EMBEDDINGS]) == {}
        found[launcher] = {
            (asset, slide): (receipt.state, receipt.outputs, receipt.fingerprint, receipt.reason)
            for asset in EMBEDDINGS
            for slide, receipt in space.receipts.read_all("tiny", asset).items()
        }
    assert found["sagemaker"] == found["local"]
    states = {slide: facts[0] for (_, slide), facts in found["sagemaker"].items()}
    assert states == {"P000-S1": "done", "P001-S1": "failed", "P002-S1": "done"}
    (job,) = settings.jobs.values()
    assert job.name.startswith("mm-tiny-tile-embeddings-")
    assert _keys(f"{prefix}/sagemaker/tiny/_jobs") == []
    assert walk(space, ["tile_embeddings"]) == {}
    assert len(settings.jobs) == 1


@pytest.mark.stress
def test_a_killed_run_loses_no_job(home: Path, tmp_path: Path, settings: SageMaker) -> None:
    """kill -9 of `mm` while its job works; the next `mm` takes the job over."""
    yaml, prefix = remote_cohort(tmp_path, slides=12)
    store = f"s3://artefacts/{prefix}/store"
    done = f"{prefix}/store/tiny/_receipts/tile_embeddings"

    def materialize() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mm_assets", "materialize", str(yaml)]
        for asset in ("slide", "tissue", "tile_embeddings"):
            command += ["--select", asset]
        variables = {**os.environ, **environment(home, tmp_path), "MM_STORE": store}
        return subprocess.Popen(command, env=variables, start_new_session=True)

    process = materialize()
    while not _keys(done):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(_keys(done)) < 12
    assert materialize().wait(300) == 0
    assert len(_keys(done)) == 12
    assert len(settings.jobs) == 1
    assert _keys(f"{prefix}/store/tiny/_jobs") == []


@pytest.mark.parametrize(("store", "missing"), [("local", "MM_STORE"), ("s3", "slides.root")])
def test_what_a_job_cannot_reach_is_refused(
    home: Path,
    tmp_path: Path,
    settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    missing: str,
) -> None:
    from mm_assets.cli import walk, workspace

    if store == "s3":
        monkeypatch.setenv("MM_STORE", f"s3://artefacts/{uuid.uuid4().hex}")
    yaml = make_cohort(
        tmp_path / "tiny",
        patients=12,
        slides=1,
        omics=None,
        compute={"slide": {"launcher": "sagemaker"}},
    )
    failures = walk(workspace(str(yaml)), ["slide"])
    assert missing in failures["slide"]
    assert not settings.jobs


def test_a_stage_of_the_whole_cohort_stays_here(home: Path, tmp_path: Path) -> None:
    from mm_assets.cli import workspace
    from mm_assets.component import CohortComponent

    yaml = make_cohort(
        tmp_path / "tiny", 12, slides=0, compute={"clinical": {"launcher": "sagemaker"}}
    )
    with pytest.raises(ValueError, match=r"compute\.clinical\.launcher"):
        CohortComponent(workspace(str(yaml)).config).definitions()


def _keys(prefix: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix=prefix)
    return [item["Key"] for item in found.get("Contents", [])]

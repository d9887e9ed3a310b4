"""Slides under an S3 prefix and artefacts in a bucket, through the code of the local case."""

import json
import uuid
from pathlib import Path

import boto3
import pytest

from mm_assets_tests.cohorts import make_cohort, paint_slide, slide_name, truncate
from mm_assets_tests.slow_s3 import slow_s3


def test_slides_and_store_on_s3(
    home: Path, tmp_path: Path, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.assets.overview import slide_states
    from mm_assets.cli import walk, workspace
    from mm_assets.resources.store import ArtefactRef

    prefix = uuid.uuid4().hex
    yaml = make_cohort(
        tmp_path / "cohorts" / "tiny",
        patients=12,
        slides=4,
        omics=None,
        slides_config={
            "root": f"s3://artefacts/{prefix}/slides",
            "patient_pattern": r"^(P\d+)",
        },
    )
    local = yaml.parent / "slides"
    truncate(local / slide_name("P002"))
    _upload(local, s3_environment, prefix)
    monkeypatch.setenv("MM_COHORTS", str(yaml.parent.parent))
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    select = ["slide", "tissue", "*_embeddings", "extremum_vectors_subtype"]
    assert walk(space, select) == {}
    states = {row["slide"]: row["state"] for row in slide_states(space)}
    assert states == {
        "P000-S1": "done",
        "P001-S1": "done",
        "P002-S1": "quarantined",
        "P003-S1": "done",
    }
    ref = ArtefactRef("tiny", "slide", "P000-S1", "json")
    assert json.loads(space.store.read_bytes(ref))["patient_id"] == "P000"
    table = space.store.read_arrow(ArtefactRef("tiny", "tile_embeddings", "P000-S1", "arrow"))
    assert table.num_rows > 0
    assert not (home / "store").exists()


def test_the_next_slide_is_fetched_while_the_present_one_is_embedded(
    home: Path, tmp_path: Path, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import walk, workspace
    from mm_assets.resources.store import ArtefactRef

    prefix = uuid.uuid4().hex
    root = {"root": f"s3://artefacts/{prefix}/slides", "patient_pattern": r"^(P\d+)"}
    yaml = make_cohort(
        tmp_path / "cohorts" / "tiny", patients=12, slides=0, omics=None, slides_config=root
    )
    names = [slide_name(f"P00{number}") for number in range(4)]
    for seed, name in enumerate(names):
        paint_slide(yaml.parent / "slides" / name, seed, side=1280)
    _upload(yaml.parent / "slides", s3_environment, prefix)
    monkeypatch.setenv("MM_COHORTS", str(yaml.parent.parent))
    monkeypatch.setenv("MM_SLIDE_CACHE_GB", "0")
    with slow_s3(s3_environment) as slow:
        monkeypatch.setenv("AWS_ENDPOINT_URL", slow.address)
        space = workspace(str(yaml))
        assert walk(space, ["slide", "tissue"]) == {}
        slow.fetches.clear()
        slow.seconds = 0.3
        assert walk(space, ["*_embeddings"]) == {}
        fetches = sorted(slow.fetches, key=lambda fetch: fetch.began)
    assert [fetch.name for fetch in fetches] == names
    written = []
    for name in names:
        ref = ArtefactRef("tiny", "tile_embeddings", name.removesuffix(".tiff"), "arrow")
        path = space.store.local_path(ref)
        assert path
        written.append(path.stat().st_mtime)
    for number in range(len(names) - 1):
        assert fetches[number + 1].began < written[number]
    for number in range(len(names) - 2):
        assert fetches[number + 2].began > written[number]
    assert not list((home / "cache" / "slides").iterdir())


def _upload(folder: Path, server: str, prefix: str) -> None:
    """Move every file of a folder to the bucket."""
    client = boto3.client("s3", endpoint_url=server)
    for slide in sorted(folder.iterdir()):
        client.upload_file(str(slide), "artefacts", f"{prefix}/slides/{slide.name}")
        slide.unlink()

"""Slides under an S3 prefix and artefacts in a bucket, through the code of the local case."""

import json
import uuid
from pathlib import Path

import boto3
import pytest

from mm_assets_tests.cohorts import make_cohort, slide_name, truncate


def test_slides_and_store_on_s3(
    home: Path, tmp_path: Path, s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.assets.overview import slide_states
    from mm_assets.cli import _walk, workspace
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
    client = boto3.client("s3", endpoint_url=s3_environment)
    for slide in sorted(local.iterdir()):
        client.upload_file(str(slide), "artefacts", f"{prefix}/slides/{slide.name}")
        slide.unlink()
    monkeypatch.setenv("MM_COHORTS", str(yaml.parent.parent))
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    select = ["slide", "tissue", "*_embeddings", "extremum_vectors_subtype"]
    assert _walk(space, select, None) == {}
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

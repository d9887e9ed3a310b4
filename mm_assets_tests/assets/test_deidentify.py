"""A cohort whose slides are rewritten at ingest: later stages read the copies only."""

import json
import uuid
from pathlib import Path

import pandas as pd
import pytest
import tifffile

from mm_assets_tests.cohorts import make_cohort, patient_ids, slide_name

NAME = "Doe_Jane_19501224"


@pytest.mark.parametrize("where", ["local", "s3"])
def test_later_stages_read_the_copy(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    where: str,
) -> None:
    from mm_assets.assets.overview import slide_states
    from mm_assets.cli import workspace
    from mm_assets.cli_walk import walk
    from mm_assets.resources.store import ArtefactRef

    yaml = make_cohort(
        tmp_path / "cohorts" / "tiny",
        patients=12,
        slides=2,
        omics=None,
        slides_config={"root": "slides", "manifest": "slides.csv", "deidentify": "copy"},
    )
    patients = patient_ids(2)
    files = [yaml.parent / "slides" / f"{NAME}_{patient}.tiff" for patient in patients]
    for patient, file in zip(patients, files, strict=True):
        (file.parent / slide_name(patient)).rename(file)
    ome = tifffile.imread(files[1])
    tifffile.imwrite(files[1], ome, tile=(256, 256), photometric="rgb", ome=True)
    with files[0].open("ab") as handle:
        handle.write(f"scanned for {NAME}".encode())
    manifest = {"slide_id": ["S0", "S1"], "patient_id": patients, "mpp": 0.5}
    paths = [file.name for file in files]
    pd.DataFrame({**manifest, "path": paths}).to_csv(yaml.parent / "slides.csv", index=False)
    monkeypatch.setenv("MM_COHORTS", str(yaml.parent.parent))
    if where == "s3":
        request.getfixturevalue("s3_environment")
        monkeypatch.setenv("MM_STORE", f"s3://artefacts/{uuid.uuid4().hex}")
    space = workspace(str(yaml))
    walk(space, ["slide"])
    record = json.loads(space.store.read_bytes(ArtefactRef("tiny", "slide", "S0", "json")))
    receipt = space.receipts.read("tiny", "slide", "S0")
    assert receipt is not None
    assert receipt.outputs["tiff"] == f"sha256:{record['copy_sha256']}"
    assert receipt.metadata["identifying_findings"] == 1
    assert receipt.metadata["identifying_findings_in_copy"] == 0
    copy = space.store.read_bytes(ArtefactRef("tiny", "slide", "S0", "tiff"))
    assert NAME.encode() in files[0].read_bytes()
    assert NAME.encode() not in copy
    files[0].write_bytes(b"no slide any more")
    stages = {"tissue": "json", "tile_embeddings": "arrow"}
    if where == "s3":
        del stages["tile_embeddings"]
    walk(space, list(stages))
    for asset, extension in stages.items():
        assert space.store.exists(ArtefactRef("tiny", asset, "S0", extension))
    reasons = {row["slide"]: row["reason"] for row in slide_states(space)}
    assert "OME-TIFF" in reasons["S1"]
    assert NAME not in reasons["S1"]
    if where == "local":
        stored = [path for path in (home / "store").rglob("*") if path.is_file()]
        assert len(stored) > 10
        for path in stored:
            assert NAME not in path.name
            assert NAME.encode() not in path.read_bytes(), path

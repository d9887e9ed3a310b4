"""A cohort that trains its own HIPT, through Dagster, from slides to regions."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.hipt import load_levels
from mm_assets.cli import workspace
from mm_assets.cohort.loading import load_config
from mm_assets.cohort.problems import CohortError
from mm_assets.encoders.weights import load_weights
from mm_assets_tests.cohorts import Cohort, make_cohort, patient_ids

PATIENTS = 6
IMAGING = {"weights": "random:0", "tile_px": 64, "region_px": 192}
HIPT = {"tile_weights": "cohort", "region_weights": "cohort", "epochs": 1}
SMALL = {
    "epochs": 2,
    "batch": 8,
    "each": 12,
    "local": 2,
    "prototypes": 32,
    "hidden": 16,
    "depth": 1,
}
SSL = {
    "tiles": {**SMALL, "width": 24, "global_px": 48, "local_px": 32},
    "regions": {**SMALL, "width": 12, "batch": 4},
    "exclude_folds": {"survival": [0]},
}


def test_a_cohort_trains_its_own_encoders(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohorts" / "tiny"
    yaml = make_cohort(folder, PATIENTS, hipt=HIPT, imaging=IMAGING, ssl=SSL)
    wanted = ["slide", "tissue", "clinical", "splits_survival", "tile_encoder"]
    wanted += ["tile_embeddings_hipt", "region_encoder", "hipt_embeddings"]
    options = [option for asset in wanted for option in ("--select", asset)]
    Cohort(yaml, home).mm("materialize", "tiny", *options)
    space = workspace(str(yaml))
    receipts = {name: space.receipts.read("tiny", name, "cohort") for name in wanted[-4::2]}
    _check_exclusion(home, receipts["tile_encoder"])
    _check_weights(home, "tile_encoder", "hipt", 24)
    _check_weights(home, "region_encoder", "hipt_4k", 12)
    regions = pa.ipc.open_file(home / "store" / "tiny" / "hipt_embeddings" / "P000-S1.arrow")
    table = regions.read_all()
    assert table.schema.field("embedding").type.list_size == 12
    stamp = table.schema.metadata[b"weights"].decode()
    for name, receipt in receipts.items():
        digest = receipt.outputs["pth"].removeprefix("sha256:")[:12]
        assert f"tiny_{name}_{digest}.pth" in stamp
        registered = space.tracking.version(f"tiny.ssl.{name}")
        stored = (home / "store" / "tiny" / name / "cohort.pth").read_bytes()
        assert space.tracking.read_file(registered.run_id, f"{name}.pth") == stored
        tags = space.tracking.notes(registered)
        assert tags["mm.upstream.slide"].startswith("sha256:")
        version = space.tracking._client().get_model_version(registered.name, "1")
        assert version.description.startswith(f"# tiny.ssl.{name} version 1\n")
        assert f"- slides: {receipt.metadata['slides']}\n" in version.description
    assert load_levels(space, "cpu").white.shape == (24,)
    assert not (home / "training" / "tiny" / "tile_encoder").exists()


def _check_exclusion(home: Path, receipt) -> None:
    splits = pd.read_parquet(home / "store" / "tiny" / "splits_survival" / "cohort.parquet")
    test = (splits["fold"] == 0) & (splits["repeat"] == 0) & (splits["role"] == "test")
    left_out = set(splits.loc[test, "patient_id"])
    assert receipt.metadata["excluded_patients"] == len(left_out) > 0
    assert receipt.metadata["slides"] == PATIENTS - len(left_out & set(patient_ids(PATIENTS)))


def _check_weights(home: Path, asset: str, architecture: str, width: int) -> None:
    path = home / "store" / "tiny" / asset / "cohort.pth"
    state = load_weights(architecture, str(path)).state
    assert state["cls_token"].shape[-1] == width
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_the_published_setting_is_the_default(tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "tiny", 4, slides=1, hipt=HIPT)
    ssl = load_config(yaml).ssl
    tiles, regions = ssl.tiles, ssl.regions
    assert (tiles.width, tiles.depth, tiles.global_px, tiles.local_px) == (384, 12, 224, 96)
    assert (regions.width, regions.depth, regions.global_tiles, regions.local_tiles) == (
        192,
        6,
        14,
        6,
    )
    assert (tiles.prototypes, tiles.hidden, tiles.batch, tiles.epochs) == (65_536, 2048, 256, 100)


def test_nothing_waits_for_a_training_that_nobody_asked_for(tmp_path: Path) -> None:
    given = {**HIPT, "tile_weights": "random:1"}
    stages = cohort_stages(load_config(make_cohort(tmp_path / "tiny", 4, slides=1, hipt=given)))
    names = [asset for stage in stages for asset in stage.outputs]
    assert "tile_encoder" not in names
    assert names.count("tile_embeddings_hipt") == 1
    makers = {asset: stage for stage in stages for asset in stage.outputs}
    assert makers["tile_embeddings_hipt"] is makers["tile_embeddings"]
    assert "region_encoder" in makers["hipt_embeddings"].upstream


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    refused = {
        "names no task": {"exclude_folds": {"nothing": [0]}},
        "multiple of 6": {"tiles": {"width": 100}},
        "multiple of 16": {"tiles": {"global_px": 100}},
    }
    for reason, section in refused.items():
        yaml = make_cohort(tmp_path / reason, 4, slides=1, hipt=HIPT, ssl=section)
        with pytest.raises(CohortError, match=reason):
            load_config(yaml)

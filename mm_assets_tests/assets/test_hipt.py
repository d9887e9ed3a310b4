"""HIPT from pixels to patients, through Dagster."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.porpoise import embeddings
from mm_assets.cohort.loading import load_config
from mm_assets.encoders.hipt import load_region_encoder, white_token
from mm_assets.encoders.registry import load_encoder
from mm_assets.wsi.tiling import Grid
from mm_assets_tests.cohorts import Cohort, make_cohort, write_yaml

PATIENTS = 6
HIPT = {"tile_weights": "random:1", "region_weights": "random:2", "epochs": 1}
# Regions of 3 x 3 tiles: a small slide has several, and those at its edges are not full.
SIDE = 3
IMAGING = {"weights": "random:0", "tile_px": 64, "region_px": 192}
ASSETS = ["slide", "tissue", "tile_embeddings", "hipt_embeddings", "clinical"]
MODELS = ["splits_subtype", "splits_survival", "hipt_subtype", "hipt_survival"]


def table(home: Path, asset: str, slide: str) -> pa.Table:
    return pa.ipc.open_file(home / "store" / "tiny" / asset / f"{slide}.arrow").read_all()


def test_from_pixels_to_patients(home: Path, tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", PATIENTS, hipt=HIPT, imaging=IMAGING)
    cohort = Cohort(yaml, home)
    options = [option for asset in ASSETS + MODELS for option in ("--select", asset)]
    cohort.mm("materialize", "tiny", *options)
    _check_regions(home, "P000-S1")
    for task, column in (("subtype", "probability_ILC"), ("survival", "risk")):
        found = pd.read_parquet(home / "store" / "tiny" / f"hipt_{task}" / "cohort.parquet")
        assert set(found["model"]) == {"hipt"}
        assert found["patient_id"].nunique() == len(found) == PATIENTS
        assert found[column].between(0, 1).all()


def _check_regions(home: Path, slide: str) -> None:
    """Every region is ViT-4K of its own tiles, white where there is no tissue."""
    tiles, regions = (table(home, a, slide) for a in ("tile_embeddings_hipt", "hipt_embeddings"))
    assert tiles.schema.field("embedding").type.list_size == 384
    assert regions.schema.field("embedding").type.list_size == 192
    assert regions.schema.metadata[b"weights"] == b"random:1 and random:2"
    record = json.loads((home / "store" / "tiny" / "slide" / f"{slide}.json").read_text())
    grid = Grid(64, 0.5, record["mpp"])
    places = zip(tiles["x"].to_pylist(), tiles["y"].to_pylist(), strict=True)
    tokens = dict(zip(places, embeddings(tiles), strict=True))
    white = white_token(load_encoder("hipt", "random:1", "cpu"), 64)
    encoder = load_region_encoder("random:2", "cpu")
    steps = [grid.position(n) for n in range(200)]
    partly = 0
    for x, y, found in zip(
        regions["x"].to_pylist(), regions["y"].to_pylist(), embeddings(regions), strict=True
    ):
        column, row = steps.index(x), steps.index(y)
        inside = [[(steps[column + i], steps[row + j]) for i in range(SIDE)] for j in range(SIDE)]
        whole = np.array([[tokens.pop(place, white) for place in line] for line in inside])
        np.testing.assert_array_equal(encoder.encode(whole[None])[0], found)
        partly += any((token == white).all() for line in whole for token in line)
    assert not tokens
    assert 0 < partly <= regions.num_rows
    assert regions.num_rows > 1


def test_only_where_it_is_asked_for(home: Path, tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "tiny", patients=4, slides=1)
    assert not [s for s in cohort_stages(load_config(yaml)) if "hipt" in " ".join(s.outputs)]
    path = write_yaml(tmp_path / "tiny", hipt={**HIPT, "tile_weights": "w/vit256.pth"})
    hipt = load_config(path).hipt
    assert hipt is not None
    assert hipt.tile_weights == str(tmp_path / "tiny" / "w" / "vit256.pth")
    write_yaml(tmp_path / "tiny", hipt=HIPT, imaging={"tile_px": 250, "region_px": 500})
    with pytest.raises(Exception, match="multiple of 16"):
        load_config(path)

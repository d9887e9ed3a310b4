"""HIPT's embeddings through Dagster: each region is what its pixels say."""

from pathlib import Path

import numpy as np
import openslide
import pytest
from pyarrow import feather

from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.loading import load_config
from mm_assets.encoders.hipt import blank_token, load_region_encoder
from mm_assets.encoders.registry import load_encoder
from mm_assets_tests.cohorts import Cohort, make_cohort, paint_slide, slide_name

HIPT = {"tiles": "random:1", "regions": "random:2"}
SIDE = 1300  # Five tiles and a bit; regions of four.


def test_only_where_it_is_asked_for(tmp_path: Path) -> None:
    config = load_config(make_cohort(tmp_path / "tiny", patients=4, slides=1))
    assert not [asset for s in cohort_stages(config) for asset in s.outputs if "hipt" in asset]


def test_its_name_is_taken(tmp_path: Path) -> None:
    also = [{"name": "hipt", "encoder": "resnet50", "weights": "random:0"}]
    yaml = make_cohort(tmp_path / "tiny", patients=4, slides=1, imaging={"also": also}, hipt=HIPT)
    with pytest.raises(ValueError, match="`hipt` is the name of the encoder"):
        load_config(yaml)


def test_regions_are_embedded_from_their_pixels(home: Path, tmp_path: Path) -> None:
    imaging = {"weights": "random:0", "region_px": 1024}
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", 4, slides=1, imaging=imaging, hipt=HIPT)
    path = yaml.parent / "slides" / slide_name("P000")
    paint_slide(path, 0, SIDE)
    wanted = ("slide", "tissue", "tile_embeddings_hipt", "hipt_embeddings")
    options = (option for asset in wanted for option in ("--select", asset))
    Cohort(yaml, home).mm("materialize", "tiny", *options)
    store = home / "store" / "tiny"
    regions = feather.read_table(store / "hipt_embeddings" / "P000-S1.arrow").to_pandas()
    assert regions[["x", "y"]].to_numpy().tolist() == [[0, 0], [1024, 0], [0, 1024], [1024, 1024]]
    assert set(regions["size0"]) == {1024}
    tiles = feather.read_table(store / "tile_embeddings_hipt" / "P000-S1.arrow").to_pandas()
    kept = {(x, y) for x, y in tiles[["x", "y"]].to_numpy().tolist()}
    assert 9 < len(kept) < 36
    encoder, of_regions = load_encoder("hipt", "random:1"), load_region_encoder("random:2")
    grid = np.tile(blank_token(encoder), (1, 4, 4, 1))
    with openslide.OpenSlide(path) as slide:
        for column in range(4):
            for row in range(4):
                corner = (1024 + 256 * column, 256 * row)
                if corner in kept:
                    pixels = np.asarray(slide.read_region(corner, 0, (256, 256)).convert("RGB"))
                    grid[0, row, column] = encoder.encode(pixels[None])[0]
    expected = of_regions.encode(grid)[0].astype(float)
    assert regions["embedding"][1].astype(float) == pytest.approx(expected, rel=0.01, abs=0.01)

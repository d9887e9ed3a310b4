"""Nucleus graphs and their networks through Dagster."""

from pathlib import Path

import cv2
import numpy as np
import openslide
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import feather

from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.loading import load_config
from mm_assets.encoders.registry import load_encoder
from mm_assets.nuclei.gnn import load_gnns
from mm_assets_tests.cohorts import Cohort, make_cohort

PATIENTS = 8


def test_nuclei_only_where_they_are_asked_for(tmp_path: Path) -> None:
    config = load_config(make_cohort(tmp_path / "tiny", patients=4, slides=1))
    assert not [stage.name for stage in cohort_stages(config) if "nucleus" in stage.name]


def test_graphs_and_networks_of_a_cohort(home: Path, tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", PATIENTS, nuclei={"tiles": 1})
    cohort = Cohort(yaml, home)
    wanted = ["slide", "tissue", "tile_embeddings", "region_embeddings", "nucleus_graph"]
    wanted += ["clinical", "splits_subtype", "tile_scorer_subtype", "nucleus_gnn_subtype"]
    wanted += ["extremum_vectors_subtype"]
    cohort.mm("materialize", "tiny", *(o for asset in wanted for o in ("--select", asset)))
    store = home / "store" / "tiny"
    graphs = sorted((store / "nucleus_graph").glob("*.arrow"))
    assert len(graphs) == PATIENTS
    for path in graphs:
        nodes = feather.read_table(path)
        edges = pd.read_parquet(path.with_suffix(".parquet"))
        assert nodes.num_rows > 50
        assert edges["target"].max() < nodes.num_rows
        assert nodes.schema.field("embedding").type.list_size == 1024
    networks = load_gnns(store / "nucleus_gnn_subtype" / "cohort.pt")
    assert set(networks) == {(0, 0), (0, 1), (-1, -1)}
    kept = networks[-1, -1].keep(nodes, pa.Table.from_pandas(edges))
    assert kept.dtype == np.bool_
    assert 0 < kept.sum() < nodes.num_rows
    path = graphs[0]
    extrema = pd.read_parquet(store / "extremum_vectors_subtype" / f"{path.stem}.parquet")
    assert set(extrema["level"]) == {"region", "tile", "nucleus"}
    _recompute(extrema, yaml.parent / "slides" / f"{path.stem}.tiff")


def _recompute(extrema: pd.DataFrame, slide: Path) -> None:
    """Pixels at the stored coordinates, read by another reader, give the stored values.

    They agree to the rounding of float16, which embeddings are stored in: one part in 1,000.
    """
    encoder = load_encoder("resnet50", "random:0")
    chosen = extrema.groupby(["level", "selected"], group_keys=False).sample(4, random_state=0)
    for row in chosen.itertuples():
        for x, y, stored in (
            (row.min_x, row.min_y, row.minimum),
            (row.max_x, row.max_y, row.maximum),
        ):
            picture = _pixels(slide, x, y, row.size0)
            if row.level == "region":
                picture = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)
            value = encoder.encode(picture[None])[0, row.dimension]
            assert float(value) == pytest.approx(stored, rel=1e-3), (row.level, x, y)


def _pixels(slide: Path, x: int, y: int, size: int) -> NDArray[np.uint8]:
    with openslide.OpenSlide(slide) as handle:
        pixels = handle.read_region((x, y), 0, (size, size))
    white = Image.new("RGBA", pixels.size, "white")
    return np.asarray(Image.alpha_composite(white, pixels).convert("RGB"))

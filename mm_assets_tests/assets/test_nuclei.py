"""HEEC on regions, tiles and nuclei through Dagster: graphs, networks, model, report, evidence."""

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import dagster as dg
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
from mm_assets.explain.document import EvidenceDocument
from mm_assets.models.variants import GROUPS
from mm_assets.nuclei.gnn import load_gnns
from mm_assets.resources.home import dagster_instance
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.assets.test_browser import CHROMIUM, FLAGS
from mm_assets_tests.cohorts import Cohort, make_cohort, slide_name
from mm_assets_tests.viewer.server import running_viewer

PATIENTS, SLIDES = 24, 8
LEVELS = ["region", "tile", "nucleus"]
COMPARED = ["levels", "selection"]
SUBTYPE = {
    "name": "subtype", "kind": "classification", "column": "subtype", "classes": ["IDC", "ILC"],
}  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Everything of a cohort with nuclei, and a report that compares levels and selection."""
    folder = tmp_path_factory.mktemp("nuclei")
    yaml = make_cohort(
        folder / "cohorts" / "tiny",
        PATIENTS,
        SLIDES,
        nuclei={"tiles": 1},
        omics=None,
        tasks=[SUBTYPE],
        evaluation={"folds": 2, "bootstrap": 100, "compare": COMPARED},
    )
    made = Cohort(yaml, folder / "mm")
    made.home.mkdir()
    made.mm("materialize", "tiny")
    return made


def test_nuclei_only_where_they_are_asked_for(tmp_path: Path) -> None:
    config = load_config(make_cohort(tmp_path / "tiny", patients=4, slides=1))
    assert not [stage.name for stage in cohort_stages(config) if "nucleus" in stage.name]


def test_graphs_and_networks_of_a_cohort(cohort: Cohort) -> None:
    store = cohort.home / "store" / "tiny"
    graphs = sorted((store / "nucleus_graph").glob("*.arrow"))
    assert len(graphs) == SLIDES
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


def test_values_are_those_of_the_pixels_at_their_places(cohort: Cohort) -> None:
    """Extrema, computed anew from what another reader sees at the stored coordinates.

    They agree to the rounding of float16, which embeddings are stored in: one part in 1,000.
    """
    slide = slide_name("P000")
    stored = cohort.home / "store/tiny/extremum_vectors_subtype" / f"{Path(slide).stem}.parquet"
    extrema = pd.read_parquet(stored)
    assert set(extrema["level"]) == set(LEVELS)
    encoder = load_encoder("resnet50", "random:0")
    chosen = extrema.groupby(["level", "selected"], group_keys=False).sample(4, random_state=0)
    for row in chosen.itertuples():
        for x, y, value in (
            (row.min_x, row.min_y, row.minimum),
            (row.max_x, row.max_y, row.maximum),
        ):
            picture = _pixels(cohort, slide, x, y, row.size0)
            if row.level == "region":
                picture = cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)
            found = encoder.encode(picture[None])[0, row.dimension]
            assert float(found) == pytest.approx(value, rel=1e-3), (row.level, x, y)


def test_model_and_report_read_three_levels(cohort: Cohort) -> None:
    tracking = Tracking(tracking_uri=f"sqlite:///{cohort.home / 'mlflow' / 'mlflow.db'}")
    read = tracking.predictor("tiny.subtype.heec").feature_names
    assert {name.partition(":")[0] for name in read} >= set(LEVELS)
    store = cohort.home / "store" / "tiny"
    predicted = pd.read_parquet(store / "heec_subtype" / "cohort.parquet")
    html = (store / "evaluation_subtype" / "cohort.html").read_text()
    for name in COMPARED:
        assert GROUPS[name].question in html
        for model, words in GROUPS[name].described():
            assert words in html
            assert model in set(predicted["model"])
    # Each is a model of its own: no two options predict the same.
    columns = predicted.pivot(index="patient_id", columns="model", values="probability_ILC")
    assert len(columns) == PATIENTS
    assert not columns.T.duplicated().any()


def test_evidence_leads_to_nuclei(cohort: Cohort) -> None:
    folder = cohort.home / "store" / "tiny" / "evidence_subtype"
    crops = 0
    for path in folder.glob("*.json"):
        document = EvidenceDocument.from_json(path.read_bytes())
        shapes = json.loads(path.with_suffix(".geojson").read_text())["features"]
        nuclei = [place for place in document.on_slide(path.stem) if place.level == "nucleus"]
        names = [shape["properties"]["name"] for shape in shapes]
        assert {f"{place.rank} nucleus" for place in nuclei} <= set(names)
        for place in nuclei:
            assert place.size0 == 64
            if place.crop:
                crops += 1
                shown = np.asarray(Image.open(folder / place.crop))
                slide = f"{place.slide_id}.tiff"
                np.testing.assert_array_equal(shown, _pixels(cohort, slide, place.x, place.y, 64))
    assert crops > 0


@pytest.fixture
def link(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The viewer's page of a slide with evidence in nuclei, as the UI's metadata names it."""
    for name in ("MM_HOME", "MM_COHORTS", "DAGSTER_HOME"):
        monkeypatch.setenv(name, cohort.environment[name])
    folder = cohort.home / "store" / "tiny" / "evidence_subtype"
    slide = next(
        path.stem
        for path in sorted(folder.glob("*.json"))
        if '"nucleus"' in path.read_text() and f'"{path.stem}.crop' in path.read_text()
    )
    records = dg.AssetRecordsFilter(
        dg.AssetKey(["tiny", "evidence_subtype"]), asset_partitions=[slide]
    )
    with dagster_instance() as instance:
        event = instance.fetch_materializations(records, limit=1).records[0]
    assert event.asset_materialization is not None
    address = event.asset_materialization.metadata["viewer"].value
    with running_viewer(cohort.home, cohort.yaml) as port:
        yield urlsplit(str(address))._replace(netloc=f"127.0.0.1:{port}").geturl()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_link_in_the_ui_opens_the_evidence(link: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1300, "height": 800})
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(link)
        tab.wait_for_selector("main .place")
        assert tab.locator("#level option").all_inner_texts()[0] == "all"
        tab.locator("#level").select_option("nucleus")
        first = tab.locator("main .place").last
        assert first.get_attribute("data-place").startswith("nucleus:")
        listed = tab.locator("#imaging .feature").all_inner_texts()
        assert {name.partition(":")[0] for name in listed} == {"nucleus"}
        picture = Image.open(BytesIO(tab.screenshot()))
        picture.save(Path(os.environ.get("MM_SCREENSHOTS", tmp_path)) / "viewer-nuclei.png")
        browser.close()
    assert not errors


def _pixels(cohort: Cohort, slide: str, x: int, y: int, size: int) -> NDArray[np.uint8]:
    with openslide.OpenSlide(cohort.yaml.parent / "slides" / slide) as handle:
        pixels = handle.read_region((x, y), 0, (size, size))
    white = Image.new("RGBA", pixels.size, "white")
    return np.asarray(Image.alpha_composite(white, pixels).convert("RGB"))

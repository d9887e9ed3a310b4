"""HIPT from pixels to patients, through Dagster."""

import json
import logging
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mm_assets.assets.cohort_level import run_cohort_stage
from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.hipt import hipt_stage, region_stage
from mm_assets.assets.hipt_attention import hipt_attention_stage
from mm_assets.assets.omics import table_stages, task_table_stages
from mm_assets.assets.porpoise import embeddings
from mm_assets.assets.scoring import scorers
from mm_assets.assets.stage import Job, SlideStage, Workspace
from mm_assets.cohort.config import Task
from mm_assets.cohort.loading import load_config
from mm_assets.encoders import registry
from mm_assets.encoders.hipt import load_region_encoder, white_token
from mm_assets.explain.document import EvidenceDocument
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking
from mm_assets.wsi.embed import embedding_table
from mm_assets.wsi.tiling import Grid
from mm_assets_tests.cohorts import Cohort, make_cohort, patient_ids, slide_name, write_yaml

PATIENTS = 6
HIPT = {"tile_weights": "random:1", "region_weights": "random:2", "epochs": 1}
# Regions of 3 x 3 tiles: a small slide has several, and those at its edges are not full.
SIDE = 3
IMAGING = {"weights": "random:0", "tile_px": 64, "region_px": 192}
MADE_WITH = {"weights": "hipt random:1 and random:2"}
ASSETS = ["slide", "tissue", "tile_embeddings", "hipt_embeddings", "clinical"]
MODELS = ["splits_subtype", "splits_survival", "hipt_subtype", "hipt_survival"]
MODELS += ["hipt_attention_subtype", "hipt_attention_survival"]


def table(home: Path, asset: str, slide: str) -> pa.Table:
    return pa.ipc.open_file(home / "store" / "tiny" / asset / f"{slide}.arrow").read_all()


@pytest.mark.stress
def test_from_pixels_to_patients(home: Path, tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", PATIENTS, hipt=HIPT, imaging=IMAGING)
    cohort = Cohort(yaml, home)
    options = [option for asset in ASSETS + MODELS for option in ("--select", asset)]
    cohort.mm("materialize", "tiny", *options)
    _check_regions(home, "P000-S1")
    for task, column in (("subtype", "probability_ILC"), ("survival", "risk")):
        _check_predictions(home, task, column)
        for patient in patient_ids(PATIENTS):
            _check_map(home, f"hipt_attention_{task}", Path(slide_name(patient)).stem)


def test_from_tokens_to_patients_and_back_to_pixels(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same stages in this process, on random tokens in place of those of ViT-256."""
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", PATIENTS, hipt=HIPT, imaging=IMAGING)
    once = cache(registry.load_encoder)  # Random weights of ViT-256 take seconds to draw.
    monkeypatch.setattr(registry, "load_encoder", lambda name, weights, *_: once(name, weights))
    config = load_config(yaml)
    store = ArtefactStore(uri=str(home / "store"))
    space = Workspace(config, store, Tracking(), logging.getLogger())
    task = config.tasks[1]
    for stage in [*table_stages(config), *task_table_stages(config, task)]:
        run_cohort_stage(stage, space, "")
    slides = [Path(slide_name(patient)).stem for patient in patient_ids(PATIENTS)]
    for number, slide in enumerate(slides):
        _put(space, "slide", slide, "json", json.dumps({"mpp": 0.5}).encode())
        _put(space, "tile_embeddings_hipt", slide, "arrow", _tokens(number))
    _run(space, region_stage(config), slides)
    _check_regions(home, slides[0])
    run_cohort_stage(hipt_stage(config, task), space, "")
    _check_predictions(home, task.name, "risk")
    _check_scorer(space, task)
    _run(space, hipt_attention_stage(config, task, "evaluation"), slides[:1])
    _check_map(home, f"hipt_attention_{task.name}", slides[0])


def _tokens(seed: int) -> pa.Table:
    """Random tokens of some of the tiles of a slide of 10 x 10."""
    rng = np.random.default_rng(seed)
    places = 64 * np.argwhere(rng.random((10, 10)) < 0.6)[:, ::-1].astype(np.int32)
    values = rng.normal(size=(len(places), 384)).astype(np.float16)
    made_with = {"weights": "random:1", "weights_sha256": "1", "encoder": "hipt"}
    return embedding_table(values, places, 64).replace_schema_metadata(made_with)


def _put(
    space: Workspace, asset: str, slide: str, extension: str, content: bytes | pa.Table
) -> None:
    made_of = Provenance(asset, slide, "1", {}, {})
    ref = ArtefactRef("tiny", asset, slide, extension)
    write = space.store.write_bytes if isinstance(content, bytes) else space.store.write_arrow
    outputs = {extension: write(ref, content, made_of)}
    facts = {"weights": "random:1", "weights_sha256": "1", "encoder": "hipt"}
    receipt = Receipt("tiny", asset, slide, "done", made_of, outputs, metadata=facts)
    space.receipts.write(receipt)


def _run(space: Workspace, stage: SlideStage, slides: list[str]) -> None:
    """What a stage makes of slides, without a process of its own."""
    upstream = {asset: space.receipts.read_all("tiny", asset) for asset in stage.upstream}
    with stage.worker(space) as work:
        for slide in slides:
            made_of = {asset: Provenance(asset, slide, "1", {}, {}) for asset in stage.outputs}
            for asset, made in work(Job(space, slide, made_of, upstream, "")).items():
                plain = {key: fact for key, fact in made.metadata.items() if isinstance(fact, str)}
                receipt = Receipt(
                    "tiny", asset, slide, "done", made_of[asset], made.outputs, "", plain
                )
                space.receipts.write(receipt)


def _check_predictions(home: Path, task: str, column: str) -> None:
    found = pd.read_parquet(home / "store" / "tiny" / f"hipt_{task}" / "cohort.parquet")
    assert set(found["model"]) == {"hipt"}
    assert found["patient_id"].nunique() == len(found) == PATIENTS
    assert found[column].between(0, 1).all()


def _check_scorer(space: Workspace, task: Task) -> None:
    """What `predictions_T` asks of the registered version."""
    scorer, model = scorers(space.config, task)[f"hipt_{task.name}"], f"tiny.{task.name}.hipt"
    job = Job(
        space,
        "cohort",
        {},
        {"hipt_embeddings": space.receipts.read_all("tiny", "hipt_embeddings")},
        "",
    )
    found = scorer.score(job, patient_ids(PATIENTS), space.tracking.predictor(model))
    assert scorer.reads == ("hipt_embeddings",)
    assert found.index.tolist() == patient_ids(PATIENTS)
    assert found["risk"].between(0, 1).all()


def _check_map(home: Path, asset: str, slide: str) -> None:
    """Attention of all levels, the smallest places of which add up to one."""
    folder = home / "store" / "tiny" / asset
    document = EvidenceDocument.from_json((folder / f"{slide}.json").read_bytes())
    assert document.method == "hipt"
    assert document.weights == MADE_WITH["weights"]
    assert len(document.on_slide(slide)) == len(document.instances)
    by_level = {
        level: [each for each in document.instances if each.level == level]
        for level in ("region", "tile", "patch")
    }
    regions = table(home, "hipt_embeddings", slide)
    assert len(by_level["region"]) == regions.num_rows
    assert len(by_level["patch"]) == 8 * 16
    assert {each.size0 for each in by_level["patch"]} == {16}
    assert sum(each.score for each in by_level["region"]) == pytest.approx(1, abs=1e-5)
    finest = [each for each in document.instances if not each.shared_out]
    assert sum(each.score for each in finest) == pytest.approx(1, abs=1e-5)
    assert (folder / f"{slide}.png").exists()
    assert (folder / f"{slide}.geojson").exists()


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
    white = white_token(registry.load_encoder("hipt", "random:1", "cpu"), 64)
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

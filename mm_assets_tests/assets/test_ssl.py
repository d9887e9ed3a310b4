"""A cohort that trains its own HIPT, through Dagster, from slides to regions."""

import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch

from mm_assets.assets.cohort_level import run_cohort_stage, upstream_receipts
from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.hipt import load_levels
from mm_assets.assets.omics import table_stages, task_table_stages
from mm_assets.assets.ssl_training import Part, excluded_patients, tile_training
from mm_assets.assets.stage import CohortStage, Job, Workspace
from mm_assets.cli import workspace
from mm_assets.cohort.loading import load_config
from mm_assets.cohort.problems import CohortError
from mm_assets.encoders.weights import load_weights
from mm_assets.resources.digest import bytes_digest, canonical_json
from mm_assets.resources.lineage import resolve, to_json
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.tracking import RegisteredModel
from mm_assets_tests.cohorts import Cohort, make_cohort, patient_ids, slide_name

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
    "tiles": {**SMALL, "epochs": 12, "width": 24, "global_px": 48, "local_px": 32},
    "regions": {**SMALL, "width": 12, "batch": 4},
    "exclude_folds": {"survival": [0]},
}


def test_a_cohort_trains_its_own_encoders_though_killed(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohorts" / "tiny"
    yaml = make_cohort(folder, PATIENTS, hipt=HIPT, imaging=IMAGING, ssl=SSL)
    wanted = ["slide", "tissue", "clinical", "splits_survival", "tile_encoder"]
    wanted += ["tile_embeddings_hipt", "region_encoder", "hipt_embeddings"]
    cohort = Cohort(yaml, home)
    _kill_in_training(cohort, wanted)
    options = [option for asset in wanted for option in ("--select", asset)]
    cohort.mm("materialize", "tiny", *options)
    space = workspace(str(yaml))
    receipts = {name: space.receipts.read("tiny", name, "cohort") for name in wanted[-4::2]}
    left_in = _check_exclusion(home, receipts["tile_encoder"])
    _check_curve(space, tmp_path)
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
        version = space.tracking._client().get_model_version(registered.name, "1")
        assert version.description.startswith(f"# tiny.ssl.{name} version 1\n")
        assert f"- slides: {receipt.metadata['slides']}\n" in version.description
        _check_slides(space, registered, left_in)
    made_of = to_json(resolve("tiny.ssl.tile_encoder", space.store, space.tracking))["nodes"]
    assert {node["name"] for node in made_of.values() if node["asset"] == "slide"} == left_in
    assert load_levels(space, "cpu").white.shape == (24,)
    assert not (home / "training" / "tiny" / "tile_encoder").exists()


def _kill_in_training(cohort: Cohort, wanted: list[str]) -> None:
    """kill -9 of `mm materialize` when the first epochs of the tiles' training are over."""
    state = "training/tiny/tile_encoder/*/dino.pt"
    cohort.killed_materialize(*wanted, when=lambda: list(cohort.home.glob(state)))
    assert not (cohort.home / "store" / "tiny" / "tile_encoder").exists()


def _check_curve(space: Workspace, folder: Path) -> None:
    """The killed run is closed; the next has the curve of a training that was not interrupted."""
    (stage,) = [each for each in cohort_stages(space.config) if each.name == "tile_encoder"]
    assert isinstance(stage, CohortStage)
    job = Job(space, "cohort", {}, upstream_receipts(stage, space), "")
    whole = Part(tile_training(job), folder / "whole.pt", None)(0, 1)
    client = space.tracking._client()
    experiment = client.get_experiment_by_name("tiny.ssl")
    runs = client.search_runs(
        [experiment.experiment_id],
        "attributes.run_name = 'tile_encoder'",
        order_by=["attributes.start_time"],
    )
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    for name in ("loss", "entropy", "spread", "information"):
        killed, resumed = (
            {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
            for run in runs
        )
        assert len(killed) < len(resumed) == space.config.ssl.tiles.epochs
        expected = {epoch.epoch: getattr(epoch, name) for epoch in whole.curve}
        assert resumed == pytest.approx(expected, rel=1e-3, abs=1e-5)


def _check_exclusion(home: Path, receipt: Receipt) -> set[str]:
    """Slides of the patients who may be learned from."""
    splits = pd.read_parquet(home / "store" / "tiny" / "splits_survival" / "cohort.parquet")
    test = (splits["fold"] == 0) & (splits["repeat"] == 0) & (splits["role"] == "test")
    left_out = set(splits.loc[test, "patient_id"])
    assert receipt.metadata["excluded_patients"] == len(left_out) > 0
    learned = [patient for patient in patient_ids(PATIENTS) if patient not in left_out]
    left_in = {slide_name(patient).removesuffix(".tiff") for patient in learned}
    assert receipt.metadata["slides"] == len(left_in)
    return left_in


def _check_slides(space: Workspace, registered: RegisteredModel, left_in: set[str]) -> None:
    """The version names the slides it learned from by digest, and no other."""
    logged = space.tracking.read_file(registered.run_id, "lineage/inputs.csv")
    assert logged is not None
    inputs = pd.read_csv(io.BytesIO(logged)).query("asset == 'slide'")
    digests = {
        slide: receipt.digest
        for slide, receipt in space.receipts.read_all("tiny", "slide").items()
        if slide in left_in
    }
    assert dict(zip(inputs["name"], inputs["data_version"], strict=True)) == digests
    tag = space.tracking.notes(registered)["mm.upstream.slide"]
    assert tag == bytes_digest(canonical_json(digests))


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


def test_folds_that_do_not_exist_are_refused(home: Path, tmp_path: Path) -> None:
    """Else their patients would silently be learned from."""
    yaml = make_cohort(
        tmp_path / "tiny", 8, slides=1, hipt=HIPT, ssl={"exclude_folds": {"survival": [1, 2]}}
    )
    space = workspace(str(yaml))
    task = space.config.tasks[1]
    for stage in [*table_stages(space.config), *task_table_stages(space.config, task)]:
        run_cohort_stage(stage, space, "")
    with pytest.raises(CohortError, match=r"survival has no folds \[2\].*its folds are \[0, 1\]"):
        excluded_patients(Job(space, "cohort", {}, {}, ""))


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
        "multiple of accumulate": {"tiles": {"accumulate": 3}},
    }
    for reason, section in refused.items():
        yaml = make_cohort(tmp_path / reason, 4, slides=1, hipt=HIPT, ssl=section)
        with pytest.raises(CohortError, match=reason):
            load_config(yaml)

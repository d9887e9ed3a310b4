"""PORPOISE's stages on stored embeddings: predictions, registry, curves, comparison."""

import logging
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather

from mm_assets.assets import porpoise
from mm_assets.assets.attention import attention_stages, network_evidence, stored_bags
from mm_assets.assets.cohort_level import run_cohort_stage
from mm_assets.assets.graph import cohort_stages
from mm_assets.assets.omics import table_stages, task_table_stages
from mm_assets.assets.porpoise import StoredBags, porpoise_stages
from mm_assets.assets.predictions import predictions_stage
from mm_assets.assets.progress import listen
from mm_assets.assets.reports import evaluation_stage, read_results
from mm_assets.assets.scoring import scorers
from mm_assets.assets.stage import CohortStage, Job, Workspace
from mm_assets.assets.tiles import TILES
from mm_assets.cohort.loading import load_config
from mm_assets.cohort.problems import CohortError
from mm_assets.explain.document import EvidenceDocument
from mm_assets.models.porpoise.model import Cohort as PorpoiseCohort
from mm_assets.models.porpoise.model import registry_frame
from mm_assets.resources.receipts import Receipt
from mm_assets.resources.store import ArtefactRef, ArtefactStore, Provenance
from mm_assets.resources.tracking import Tracking
from mm_assets.wsi.errors import SlideError
from mm_assets_tests.cohorts import (
    Cohort,
    make_cohort,
    patient_ids,
    slide_name,
    write_tables,
    write_yaml,
)

PATIENTS, SLIDES, WIDTH, EPOCHS = 24, 20, 16, 2
MODELS = ["porpoise_amil", "porpoise_snn", "porpoise_mmf"]


def embedded(slide: int, width: int = WIDTH) -> pa.Table:
    """Tiles as `tile_embeddings` stores them."""
    rng = np.random.default_rng(slide)
    count = int(rng.integers(3, 12))
    values = rng.normal(size=(count, width)).astype(np.float16)
    place = pa.array((256 * np.arange(count)).astype(np.int32))
    return pa.table(
        {
            "embedding": pa.FixedSizeListArray.from_arrays(values.ravel(), width),
            "x": place,
            "y": place,
            "size0": pa.array(np.full(count, 256, np.int32)),
        }
    )


def make_workspace(home: Path, folder: Path, **sections: object) -> Workspace:
    """Tables, folds and the embeddings of all but four patients' slides."""
    (folder / "slides").mkdir(parents=True)
    names = patient_ids(PATIENTS)
    write_tables(folder, names)
    for name in names[:SLIDES]:
        (folder / "slides" / slide_name(name)).touch()
    settings = {"porpoise": {"epochs": EPOCHS}, **sections}
    config = load_config(write_yaml(folder, **settings))
    store = ArtefactStore(uri=str(home / "store"))
    space = Workspace(config, store, Tracking(), logging.getLogger())
    for stage in table_stages(config):
        run_cohort_stage(stage, space, "")
    for task in config.tasks:
        for stage in task_table_stages(config, task):
            run_cohort_stage(stage, space, "")
    for number, name in enumerate(names[:SLIDES]):
        embed(space, name, number, "random:0")
    return space


def embed(
    space: Workspace,
    patient: str,
    number: int,
    weights: str,
    asset: str = TILES,
    width: int = WIDTH,
) -> None:
    """Put embeddings of a patient's slide into the store."""
    slide = Path(slide_name(patient)).stem
    made_of = Provenance(asset, slide, "1", {}, {})
    ref = ArtefactRef("tiny", asset, slide, "arrow")
    outputs = {"arrow": space.store.write_arrow(ref, embedded(number, width), made_of)}
    metadata = {"encoder": "resnet50", "weights": weights}
    receipt = Receipt("tiny", asset, slide, "done", made_of, outputs, metadata=metadata)
    space.receipts.write(receipt)


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Workspace:
    """A cohort that asks for PORPOISE."""
    return make_workspace(home, tmp_path / "tiny")


def job_of(space: Workspace, stage: CohortStage) -> Job:
    """A job that reads the embeddings."""
    upstream = {TILES: space.receipts.read_all("tiny", TILES)}
    return Job(space, "cohort", {}, upstream, "")


def test_networks_are_registered_and_compared(
    workspace: Workspace, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = workspace.config.tasks[1]
    stages = porpoise_stages(workspace.config, task)
    assert [stage.name for stage in stages] == [f"{model}_{task.name}" for model in MODELS]
    seen: list[tuple[str, int, int]] = []
    live: list[tuple[str, int]] = []

    def look(label: str, done: int, total: int) -> None:
        """What MLflow shows after every epoch."""
        seen.append((label, done, total))
        live.extend(_unfinished(workspace))

    monkeypatch.setattr(porpoise, "FLUSH_SECONDS", 0.0)
    stop = listen(look)
    for stage in stages:
        live.clear()
        receipt = run_cohort_stage(stage, workspace, "").receipt
        assert [points for _, points in live] == list(range(3 * EPOCHS + 1))
        assert {run for run, _ in live} == {receipt.metadata["mlflow_run"]}
        assert seen[-1] == (f"tiny/{stage.name}", 3 * EPOCHS, 3 * EPOCHS)
        assert receipt.metadata["weights"] == ("" if "snn" in stage.name else "resnet50 random:0")
        model = str(receipt.metadata["registered_model"])
        assert model == f"tiny.{task.name}.{stage.name.removesuffix(f'_{task.name}')}"
        _check_curves(workspace, str(receipt.metadata["mlflow_run"]))
        _check_registry(workspace, stage, model, tmp_path)
        assert run_cohort_stage(stage, workspace, "").produced is None
    stop()
    assert not list((home / "training" / "tiny").iterdir())
    evaluation = evaluation_stage(workspace.config, task, [stage.name for stage in stages])
    run_cohort_stage(evaluation, workspace, "")
    found = read_results(workspace.store, "tiny", task.name)
    assert set(found["model"]) == set(MODELS)
    patients = found.groupby("model")["patients"].max()
    assert patients.to_dict() == dict(zip(MODELS, (SLIDES, PATIENTS, PATIENTS), strict=True))
    _check_champions(workspace, tmp_path, evaluation.name)


def _check_champions(workspace: Workspace, folder: Path, evaluation: str) -> None:
    """In a process of their own, from mapped bags; other weights are refused, not guessed at."""
    task = workspace.config.tasks[1]
    refused, arrived = "P000", patient_ids(PATIENTS)[SLIDES]
    (folder / "tiny" / "slides" / slide_name(arrived)).touch()
    embed(workspace, arrived, 90, "random:0")
    embed(workspace, refused, 91, "random:1")
    stage = predictions_stage(workspace.config, task, evaluation)
    stage = replace(stage, upstream=("clinical", "omics", TILES, evaluation))  # HEEC is not made
    run_cohort_stage(stage, workspace, "")
    table = workspace.store.read_table(ArtefactRef("tiny", stage.name, "cohort", "parquet"))
    found = {name: rows.set_index("patient_id") for name, rows in table.groupby("model")}
    assert list(found) == sorted(f"tiny.survival.{model}" for model in MODELS)
    omics = workspace.store.read_table(ArtefactRef("tiny", "omics", "cohort", "parquet"))
    cohort = PorpoiseCohort(StoredBags(job_of(workspace, stage), TILES, folder), omics)
    for name, rows in found.items():
        reads_slides = not name.endswith("snn")
        assert rows.index.tolist() == patient_ids(PATIENTS)
        assert ("random:1, the model's with random:0" in rows["refused"][refused]) == reads_slides
        expected = workspace.tracking.predictor(name).predict_patients(cohort, rows.index)
        expected = expected.drop(refused) if reads_slides else expected
        scored = rows["risk"].dropna().index
        pd.testing.assert_frame_equal(
            rows.loc[scored, expected.columns], expected, check_names=False, atol=1e-6
        )
        assert bool(rows["in_training"][arrived]) == (not name.endswith("amil"))
        assert rows["slides"][arrived] == reads_slides
        assert (rows["lacks"] == "").sum() == (SLIDES + 1 if name.endswith("amil") else PATIENTS)
    explain = network_evidence(workspace, task, "porpoise_amil_survival", (TILES,))
    assert explain(stored_bags(workspace, TILES, arrived), arrived).model.version == 1
    with pytest.raises(SlideError, match="random:1"):
        explain(stored_bags(workspace, TILES, refused), refused)


def _unfinished(workspace: Workspace) -> list[tuple[str, int]]:
    """Runs that are open, each with the points of its curves of training."""
    client = workspace.tracking._client()
    experiment = client.get_experiment_by_name("tiny.survival")
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    return [
        (
            run.info.run_id,
            sum(
                len(client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
                if name.endswith("training_loss")
            ),
        )
        for run in runs
    ]


def _check_curves(workspace: Workspace, run: str) -> None:
    client = workspace.tracking._client()
    for fit in ("repeat0_fold0", "repeat0_fold1", "final"):
        curve = client.get_metric_history(run, f"{fit}/training_loss")
        assert [point.step for point in curve] == list(range(EPOCHS))
        assert all(point.value > 0 for point in curve)


def _check_registry(workspace: Workspace, stage: CohortStage, model: str, folder: Path) -> None:
    """The registered version predicts every patient it can read, through MLflow's own check."""
    predictor = workspace.tracking.predictor(model)
    omics = workspace.store.read_table(ArtefactRef("tiny", "omics", "cohort", "parquet"))
    cohort = PorpoiseCohort(StoredBags(job_of(workspace, stage), TILES, folder), omics)
    expected = predictor.predict_patients(cohort, patient_ids(PATIENTS))
    frame = registry_frame(cohort, predictor, expected.index.tolist())
    found = workspace.tracking.load(model).predict(frame)
    pd.testing.assert_frame_equal(found, expected, check_names=False, atol=1e-6)


def test_encoders_are_compared(home: Path, tmp_path: Path) -> None:
    further, width = f"{TILES}_wide", 2 * WIDTH
    imaging = {"also": [{"name": "wide", "encoder": "resnet50_2048", "weights": "random:7"}]}
    asked = {"models": ["amil"], "encoders": ["wide"], "epochs": EPOCHS}
    space = make_workspace(home, tmp_path / "tiny", imaging=imaging, porpoise=asked)
    for number, name in enumerate(patient_ids(PATIENTS)[:SLIDES]):
        embed(space, name, number, "random:7", further, width)
    task = space.config.tasks[0]
    own, wide = porpoise_stages(space.config, task)
    assert (own.name, wide.name) == ("porpoise_amil_subtype", "porpoise_amil_wide_subtype")
    assert TILES in own.upstream
    assert {TILES, further} & set(wide.upstream) == {further}
    made = {stage.name: run_cohort_stage(stage, space, "").receipt for stage in (own, wide)}
    assert made[own.name].metadata["weights"] == "resnet50 random:0"
    assert made[wide.name].metadata["weights"] == "resnet50 random:7"
    assert space.tracking.predictor("tiny.subtype.porpoise_amil_wide").embedding == width
    assert scorers(space.config, task)[wide.name].reads == (further,)
    looked = attention_stages(space.config, task, "evaluation")
    assert [stage.name for stage in looked] == ["attention_subtype", "attention_amil_wide_subtype"]
    assert looked[1].patient_upstream == (further,)

    evaluation = evaluation_stage(space.config, task, [own.name, wide.name])
    run_cohort_stage(evaluation, space, "")
    page = space.store.read_bytes(ArtefactRef("tiny", evaluation.name, "cohort", "html")).decode()
    assert "PORPOISE, slides alone (wide)" in page
    assert "attention over the tiles of the slides embedded by wide" in page
    assert "embedded by resnet50 random:7" in page
    # A further encoder leaves what the others make as it is.
    plain = load_config(write_yaml(tmp_path / "tiny", porpoise={**asked, "encoders": []}))
    (alone,) = porpoise_stages(plain, task)
    assert alone.parameters == own.parameters == wide.parameters


@pytest.mark.parametrize(
    ("porpoise", "reason"),
    [
        ({"encoders": ["absent"]}, r"no further encoder.*absent.*there are \['wide'\]"),
        ({"encoders": ["hipt"]}, "no further encoder.*hipt"),
        ({"models": ["snn"], "encoders": ["wide"]}, "add it to models"),
        ({"encoders": ["wide", "wide"]}, "must differ"),
    ],
)
def test_encoders_that_cannot_be_compared_are_refused(
    tmp_path: Path, porpoise: dict[str, object], reason: str
) -> None:
    imaging = {"also": [{"name": "wide", "encoder": "resnet50_2048", "weights": "random:7"}]}
    with pytest.raises(CohortError, match=reason):
        load_config(write_yaml(tmp_path, imaging=imaging, porpoise=porpoise))


def test_only_what_is_asked_for_and_can_be_read(home: Path, tmp_path: Path) -> None:
    plain = make_workspace(home, tmp_path / "plain", porpoise=None).config
    assert not [stage for stage in cohort_stages(plain) if "porpoise" in stage.name]
    (tmp_path / "other").mkdir()
    for sections, kinds in (
        ({"porpoise": {"models": ["snn", "mmf"]}, "slides": None}, ["porpoise_snn"]),
        ({"porpoise": {}, "omics": None}, ["porpoise_amil"]),
        ({"porpoise": {}}, MODELS),
    ):
        config = load_config(write_yaml(tmp_path / "other", **sections))
        names = [stage.name for stage in porpoise_stages(config, config.tasks[0])]
        assert names == [f"{kind}_subtype" for kind in kinds]
        looked = [stage.name for stage in attention_stages(config, config.tasks[0], "evaluation")]
        expected = {"porpoise_amil": "attention_subtype", "porpoise_mmf": "attention_mmf_subtype"}
        assert looked == [expected[kind] for kind in kinds if kind in expected]
        judged = next(s for s in cohort_stages(config) if s.name == "evaluation_subtype")
        assert set(names) <= set(judged.upstream)


def test_bags_are_mapped_and_remote_ones_fetched_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = porpoise_stages(workspace.config, workspace.config.tasks[0])[0]
    bags = StoredBags(job_of(workspace, stage), TILES, tmp_path / "scratch")
    assert list(bags) == patient_ids(SLIDES)
    expected = embedded(3)["embedding"].combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(bags["P003"][0].ravel(), expected)
    assert not bags["P003"][0].flags.owndata
    assert not (tmp_path / "scratch").exists()
    monkeypatch.setattr(ArtefactStore, "local_path", lambda *_: None)
    for _ in range(2):
        remote = StoredBags(job_of(workspace, stage), TILES, tmp_path / "scratch")
        np.testing.assert_array_equal(remote["P003"][0].ravel(), expected)
        monkeypatch.setattr(ArtefactStore, "read_bytes", lambda *_: pytest.fail("fetched twice"))


def test_a_training_that_fails_leaves_no_open_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = porpoise_stages(workspace.config, workspace.config.tasks[1])[1]
    monkeypatch.setattr(porpoise, "register_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_cohort_stage(stage, workspace, "")
    client = workspace.tracking._client()
    experiment = client.get_experiment_by_name("tiny.survival")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


@pytest.mark.stress
def test_a_killed_materialization_goes_on(home: Path, tmp_path: Path) -> None:
    """kill -9 of `mm materialize` in a training: the same predictions, and no run left open."""
    made = []
    for attempt, killed in (("whole", False), ("killed", True)):
        folder = tmp_path / attempt
        where = folder / "cohorts" / "tiny"
        where.mkdir(parents=True)
        write_tables(where, patient_ids(24))
        yaml = write_yaml(where, slides=None, porpoise={"epochs": 300})
        cohort = Cohort(yaml, folder / "mm")
        cohort.mm("materialize", "tiny", "--select", "clinical", "--select", "omics")
        cohort.mm("materialize", "tiny", "--select", "splits_survival")
        if killed:
            _kill_in_training(cohort, folder / "mm" / "training")
        cohort.mm("materialize", "tiny", "--select", "porpoise_snn_survival")
        store = folder / "mm" / "store" / "tiny" / "porpoise_snn_survival"
        made.append(pd.read_parquet(store / "cohort.parquet"))
    pd.testing.assert_frame_equal(made[0], made[1])
    tracking = Tracking(tracking_uri=f"sqlite:///{folder / 'mm' / 'mlflow' / 'mlflow.db'}")
    client = tracking._client()
    experiment = client.get_experiment_by_name("tiny.survival")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    counts = [
        len(client.get_metric_history(run.info.run_id, "repeat0_fold0/training_loss"))
        for run in runs
    ]
    assert 0 < counts[0] <= counts[1] == 300


def _kill_in_training(cohort: Cohort, folder: Path) -> None:
    """Kill `mm materialize` when the second fold's checkpoint is there."""
    checkpoint = "repeat0_fold1.pt"
    cohort.killed_materialize("porpoise_snn_survival", when=lambda: list(folder.rglob(checkpoint)))


@pytest.mark.stress
def test_from_slides_to_attention_through_the_command_line(home: Path, tmp_path: Path) -> None:
    yaml = make_cohort(tmp_path / "cohorts" / "tiny", 12, porpoise={"models": ["amil", "mmf"]})
    cohort = Cohort(yaml, home)
    made = ["slide", "tissue", "tile_embeddings", "clinical", "omics", "splits_subtype"]
    made += ["porpoise_amil_subtype", "attention_subtype"]
    made += ["porpoise_mmf_subtype", "attention_mmf_subtype"]
    cohort.mm("materialize", "tiny", *(part for name in made for part in ("--select", name)))
    store = home / "store" / "tiny"
    shown = [("attention_subtype", "porpoise_amil"), ("attention_mmf_subtype", "porpoise_mmf")]
    for (asset, method), patient in product(shown, patient_ids(12)):
        slide = Path(slide_name(patient)).stem
        content = (store / asset / f"{slide}.json").read_bytes()
        document = EvidenceDocument.from_json(content)
        assert (document.patient_id, document.method) == (patient, method)
        assert document.weights == "resnet50 random:0"
        tiles = feather.read_table(store / "tile_embeddings" / f"{slide}.arrow")
        places = {(place.x, place.y) for place in document.instances}
        corners = set(zip(tiles["x"].to_pylist(), tiles["y"].to_pylist(), strict=True))
        assert places == corners
        assert sum(place.score for place in document.instances) == pytest.approx(1, abs=1e-5)
        assert document.seen_in_training
        assert (store / asset / f"{slide}.png").exists()

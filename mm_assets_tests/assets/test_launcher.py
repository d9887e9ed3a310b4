"""Slide stages done by jobs of SageMaker: the same artefacts as when they are done here."""

import os
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest

from deploy.local.sagemaker.server import SageMaker
from mm_assets.assets.stage import SlideStage, Workspace
from mm_assets.resources.sagemaker_request import SageMakerSettings
from mm_assets_tests.cohorts import make_cohort, slide_name
from mm_assets_tests.daemon import environment
from mm_assets_tests.sagemaker import forget, in_asset, keys, logged, remote_cohort, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDINGS = ("tile_embeddings", "region_embeddings")


def test_a_job_makes_what_is_made_here(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import walk, workspace
    from mm_assets.resources.home import dagster_instance

    yaml, prefix = remote_cohort(tmp_path, slides=2, spoilt=slide_name("P001"))
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    remote = workspace(str(yaml))
    here = replace(remote, config=remote.config.model_copy(update={"compute": {}}))
    found = []
    for space in (here, remote):
        assert walk(space, ["slide", "tissue", "tile_embeddings"]) == {}
        receipts = {asset: space.receipts.read_all("tiny", asset) for asset in EMBEDDINGS}
        found.append(
            {
                (asset, slide): (r.state, r.outputs, r.fingerprint, r.reason)
                for asset in EMBEDDINGS
                for slide, r in receipts[asset].items()
            }
        )
        if space is here:
            assert not sagemaker_settings.jobs
            forget(space, receipts)
    assert found[0] == found[1]
    states = {slide: facts[0] for (_, slide), facts in found[1].items()}
    assert states == {"P000-S1": "done", "P001-S1": "failed"}
    (job,) = sagemaker_settings.jobs.values()
    assert job.name.startswith("mm-tiny-tile-embeddings-")
    assert keys(f"{prefix}/store/tiny/_jobs") == []
    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", "tile_embeddings"]))
    assert event
    assert event.asset_materialization
    told = event.asset_materialization.metadata
    assert told["instance"].value == "ml.m5.xlarge"
    # The spoilt slide has none to tell, and the two assets that are made in one go share it.
    assert job.ended
    assert job.started
    assert told["cost"].value == pytest.approx((job.ended - job.started) / 2, abs=0.01)
    assert walk(remote, ["tile_embeddings"]) == {}
    assert len(sagemaker_settings.jobs) == 1


def test_two_runs_of_one_stage_do_not_disturb_each_other(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other slides, beside an order that a killed run left without a job."""
    space, jobs = slides_only(tmp_path, 3, monkeypatch)
    left = f"{jobs}/mm-tiny-left-0f3a-1/input/order.json"
    boto3.client("s3").put_object(Bucket="artefacts", Key=left, Body=b'{"slides": ["P009-S1"]}')

    def both(context: Any) -> list[Any]:
        with ThreadPoolExecutor(1) as pool:
            settings = replace(SageMakerSettings.from_environment(), poll_seconds=4)
            first = pool.submit(slide_run, space, context, ["P000-S1", "P001-S1"], settings)
            wait_for(lambda: any(job.is_over for job in sagemaker_settings.jobs.values()))
            settings = replace(settings, poll_seconds=0.1)
            second = slide_run(space, context, ["P002-S1"], settings)
            return [first.result(), second]

    for outcomes, job in zip(in_asset(both), sagemaker_settings.jobs.values(), strict=True):
        assert [outcome.state for outcome in outcomes] == ["done"] * len(outcomes)
        # Slides side by side on one machine: the job's bill is divided among them.
        assert job.ended
        assert job.started
        costs = [outcome.produced["slide"].metadata["cost"] for outcome in outcomes]
        assert sum(costs) == pytest.approx(job.ended - job.started, abs=0.01)
    assert keys(jobs) == [left]


def test_slides_side_by_side_here_are_not_billed_twice(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.assets.graph import cohort_stages
    from mm_assets.assets.partitions import SlideRun

    space, _ = slides_only(tmp_path, 2, monkeypatch)
    here = space.config.model_copy(update={"compute": {}, "prices": {"here": 3600.0}})
    space = replace(space, config=here)
    stage = next(s for s in cohort_stages(here) if isinstance(s, SlideStage))
    for slides, at_once in ((["P000-S1", "P001-S1"], 2), (["P000-S1"], 1)):
        forget(space, {"slide": slides})
        for outcome in SlideRun(stage, space, stage.outputs, "").outcomes(slides):
            seconds = outcome.receipts["slide"].seconds / at_once
            assert outcome.produced["slide"].metadata["cost"] == pytest.approx(seconds, abs=1e-5)


def slides_only(
    folder: Path, slides: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Workspace, str]:
    """A cohort whose stage `slide` is done by jobs that cost 1 a second, and their prefix."""
    from mm_assets.cli import workspace
    from mm_assets.cohort.config import ComputeOverride

    yaml, prefix = remote_cohort(folder, slides=slides)
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    compute = {"slide": ComputeOverride(launcher="sagemaker", cpu=4, memory_gib=16)}
    config = space.config.model_copy(update={"compute": compute})
    return replace(space, config=config), f"{prefix}/store/tiny/_jobs/slide"


def slide_run(
    space: Workspace, context: Any, slides: list[str], settings: SageMakerSettings
) -> list[Any]:
    """A run of the stage `slide` by jobs."""
    from mm_assets.assets.graph import cohort_stages
    from mm_assets.assets.partitions import SlideRun
    from mm_assets.resources.launcher import SageMakerLauncher

    stage = next(s for s in cohort_stages(space.config) if isinstance(s, SlideStage))
    run = SlideRun(stage, space, stage.outputs, context.run_id)
    return run.outcomes(slides, SageMakerLauncher(settings, context))


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_every_stage_that_works_slide_by_slide(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.assets.graph import cohort_stages
    from mm_assets.cli import walk, workspace

    task = {"name": "subtype", "kind": "classification", "column": "subtype"}
    yaml, prefix = remote_cohort(
        tmp_path,
        slides=12,
        nuclei={"tiles": 2},
        hipt={"tile_weights": "random:0", "region_weights": "random:1", "epochs": 1},
        porpoise={"models": ["amil"], "epochs": 1},
        tasks=[{**task, "classes": ["IDC", "ILC"]}],
    )
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    found = []
    for launcher in ("local", "sagemaker"):
        monkeypatch.setenv("MM_LAUNCHER", launcher)
        space = workspace(str(yaml))
        space = replace(space, config=space.config.model_copy(update={"compute": {}}))
        assert walk(space) == {}
        stages = [s for s in cohort_stages(space.config) if isinstance(s, SlideStage)]
        receipts = {
            asset: space.receipts.read_all("tiny", asset)
            for stage in stages
            for asset in stage.outputs
        }
        found.append({a: {s: r.outputs for s, r in rs.items()} for a, rs in receipts.items()})
        if launcher == "local":
            assert not sagemaker_settings.jobs
            forget(space, receipts)
    assert found[0] == found[1]
    assert {len(slides) for slides in found[0].values()} == {12}
    assert len(sagemaker_settings.jobs) == len(stages)


@pytest.mark.stress
def test_slides_that_a_job_had_no_time_for(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import walk, workspace

    yaml, prefix = remote_cohort(tmp_path, slides=12)
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    assert walk(space, ["slide", "tissue"]) == {}
    override = space.config.compute["tile_embeddings"].model_copy(update={"hours": 14 / 3600})
    hasty = space.config.model_copy(update={"compute": {"tile_embeddings": override}})
    failures = walk(replace(space, config=hasty), ["tile_embeddings"])
    assert 0 < len(failures) <= 12
    assert all("limit of" in reason for reason in failures.values())
    done = space.receipts.read_all("tiny", "tile_embeddings")
    assert {slide for slide, r in done.items() if r.state == "failed"} == set(failures)
    assert walk(space, ["tile_embeddings"]) == {}
    assert len(sagemaker_settings.jobs) == 2


@pytest.mark.stress
def test_a_killed_run_loses_no_job(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker
) -> None:
    """kill -9 of `mm` while its job works; the next `mm` takes the job over."""
    yaml, prefix = remote_cohort(tmp_path, slides=12)
    store = f"s3://artefacts/{prefix}/store"
    done = f"{prefix}/store/tiny/_receipts/tile_embeddings"

    def materialize() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mm_assets", "materialize", str(yaml)]
        for asset in ("slide", "tissue", "tile_embeddings"):
            command += ["--select", asset]
        variables = {**os.environ, **environment(home, tmp_path), "MM_STORE": store}
        return subprocess.Popen(command, env=variables, start_new_session=True)

    process = materialize()
    while not keys(done):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(keys(done)) < 12
    assert materialize().wait(300) == 0
    assert len(keys(done)) == 12
    assert len(sagemaker_settings.jobs) == 1
    assert keys(f"{prefix}/store/tiny/_jobs") == []


@pytest.mark.parametrize(("store", "missing"), [("local", "MM_STORE"), ("s3", "slides.root")])
def test_what_a_job_cannot_reach_is_refused(
    home: Path,
    tmp_path: Path,
    sagemaker_settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    missing: str,
) -> None:
    from mm_assets.cli import walk, workspace

    if store == "s3":
        monkeypatch.setenv("MM_STORE", f"s3://artefacts/{uuid.uuid4().hex}")
    yaml = make_cohort(
        tmp_path / "tiny",
        patients=12,
        slides=1,
        omics=None,
        compute={"slide": {"launcher": "sagemaker"}},
    )
    failures = walk(workspace(str(yaml)), ["slide"])
    assert missing in failures["slide"]
    assert not sagemaker_settings.jobs


def test_a_stage_of_the_whole_cohort_stays_here(home: Path, tmp_path: Path) -> None:
    from mm_assets.cli import workspace
    from mm_assets.component import CohortComponent

    yaml = make_cohort(
        tmp_path / "tiny", 12, slides=0, compute={"clinical": {"launcher": "sagemaker"}}
    )
    with pytest.raises(ValueError, match=r"compute\.clinical\.launcher"):
        CohortComponent(workspace(str(yaml)).config).definitions()


def test_what_work_may_take_is_logged_before_it_begins(
    home: Path, tmp_path: Path, sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm_assets.cli import walk, workspace
    from mm_assets.resources.receipts import Receipt
    from mm_assets.resources.store import Provenance

    yaml, prefix = remote_cohort(tmp_path, slides=1)
    monkeypatch.setenv("MM_STORE", f"s3://artefacts/{prefix}/store")
    space = workspace(str(yaml))
    assert walk(space, ["slide", "tissue"]) == {}
    assert "1 slide on here, time unknown, cost unknown" in logged()
    assert walk(space, ["clinical"]) == {}
    assert "the cohort on here, time unknown, cost unknown" in logged()

    earlier = Provenance("tile_embeddings", "P999-S1", "0", {}, {})
    space.receipts.write(
        Receipt("tiny", "tile_embeddings", "P999-S1", "done", earlier, seconds=36.0)
    )
    sagemaker_settings.faults["CreateProcessingJob"] += ["ValidationException"]
    assert "ValidationException" in str(walk(space, ["tile_embeddings"]))
    assert "1 slide on ml.m5.xlarge, about 0.01 hours, about 36.00" in logged()

"""Trainings and predictions done by jobs of SageMaker: what they make, and what Dagster shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest

from deploy.local.sagemaker.server import SageMaker
from mm_assets.assets.stage import CohortStage, Workspace
from mm_assets.cohort.folders import training_folder
from mm_assets_tests.cohorts import Cohort
from mm_assets_tests.sagemaker import client, forget, keys, tables_only


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    """A cohort without slides."""
    return tables_only(
        tmp_path / "tiny",
        porpoise={"models": ["snn"], "epochs": 2},
        prices={"ml.m5.large": 3600.0, "ml.g5.xlarge": 3600.0},
    )


def made(space: Workspace) -> dict[str, Any]:
    from mm_assets.assets.graph import cohort_stages

    stages = [s for s in cohort_stages(space.config) if isinstance(s, CohortStage) and s.elsewhere]
    receipts = {s.name: space.receipts.read_all("tiny", s.name)["cohort"] for s in stages}
    return {name: (r.state, r.outputs, r.fingerprint) for name, r in receipts.items()}


@pytest.mark.stress
def test_jobs_make_what_is_made_here(
    home: Path, yaml: Path, remote_store: str, sagemaker_settings: SageMaker, monkeypatch: Any
) -> None:
    from mm_assets.cli import walk, workspace

    found = []
    for launcher in ("local", "sagemaker"):
        monkeypatch.setenv("MM_LAUNCHER", launcher)
        space = workspace(str(yaml))
        assert walk(space) == {}
        found.append(made(space))
        if launcher == "local":
            assert not sagemaker_settings.training
            forget(space, {name: ["cohort"] for name in found[0]})
    assert found[0] == found[1]
    trained = {name.removeprefix("mm-tiny-")[:-15] for name in sagemaker_settings.training}
    assert trained == {"clinical-cox-survival", "heec-survival", "porpoise-snn-survival"}
    (predicted,) = sagemaker_settings.jobs.values()
    assert predicted.name.startswith("mm-tiny-predictions-survival-")
    assert keys(f"{remote_store}/tiny/_jobs") == []
    told = shown("porpoise_snn_survival")
    assert told["instance"].value == "ml.g5.xlarge"
    assert told["gpu_seconds"].value == pytest.approx(told["seconds"].value, abs=0.01)
    assert told["cost"].value == pytest.approx(told["seconds"].value, abs=0.01)
    assert told["mlflow"].value.startswith(("http", "mlflow"))
    assert walk(space) == {}
    assert len(sagemaker_settings.training) == 3


@pytest.mark.stress
def test_what_a_job_says_of_itself_is_told(
    home: Path, yaml: Path, remote_store: str, sagemaker_settings: SageMaker, monkeypatch: Any
) -> None:
    """Settings that the job refuses: its reason is the stage's."""
    from mm_assets.cli import walk, workspace

    space = workspace(str(yaml))
    assert walk(space, ["clinical", "splits_survival"]) == {}
    monkeypatch.setenv("MM_LAUNCHER", "sagemaker")
    (splits,) = space.store.list("tiny", "splits_survival")
    space.store.delete(splits)
    failures = walk(space, ["clinical_cox_survival"])
    assert "splits_survival" in failures["clinical_cox_survival"]
    assert keys(f"{remote_store}/tiny/_jobs") == []


@pytest.mark.stress
def test_a_training_that_lost_its_orchestrator_and_its_time(
    home: Path, yaml: Path, tmp_path: Path, remote_store: str, sagemaker_settings: SageMaker
) -> None:
    """kill -9 of `mm`, adoption, the time limit, and a second job that goes on: the same model."""
    from mm_assets.cli import walk, workspace

    long = yaml.read_text().replace("epochs: 2", "epochs: 120")
    yaml.write_text(long)
    space = workspace(str(yaml))
    name = "porpoise_snn_survival"
    assert walk(space, ["clinical", "omics", "splits_survival", name]) == {}
    whole = space.receipts.read_all("tiny", name)["cohort"]
    forget(space, {name: ["cohort"]})

    hasty = long + "  compute: {porpoise_snn_survival: {launcher: sagemaker, hours: 0.01}}\n"
    yaml.write_text(hasty)
    Cohort(yaml, home).killed_materialize(name, when=lambda: sagemaker_settings.training)
    failures = walk(workspace(str(yaml)), [name])
    assert "limit of 0.01 hours" in failures.get(name, "limit of 0.01 hours")
    yaml.write_text(hasty.replace("hours: 0.01", "hours: 1"))
    assert walk(workspace(str(yaml)), [name]) == {}
    assert space.receipts.read_all("tiny", name)["cohort"].outputs == whole.outputs
    assert keys(f"{remote_store}/tiny/_jobs") == []
    assert not training_folder("tiny", name).exists()


def test_a_job_of_other_inputs_is_stopped(
    home: Path, yaml: Path, remote_store: str, sagemaker_settings: SageMaker, monkeypatch: Any
) -> None:
    from mm_assets.cli import walk, workspace

    space = workspace(str(yaml))
    assert walk(space, ["clinical", "splits_survival"]) == {}
    monkeypatch.setenv("MM_LAUNCHER", "sagemaker")
    stale = leave_running(space, "clinical_cox_survival")
    assert walk(space, ["clinical_cox_survival"]) == {}
    assert sagemaker_settings.training[stale].status == "Stopped"
    assert len(sagemaker_settings.training) == 2
    assert keys(f"{remote_store}/tiny/_jobs") == []


@pytest.mark.stress
def test_a_job_of_another_version_is_refused(
    home: Path, yaml: Path, remote_store: str, monkeypatch: Any
) -> None:
    from mm_assets.assets import models
    from mm_assets.cli import walk, workspace

    space = workspace(str(yaml))
    assert walk(space, ["clinical", "splits_survival"]) == {}
    monkeypatch.setenv("MM_LAUNCHER", "sagemaker")
    # Jobs are processes of their own: they do not see what is changed here.
    ours = models._clinical_stage
    monkeypatch.setattr(
        models, "_clinical_stage", lambda *given: replace(ours(*given), code_version="newer")
    )
    failures = walk(space, ["clinical_cox_survival"])
    assert "another version of mm_assets" in failures["clinical_cox_survival"]
    assert keys(f"{remote_store}/tiny/_jobs") == []


def leave_running(space: Workspace, stage: str) -> str:
    """A job of a stage that an orchestrator left, of inputs that are no more."""
    from mm_assets.assets.compute import Compute
    from mm_assets.resources.sagemaker_request import TRAINING, Place

    jobs = client(f"{space.store.uri}/tiny/_jobs/{stage}")
    name = "mm-tiny-left-0f3a-1"
    folder = jobs.folder(name)
    folder.put("order.json", b'{"fingerprint": "of other inputs"}')
    place = Place(folder.inputs, folder.outputs, f"{folder.address}/state")
    sleep = ("python", "-c", "import time; time.sleep(600)")
    request = jobs.settings.request(TRAINING, place, Compute(), {}, sleep)
    boto3.client("sagemaker", region_name="eu-west-2").create_training_job(
        TrainingJobName=name, **request
    )
    return name


def shown(asset: str) -> dict[str, Any]:
    """Metadata of an asset's last materialization."""
    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", asset]))
    assert event
    assert event.asset_materialization
    return dict(event.asset_materialization.metadata)

"""Trainings and predictions done by jobs of SageMaker: what they make, and what Dagster shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest

from deploy.local.sagemaker.packages import ModelRegistry
from deploy.local.sagemaker.server import SageMaker
from deploy.local.sagemaker.training import TrainingJob
from mm_assets.assets.stage import CohortStage, Workspace
from mm_assets.cohort.folders import training_folder
from mm_assets.resources import sagemaker as module
from mm_assets.resources.model_packages import group_name
from mm_assets.resources.tracking import MIRROR
from mm_assets_tests.cohorts import Cohort
from mm_assets_tests.sagemaker import client, forget, keys, logged, tables_only, wait_for


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
    job = next(j for n, j in sagemaker_settings.training.items() if "-porpoise-snn-" in n)
    billed = job.describe()["BillableTimeInSeconds"]
    assert told["gpu_seconds"].value == billed > told["seconds"].value
    assert told["cost"].value == pytest.approx(billed)
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

    # Long beside the start of a job, so that its limit leaves time for something to keep.
    long = yaml.read_text().replace("epochs: 2", "epochs: 400")
    yaml.write_text(long)
    space = workspace(str(yaml))
    name = "porpoise_snn_survival"
    assert walk(space, ["clinical", "omics", "splits_survival", name]) == {}
    whole = space.receipts.read_all("tiny", name)["cohort"]
    forget(space, {name: ["cohort"]})

    # A job starts Python too: it cannot be done in less time than the work alone took here.
    hours = 0.8 * whole.seconds / 3600
    hasty = f"{long}  compute: {{{name}: {{launcher: sagemaker, hours: {hours}}}}}\n"
    yaml.write_text(hasty)
    Cohort(yaml, home).killed_materialize(name, when=lambda: sagemaker_settings.training)
    yaml.write_text(hasty.replace(f"hours: {hours}", "hours: 1"))
    assert walk(workspace(str(yaml)), [name]) == {}
    first, second = sagemaker_settings.training.values()
    assert "MaxRuntimeExceeded" in [phase for phase, _ in first.phases]
    assert second.status == "Completed"
    assert any(f"{name} goes on where it was ended, in repeat" in line for line in logged())
    assert space.receipts.read_all("tiny", name)["cohort"].outputs == whole.outputs
    assert keys(f"{remote_store}/tiny/_jobs") == []
    assert not training_folder("tiny", name).exists()


def test_a_job_with_a_longer_limit_gets_what_the_last_one_kept(
    home: Path,
    yaml: Path,
    remote_store: str,
    sagemaker_settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its checkpoints; what it is billed is told, and its model is mirrored."""
    from mm_assets.cli import walk, workspace

    assert walk(workspace(str(yaml)), ["clinical", "splits_survival"]) == {}
    name, given = "clinical_cox_survival", yaml.read_text()
    limits = f"{given}  compute: {{{name}: {{launcher: sagemaker, hours: 0.0003}}}}\n"
    yaml.write_text(limits)
    assert "limit of" in walk(workspace(str(yaml)), [name])[name]
    (first,) = sagemaker_settings.training.values()
    assert "MaxRuntimeExceeded" in [phase for phase, _ in first.phases]
    assert keys(f"{remote_store}/tiny/_jobs") == []
    kept = checkpoints(first).removeprefix("s3://artefacts/")
    boto3.client("s3").put_object(Bucket="artefacts", Key=f"{kept}/epoch", Body=b"3")

    yaml.write_text(limits.replace("0.0003", "1"))
    space, group = workspace(str(yaml)), group_name("tiny.survival.clinical_cox")
    monkeypatch.setenv(MIRROR, "1")
    assert walk(space, [name]) == {}
    _, second = sagemaker_settings.training.values()
    assert second.place("/opt/ml/checkpoints/epoch").read_text() == "3"
    told = shown(name)
    billed = second.describe()["BillableTimeInSeconds"]
    assert told["cost"].value == pytest.approx(billed)
    assert billed > told["seconds"].value
    assert packages(sagemaker_settings) == [(group, "Approved")]
    assert keys(f"{remote_store}/tiny/_jobs") == []

    # As after a kill while a job went on: its order is there, and no package.
    client(f"{space.store.uri}/tiny/_jobs/{name}").folder(second.name).put("order.json", b"{}")
    sagemaker_settings.registry = ModelRegistry("arn:aws:sagemaker:eu-west-2:123456789012")
    monkeypatch.setattr(module, "LEFT_SECONDS", -1.0)
    assert walk(space, [name]) == {}
    assert packages(sagemaker_settings) == [(group, "Approved")]
    assert len(sagemaker_settings.training) == 2
    assert keys(f"{remote_store}/tiny/_jobs") == []


@pytest.mark.stress
def test_what_an_ended_job_left_is_removed_by_a_later_run(
    home: Path,
    yaml: Path,
    remote_store: str,
    sagemaker_settings: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kill -9 of `mm`; its job ends alone, so that there is nothing more to do."""
    from mm_assets.cli import walk, workspace

    name = "clinical_cox_survival"
    assert walk(workspace(str(yaml)), ["clinical", "splits_survival"]) == {}
    monkeypatch.setenv("MM_LAUNCHER", "sagemaker")
    Cohort(yaml, home).killed_materialize(name, when=lambda: sagemaker_settings.training)
    (job,) = sagemaker_settings.training.values()
    wait_for(lambda: job.is_over)
    assert walk(workspace(str(yaml)), [name]) == {}
    assert any(key.endswith("model.tar.gz") for key in keys(f"{remote_store}/tiny/_jobs"))
    monkeypatch.setattr(module, "LEFT_SECONDS", -1.0)
    assert walk(workspace(str(yaml)), [name]) == {}
    assert keys(f"{remote_store}/tiny/_jobs") == []
    assert len(sagemaker_settings.training) == 1


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
    place = Place(folder.inputs, folder.outputs, jobs.checkpoints(name).address)
    work = "import pathlib, time; pathlib.Path('/opt/ml/checkpoints/epoch').write_text('3'); "
    command = ("python", "-c", f"{work}time.sleep(600)")
    request = jobs.settings.request(TRAINING, place, Compute(), {}, command)
    boto3.client("sagemaker", region_name="eu-west-2").create_training_job(
        TrainingJobName=name, **request
    )
    wait_for(lambda: keys(jobs.checkpoints(name).prefix))
    return name


def packages(service: SageMaker) -> list[tuple[str, str]]:
    """Group and approval of all model packages."""
    found = service.registry.packages.values()
    return [(one["ModelPackageGroupName"], one["ModelApprovalStatus"]) for one in found]


def checkpoints(job: TrainingJob) -> str:
    """Address at which a job keeps its state."""
    address: str = job.request["CheckpointConfig"]["S3Uri"]
    return address


def shown(asset: str) -> dict[str, Any]:
    """Metadata of an asset's last materialization."""
    from mm_assets.resources.home import dagster_instance

    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(["tiny", asset]))
    assert event
    assert event.asset_materialization
    return dict(event.asset_materialization.metadata)

"""Processing jobs on the local SageMaker server, which runs them as processes."""

import os
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.sagemaker.server import SageMaker
from mm_assets.assets.compute import Compute
from mm_assets.resources import sagemaker as module
from mm_assets.resources.job_folder import ORDER
from mm_assets.resources.sagemaker import CapacityError, PipesSageMakerClient, SageMakerError
from mm_assets.resources.sagemaker_request import PROCESSING, TRAINING, JobKind, Place, job_name
from mm_assets_tests.sagemaker import client, in_asset, run_worker, wait_for, worked

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def root() -> str:
    """Address for the jobs of one test."""
    return f"s3://artefacts/{uuid.uuid4().hex}/jobs"


@pytest.fixture
def jobs(sagemaker: SageMaker, root: str) -> PipesSageMakerClient:
    """A client of the server."""
    return client(root)


def keys_left(root: str) -> list[str]:
    """Keys below an address."""
    prefix = root.removeprefix("s3://artefacts/")
    found = boto3.client("s3").list_objects_v2(Bucket="artefacts", Prefix=prefix)
    return [item["Key"] for item in found.get("Contents", [])]


def creations(service: SageMaker) -> int:
    names = ("CreateProcessingJob", "CreateTrainingJob")
    return sum(operation in names for operation, _ in service.calls)


@pytest.mark.parametrize("kind", [PROCESSING, TRAINING])
def test_a_job_tells_what_it_does_and_leaves_nothing(
    jobs: PipesSageMakerClient,
    sagemaker: SageMaker,
    root: str,
    capfd: pytest.CaptureFixture[str],
    kind: JobKind,
) -> None:
    billed: list[float] = []
    assert worked(jobs, "succeed", kind=kind, on_billed=billed.append) == ["begun", "done"]
    (job,) = (sagemaker.jobs if kind is PROCESSING else sagemaker.training).values()
    assert job.status == "Completed"
    assert job.ended
    assert job.started
    # The service tells whole seconds of trainings.
    assert billed == [pytest.approx(job.ended - job.started, abs=0.51)]
    assert keys_left(root) == []
    assert "behaviour: succeed" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raise", "no such slide"),
        ("crash", "exit code: 3"),
        ("silent", "without having said that it is finished"),
    ],
)
@pytest.mark.parametrize("kind", [PROCESSING, TRAINING])
def test_what_fails_is_not_tried_again(
    jobs: PipesSageMakerClient,
    sagemaker: SageMaker,
    root: str,
    behaviour: str,
    message: str,
    kind: JobKind,
) -> None:
    billed: list[float] = []
    with pytest.raises(SageMakerError, match=message) as failure:
        worked(jobs, behaviour, kind=kind, on_billed=billed.append)
    assert len(billed) == 1
    assert billed[0] > 0
    assert f"behaviour: {behaviour}" in str(failure.value)
    assert creations(sagemaker) == 1
    assert keys_left(root) == []


def test_throttled_requests_are_repeated(jobs: PipesSageMakerClient, sagemaker: SageMaker) -> None:
    sagemaker.faults["CreateProcessingJob"] += ["ThrottlingException"] * 2
    sagemaker.faults["DescribeProcessingJob"] += ["ThrottlingException"]
    assert worked(jobs, "succeed") == ["begun", "done"]
    assert len(sagemaker.jobs) == 1
    # The name is taken for ever.
    assert worked(jobs, "succeed") == ["begun", "done"]
    assert list(sagemaker.jobs) == ["mm-succeed-0f3a-1", "mm-succeed-0f3a-2"]


def test_without_a_machine_another_job_is_tried(
    jobs: PipesSageMakerClient, sagemaker: SageMaker, root: str
) -> None:
    sagemaker.without_capacity = 1
    sagemaker.faults["CreateProcessingJob"] += ["ResourceLimitExceeded"]
    billed: list[float] = []
    assert worked(jobs, "succeed", on_billed=billed.append) == ["begun", "done"]
    assert list(sagemaker.jobs) == ["mm-succeed-0f3a-2", "mm-succeed-0f3a-3"]
    assert billed[0] == 0  # there was no machine
    assert billed[1] > 0
    sagemaker.without_capacity = 9
    with pytest.raises(CapacityError, match="Unable to provision"):
        worked(jobs, "succeed", name="again")
    with pytest.raises(SageMakerError, match="no further name"):
        worked(jobs, "succeed", names=("the-only-one",))
    assert keys_left(root) == []


@pytest.mark.parametrize("kind", [PROCESSING, TRAINING])
def test_time_limit(jobs: PipesSageMakerClient, root: str, kind: JobKind) -> None:
    with pytest.raises(SageMakerError, match=r"Stopped: .*limit of 0.001 hours"):
        worked(jobs, "for ever", compute=Compute(hours=0.001), kind=kind)
    assert keys_left(root) == []


def test_a_training_goes_on_where_it_was_ended(jobs: PipesSageMakerClient, root: str) -> None:
    short = {"compute": Compute(hours=0.0015), "kind": TRAINING}
    with pytest.raises(SageMakerError, match="limit of"):
        worked(jobs, "count", **short)
    assert [key.rpartition("/")[2] for key in keys_left(root)] == ["epoch"]
    first, *_ = worked(jobs, "count", kind=TRAINING)
    assert first.startswith("begun at ")
    assert int(first.removeprefix("begun at ")) > 0
    assert keys_left(root) == []


def test_what_the_service_refuses_is_told(sagemaker: SageMaker, root: str) -> None:
    with pytest.raises(ClientError, match="length less than or equal to 256"):
        worked(client(root, environment={"MANY": "x" * 257}), "succeed")
    assert not sagemaker.jobs
    assert keys_left(root) == []


@pytest.mark.stress
def test_many_jobs_at_once(jobs: PipesSageMakerClient, sagemaker: SageMaker, root: str) -> None:
    names = [f"job{number}" for number in range(20)]

    def work(context: Any) -> list[list[str]]:
        with ThreadPoolExecutor(len(names)) as pool:
            runs = pool.map(lambda name: run_worker(jobs, context, "succeed", name), names)
            return list(runs)

    assert in_asset(work) == [["begun", "done"]] * len(names)
    assert len(sagemaker.jobs) == len(names)
    assert keys_left(root) == []


def test_adoption_after_kill(sagemaker: SageMaker, root: str) -> None:
    process = _orchestrator(root, "some seconds")
    wait_for(lambda: any("/messages/" in key for key in keys_left(root)))
    process.kill()
    process.wait()
    assert worked(client(root), "some seconds") == ["begun", "done"]
    assert len(sagemaker.jobs) == 1
    assert creations(sagemaker) == 2  # the second was refused
    assert keys_left(root) == []


def test_a_job_that_ended_before_its_run_looked_keeps_its_messages(
    sagemaker: SageMaker, root: str
) -> None:
    process = _orchestrator(root, "some seconds")
    wait_for(lambda: sagemaker.jobs)
    process.send_signal(signal.SIGSTOP)
    (job,) = sagemaker.jobs.values()
    wait_for(lambda: job.is_over)
    others = client(root)
    assert list(others.known()) == [job.name]
    others.tidy(job.name, PROCESSING)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert keys_left(root) == []


@pytest.mark.parametrize("kind", [PROCESSING, TRAINING])
def test_what_a_killed_run_left_is_removed_later(
    jobs: PipesSageMakerClient,
    sagemaker: SageMaker,
    root: str,
    kind: JobKind,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An order whose job was never created, and a job that ended with nobody there."""
    never, ended = "mm-never-0f3a-1", "mm-ended-0f3a-1"
    for name in (never, ended):
        jobs.folder(name).put(ORDER, b"{}")
        jobs.checkpoints(name).put("epoch", b"3")
    folder = jobs.folder(ended)
    place = Place(folder.inputs, folder.outputs, jobs.checkpoints(ended).address)
    request = jobs.settings.request(kind, place, Compute(), {}, ("python", "-c", "pass"))
    service = boto3.client("sagemaker", region_name="eu-west-2")
    create = getattr(service, f"create_{kind.word.lower()}_job")
    create(**{f"{kind.word}JobName": ended}, **request)
    made = sagemaker.jobs if kind is PROCESSING else sagemaker.training
    wait_for(lambda: made[ended].is_over)
    for name in (never, ended):
        jobs.tidy(name, kind)
    assert set(jobs.known()) == {never, ended}
    monkeypatch.setattr(module, "LEFT_SECONDS", -1.0)
    for name in (never, ended):
        jobs.tidy(name, kind)
    assert keys_left(root) == []


def test_interrupted_jobs_are_stopped(sagemaker: SageMaker, root: str) -> None:
    process = _orchestrator(root, "for ever")
    wait_for(lambda: any("/messages/" in key for key in keys_left(root)))
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert process.returncode != 0
    assert [job.status for job in sagemaker.jobs.values()] == ["Stopped"]
    assert keys_left(root) == []


def test_outputs_are_brought_back(sagemaker: SageMaker, root: str) -> None:
    """The server's own: what a job writes to an output folder is on S3 afterwards."""
    service = boto3.client("sagemaker", region_name="eu-west-2")
    name = "mm-output-1"
    script = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); "
    script += "(p / 'made.txt').write_text('made')"
    nowhere = Place(f"{root}/none", "", "")
    request = client(root).settings.request(
        PROCESSING, nowhere, Compute(), {}, ("python", "-c", script)
    )
    request["AppSpecification"]["ContainerArguments"] = ["/opt/ml/processing/output"]
    place = {"S3Uri": f"{root}/out", "LocalPath": "/opt/ml/processing/output"}
    output = {"OutputName": "out", "S3Output": {**place, "S3UploadMode": "EndOfJob"}}
    service.create_processing_job(
        ProcessingJobName=name, **request, ProcessingOutputConfig={"Outputs": [output]}
    )
    wait_for(lambda: sagemaker.jobs[name].status == "Completed")
    assert [key.rpartition("/")[2] for key in keys_left(root)] == ["made.txt"]


@given(
    parts=st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True), min_size=1, max_size=3),
    attempt=st.integers(1, 999),
)
def test_names_are_what_the_service_takes(parts: list[str], attempt: int) -> None:
    from deploy.local.sagemaker.validation import problems

    name = job_name(*parts, digest="0123456789ab", attempt=attempt)
    assert problems("StopProcessingJob", {"ProcessingJobName": name}) == []
    assert name.endswith(f"-0123456789ab-{attempt}")


def _orchestrator(root: str, behaviour: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "mm_assets_tests.sagemaker", root, behaviour],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

"""Searches by tuning jobs of the local SageMaker server, whose trials do next to nothing."""

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from deploy.local.sagemaker.server import SageMaker
from deploy.local.sagemaker.site import Site
from mm_assets.assets.compute import Compute
from mm_assets.models.tuning import Range
from mm_assets.resources.sagemaker import CAPACITY_ATTEMPTS, CapacityError, SageMakerError
from mm_assets.resources.sagemaker_tuning import Trial, TuningJobs, TuningSearch
from mm_assets_tests.deploy.training_jobs import WORKER, service, wait_until
from mm_assets_tests.sagemaker import keys, tables_only

NEVER, FIRST_ATTEMPT = "never", "-1-00"  # parts of the names of slow or failing trials


@pytest.fixture
def sagemaker_site(s3_environment: str, tmp_path: Path) -> Site:
    """A place whose image has the tests' worker as `train`."""
    train = ("python", str(WORKER))
    return Site(tmp_path / "sagemaker", s3_environment, grace_seconds=5, train=train)


@pytest.fixture
def jobs(home: Path, tmp_path: Path, remote_store: str) -> TuningJobs:
    """Two trials a search, looked at often."""
    from mm_assets.cli import workspace

    space = workspace(str(tables_only(tmp_path / "tiny", prices={"ml.m5.large": 2.0})))
    compute = Compute(hours=0.5, launcher="sagemaker")
    made = TuningJobs(space, "heec_settings_survival", compute, trials=2, parallel=1)
    made.settings = replace(made.settings, poll_seconds=0.1, capacity_seconds=0.1)
    return made


def search(
    jobs: TuningJobs, *names: str, slow: str = NEVER, fails: str = NEVER
) -> dict[str, list[Trial]]:
    """Finished trials of searches of these names."""
    space = {"rate": Range(0.5, 2.0)}
    searches = {
        name: TuningSearch(
            {"behaviour": "gains", "name": name, "slow": slow, "fails": fails}, space
        )
        for name in names
    }
    return jobs.run(searches, {"told": "alike"}, {}, lambda: None)


def await_a_gain(sagemaker: SageMaker) -> None:
    """Wait until a trial has told it."""
    wait_until(lambda: any(job.metrics.value("gain") for job in sagemaker.training.values()))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard also by tests that were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end_and_leaves_nothing(
    jobs: TuningJobs, sagemaker: SageMaker, remote_store: str, interruptible: None
) -> None:
    def interrupt() -> None:
        await_a_gain(sagemaker)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        search(jobs, "a", slow=FIRST_ATTEMPT)
    assert [job.status for job in sagemaker.tuning.values()] == ["Stopped"]
    assert keys(f"{remote_store}/tiny/_jobs") == []


def test_what_is_being_stopped_is_not_adopted(
    jobs: TuningJobs, sagemaker: SageMaker, remote_store: str
) -> None:
    told = list[str]()

    def begin() -> None:
        try:
            search(jobs, "a", slow=FIRST_ATTEMPT)
        except SageMakerError as error:
            told.append(str(error))

    first = Thread(target=begin)
    first.start()
    await_a_gain(sagemaker)
    (left,) = sagemaker.tuning.values()
    service().stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=left.name)
    assert left.status == "Stopping"
    assert len(search(jobs, "a", slow=FIRST_ATTEMPT)["a"]) == 2
    first.join()
    assert "Stopped" in told[0]
    assert [job.status for job in sagemaker.tuning.values()] == ["Stopped", "Completed"]
    assert keys(f"{remote_store}/tiny/_jobs") == []


def test_a_full_quota_is_waited_for(
    jobs: TuningJobs, sagemaker: SageMaker, remote_store: str
) -> None:
    sagemaker.tuning.quota = 1
    trials = search(jobs, "a", "b", "c")
    assert {name: len(each) for name, each in trials.items()} == {"a": 2, "b": 2, "c": 2}
    created = [call for call, _ in sagemaker.calls if call == "CreateHyperParameterTuningJob"]
    assert len(created) > CAPACITY_ATTEMPTS + 3
    assert keys(f"{remote_store}/tiny/_jobs") == []


def test_no_quota_at_all(jobs: TuningJobs, sagemaker: SageMaker, remote_store: str) -> None:
    sagemaker.tuning.quota = 0
    with pytest.raises(CapacityError, match="service limit is 0"):
        search(jobs, "a")
    assert len(sagemaker.calls) == CAPACITY_ATTEMPTS
    assert keys(f"{remote_store}/tiny/_jobs") == []


def test_what_searches_may_cost_and_have_taken(
    jobs: TuningJobs, sagemaker: SageMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mm_assets")
    trials = search(jobs, "a", "b")
    assert "4 trials on ml.m5.large, at most 2 hours, at most 4.00" in caplog.messages
    took = sum(trial.seconds for each in trials.values() for trial in each)
    assert jobs.seconds == pytest.approx(took)
    assert took > 0


def test_trials_that_fail_cost_too(jobs: TuningJobs, sagemaker: SageMaker) -> None:
    (trial,) = search(jobs, "a", fails="-001-")["a"]
    assert jobs.seconds > trial.seconds


def test_faults_of_the_service_cost_no_trial(jobs: TuningJobs, sagemaker: SageMaker) -> None:
    sagemaker.internal_errors = 3
    assert len(search(jobs, "a")["a"]) == 2
    assert sagemaker.internal_errors == 0

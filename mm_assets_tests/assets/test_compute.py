"""Compute declarations and the GPU lease, with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mm_assets.assets.compute import Compute, gpu_lease
from mm_assets.cohort.config import ComputeOverride
from mm_assets_tests.cohorts import make_cohort

HOLD = """
import sys, time
from mm_assets.assets.compute import Compute, gpu_lease
with gpu_lease(Compute(gpu=1), devices=2, poll_seconds=0.05) as held:
    print(held[0], flush=True)
    time.sleep(60)
"""


def _hold(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MM_HOME": str(home)},
    )


def test_devices_are_leased_apart_and_freed_by_a_kill(home: Path) -> None:
    first, second = _hold(home), _hold(home)
    third = None
    try:
        assert first.stdout
        assert second.stdout
        held = {int(first.stdout.readline()), int(second.stdout.readline())}
        assert held == {0, 1}
        third = _hold(home)
        time.sleep(0.5)
        assert third.poll() is None
        second.send_signal(signal.SIGKILL)
        second.wait()
        assert third.stdout
        assert int(third.stdout.readline()) in held
    finally:
        for process in (first, second, third):
            if process:
                process.kill()
                process.wait()


def test_lease_names_the_device_and_restores_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with gpu_lease(Compute(gpu=2), devices=2) as held:
        assert held == (0, 1)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_later_leases_of_a_process_are_of_the_devices_that_cuda_was_initialised_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    other = _hold(home)
    try:
        assert other.stdout
        assert other.stdout.readline() == "0\n"
        with gpu_lease(Compute(gpu=1), devices=2, poll_seconds=0.05) as held:
            assert held == (1,)
    finally:
        other.kill()
        other.wait()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with gpu_lease(Compute(gpu=1), devices=2, poll_seconds=0.05) as held:
        assert held == (1,)
    with pytest.raises(RuntimeError, match="before torch"), gpu_lease(Compute(gpu=2), devices=2):
        pass


def test_no_lease_without_devices(home: Path) -> None:
    with gpu_lease(Compute(gpu=1), devices=0) as held:
        assert held == ()


def test_more_devices_than_the_machine_has_are_refused(home: Path) -> None:
    with pytest.raises(ValueError, match="3 GPUs wanted"), gpu_lease(Compute(gpu=3), devices=2):
        pass


@pytest.mark.parametrize(
    ("compute", "instance"),
    [
        (Compute(cpu=1, memory_gib=4), "ml.m5.large"),
        (Compute(cpu=8, memory_gib=16), "ml.m5.4xlarge"),
        (Compute(gpu=1, cpu=4, memory_gib=16), "ml.g5.xlarge"),
        (Compute(gpu=2, cpu=8, memory_gib=64), "ml.g5.12xlarge"),
    ],
)
def test_smallest_instance_that_fits(compute: Compute, instance: str) -> None:
    assert compute.sagemaker_instance == instance


def test_unsatisfiable_needs_are_named() -> None:
    with pytest.raises(ValueError, match="gpu=9"):
        _ = Compute(gpu=9).sagemaker_instance


def test_one_declaration_reaches_every_backend() -> None:
    compute = Compute(gpu=1, cpu=4, memory_gib=16, gpu_kind="nvidia-a10g")
    tags = compute.op_tags()
    container = tags["dagster-k8s/config"]
    assert compute.pool == "gpu"
    assert tags["ecs/cpu"] == "4096"
    assert tags["ecs/memory"] == "16384"
    assert "'nvidia.com/gpu': '1'" in str(container)
    assert "nvidia-a10g" in str(container)
    assert Compute().pool is None


def test_a_step_that_follows_a_remote_job_needs_little_itself() -> None:
    compute = Compute(gpu=1, cpu=8, memory_gib=64, launcher="sagemaker")
    tags = compute.op_tags()
    assert tags["dagster-ray/config"] == {"num_cpus": 1, "num_gpus": 0, "memory": 4 * 2**30}
    assert tags["ecs/cpu"] == "1024"
    assert "nvidia" not in str(tags["dagster-k8s/config"])
    assert tags["mm_assets/sagemaker_instance"] == "ml.g5.4xlarge"


def test_yaml_overrides_only_what_it_names() -> None:
    compute = Compute(gpu=1, cpu=4, chunk=200).overridden(ComputeOverride(chunk=10))
    assert compute == Compute(gpu=1, cpu=4, chunk=10)


def test_keys_of_compute_that_name_no_stage_are_refused(home: Path, tmp_path: Path) -> None:
    from mm_assets.cli import app, workspace
    from mm_assets.cohort.problems import CohortError
    from mm_assets.component import CohortComponent

    override = {"chunk": 10}
    wrong = {"tile_embedings": override, "region_embeddings": override, "x": override}
    yaml = make_cohort(
        tmp_path / "tiny", 12, slides=1, omics=None, compute={"tissue": override, **wrong}
    )
    with pytest.raises(CohortError) as refused:
        CohortComponent(workspace(str(yaml)).config).definitions()
    assert [problem.where for problem in refused.value.problems] == [f"compute.{k}" for k in wrong]
    assert [problem.fix for problem in refused.value.problems[:2]] == [
        "did you mean 'tile_embeddings'?",
        "use compute.tile_embeddings",
    ]
    assert "tissue" in refused.value.problems[2].fix
    for command in (["check", str(yaml), "--json"], ["materialize", str(yaml), "--plan"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 1
        assert "compute.tile_embedings" in result.output + str(result.exception)

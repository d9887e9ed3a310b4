"""What an asset's heavy part needs, declared once, and the lease that hands out a GPU."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import get_args

from mm_assets.cohort.config import ComputeOverride, LauncherName
from mm_assets.cohort.folders import mm_home
from mm_assets.resources.engine import ECS, LOCAL, engine

GPU_POOL = "gpu"
_GPU_TASKS = ("MM_GPU_TASK_DEFINITION", "MM_GPU_CAPACITY_PROVIDER")  # on ECS

_leased: tuple[int, ...] = ()  # devices of this process's last lease

# Cheapest SageMaker instance that satisfies (GPUs, CPUs, memory in GiB).
_INSTANCES = (
    ("ml.m5.large", 0, 2, 8),
    ("ml.m5.xlarge", 0, 4, 16),
    ("ml.m5.4xlarge", 0, 16, 64),
    ("ml.m5.12xlarge", 0, 48, 192),
    ("ml.g5.xlarge", 1, 4, 16),
    ("ml.g5.4xlarge", 1, 16, 64),
    ("ml.g5.12xlarge", 4, 48, 192),
    ("ml.p4d.24xlarge", 8, 96, 1152),
)


@dataclass(frozen=True)
class Compute:
    """Needs of one asset; the pool and every backend's settings are derived from it.

    Attributes
    ----------
    gpu, cpu
        Devices and cores one run of the asset uses.
    memory_gib
        Host memory in GiB.
    gpu_kind
        Device model a scheduler should pick (for example ``nvidia-a10g``), if it matters.
    chunk
        Slides one run of a per-slide asset handles.
    hours
        Longest time a job of a remote launcher may take.
    launcher
        Where the work is done: by default as the environment's `MM_LAUNCHER` says, else here.
    """

    gpu: int = 0
    cpu: int = 1
    memory_gib: float = 4.0
    gpu_kind: str | None = None
    chunk: int = 500
    hours: float = 24.0
    launcher: str = field(default_factory=lambda: os.environ.get("MM_LAUNCHER", "local"))

    def __post_init__(self) -> None:
        if self.launcher not in get_args(LauncherName):
            known = " and ".join(get_args(LauncherName))
            raise ValueError(f"no launcher is named {self.launcher!r}; there are {known}")

    def overridden(self, override: ComputeOverride | None) -> "Compute":
        """The same needs with the values that a cohort's YAML sets."""
        if override is None:
            return self
        return replace(self, **override.model_dump(exclude_none=True))

    @property
    def pool(self) -> str | None:
        """Dagster pool that bounds how many such runs use this machine's devices at once.

        A cluster hands out its devices itself, and a remote launcher needs none here.
        """
        here = self.launcher == "local" and engine() == LOCAL
        return GPU_POOL if self.gpu and here else None

    @property
    def sagemaker_instance(self) -> str:
        """Smallest SageMaker instance type that satisfies the needs.

        Raises
        ------
        ValueError
            When no known instance type is large enough.
        """
        for name, gpu, cpu, memory in _INSTANCES:
            if gpu >= self.gpu and cpu >= self.cpu and memory >= self.memory_gib:
                if self.gpu == 0 and gpu:
                    continue
                return name
        raise ValueError(f"no SageMaker instance type satisfies {self}")

    def op_tags(self) -> dict[str, object]:
        """Dagster op tags read by the ECS and Kubernetes launchers, Ray and SageMaker.

        A step that only follows a remote launcher's job needs little itself.
        """
        here = self if self.launcher == "local" else Compute(launcher=self.launcher)
        return {
            "dagster-k8s/config": here._kubernetes(),
            **here._ecs(),
            "dagster-ray/config": {
                "num_cpus": here.cpu,
                "num_gpus": here.gpu,
                "memory": int(here.memory_gib * 2**30),
            },
            "mm_assets/sagemaker_instance": self.sagemaker_instance,
        }

    def _ecs(self) -> dict[str, str]:
        if not self.gpu or engine() != ECS:
            return {
                "ecs/cpu": str(self.cpu * 1024),
                "ecs/memory": str(int(self.memory_gib * 1024)),
            }
        if self.gpu > 1:
            raise ValueError(f"{self.gpu} GPUs wanted, a task of ECS has one: use sagemaker")
        # Such a task has its machine, with cores and memory, to itself.
        try:
            task, capacity = (os.environ[name] for name in _GPU_TASKS)
        except KeyError:
            raise ValueError(f"MM_ENGINE=ecs: set {' and '.join(_GPU_TASKS)}") from None
        strategy = [{"capacityProvider": capacity}]
        request = {"taskDefinition": task, "capacityProviderStrategy": strategy}
        return {"ecs/run_task_kwargs": json.dumps(request)}

    def _kubernetes(self) -> dict[str, object]:
        needs = {"cpu": str(self.cpu), "memory": f"{self.memory_gib:g}Gi"}
        resources: dict[str, object] = {"requests": needs}
        if self.gpu:
            resources["limits"] = {"nvidia.com/gpu": str(self.gpu)}
        kind = {"node_selector": {"nvidia.com/gpu.product": self.gpu_kind}} if self.gpu_kind else {}
        return {"container_config": {"resources": resources}, "pod_spec_config": kind}


@cache
def gpu_count() -> int:
    """Number of NVIDIA devices on this machine, found without importing torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return listing.stdout.count("GPU ") if listing.returncode == 0 else 0


@contextmanager
def gpu_lease(
    compute: Compute, devices: int | None = None, poll_seconds: float = 0.5
) -> Iterator[tuple[int, ...]]:
    """Hold `compute.gpu` devices of this machine, or none where there is no device.

    A lock file per device is the lease: the kernel frees it when the process dies, however it
    dies. CUDA_VISIBLE_DEVICES names the devices held, so the first lease of a process must be
    taken before torch initialises CUDA; CUDA stays with these devices, and so do later leases.

    Raises
    ------
    ValueError
        When the asset wants more devices than the machine has.
    RuntimeError
        When torch has already initialised CUDA in this process, without a lease or with one of
        another number of devices.
    """
    global _leased
    available = gpu_count() if devices is None else devices
    if not compute.gpu or not available:
        yield ()
        return
    if compute.gpu > available:
        raise ValueError(f"{compute.gpu} GPUs wanted, this machine has {available}")
    torch = sys.modules.get("torch")
    bound = torch is not None and torch.cuda.is_initialized()
    if bound and len(_leased) != compute.gpu:
        raise RuntimeError("the GPU lease must be taken before torch initialises CUDA")
    folder = mm_home() / "leases"
    folder.mkdir(parents=True, exist_ok=True)
    choice = _leased if bound else tuple(range(available))
    handles = _lock_devices(folder, compute.gpu, choice, poll_seconds)
    _leased = tuple(handles)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, handles))
    try:
        yield tuple(handles)
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        for handle in handles.values():
            os.close(handle)


def _lock_devices(
    folder: Path, wanted: int, choice: Sequence[int], poll_seconds: float
) -> dict[int, int]:
    while True:
        held: dict[int, int] = {}
        for device in choice:
            handle = os.open(folder / f"gpu{device}.lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            held[device] = handle
            if len(held) == wanted:
                return held
        # All or nothing: holding some devices while waiting for more could deadlock two assets.
        for handle in held.values():
            os.close(handle)
        time.sleep(poll_seconds)

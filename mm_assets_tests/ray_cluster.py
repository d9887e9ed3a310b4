"""A real Ray cluster for tests: a head and workers that share no folder."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ray.job_submission import JobDetails, JobSubmissionClient

from mm_assets_tests.daemon import free_port

HEAD = "head"
_MARK = "MM_TEST_NODE"
# Else a step that waits for a device longer than a quarter of an hour is given up.
_PATIENCE = {"RAY_JOB_START_TIMEOUT_SECONDS": "604800"}
_COMMON = ("--disable-usage-stats", "--object-store-memory=100000000")


@dataclass
class RayCluster:
    """A head that takes no work; every other node has an address of its own.

    Attributes
    ----------
    folder
        Outputs of the nodes.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    _addresses: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Of the job server."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start_head(self) -> None:
        """Start the cluster."""
        ports = (f"--port={self.port}", f"--dashboard-port={self.dashboard}")
        self._start(
            HEAD, _PATIENCE, "--head", *ports, "--num-cpus=0", "--num-gpus=0", "--memory=78643200"
        )

    def start_node(self, name: str, cpus: int, gpus: int, environment: Mapping[str, str]) -> None:
        """Add a worker; nobody checks the cores, devices and memory that it declares."""
        needs = (f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--memory=34359738368")
        self._start(name, environment, f"--address=127.0.0.1:{self.port}", *needs)

    def kill(self, name: str) -> None:
        """End every process of a node at once, as a power cut does."""
        while processes := _processes(f"{self.port}.{name}"):
            for process in processes:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(processes, timeout=10)

    def kill_all(self) -> None:
        """End all nodes."""
        for name in [name for name in self._addresses if name != HEAD] + [HEAD]:
            self.kill(name)

    def jobs(self) -> list[JobDetails]:
        """All jobs, of steps and of runs, ended ones included."""
        return JobSubmissionClient(self.address).list_jobs()

    def node_of(self, job: JobDetails) -> str:
        """Name of the node that a job ran on, nothing while it waits for one."""
        names = {address: name for name, address in self._addresses.items()}
        host = (job.driver_agent_http_address or "").removeprefix("http://").partition(":")[0]
        return names.get(host, "")

    def _start(self, name: str, environment: Mapping[str, str], *options: str) -> None:
        # A node that replaces another is another machine.
        host = f"127.0.0.{1 + len(self._addresses)}"
        self._addresses[name] = host
        log = self.folder / f"{name}.log"
        with log.open("w") as sink:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", *options, *_COMMON),
                    *(f"--node-ip-address={host}", f"--dashboard-agent-listen-port={free_port()}"),
                ],
                env={**os.environ, **environment, _MARK: f"{self.port}.{name}"},
                stdout=sink,
                stderr=sink,
                timeout=120,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"Ray's node {name} did not start:\n{log.read_text()}")


@contextmanager
def running_ray(folder: Path) -> Iterator[RayCluster]:
    """The head, from start to end; all nodes end with it."""
    cluster = RayCluster(folder)
    try:
        cluster.start_head()
        time.sleep(1)
        yield cluster
    finally:
        cluster.kill_all()


def _processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                found.append(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found

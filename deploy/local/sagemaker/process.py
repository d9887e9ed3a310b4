"""A job that runs a process: fetch its files, execute it, keep what it made.

The image is not looked at: the command runs in the Python that runs this, with the job's folder
mounted on ``/opt/ml``.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3

from deploy.local.sagemaker.jobs import Job
from deploy.local.sagemaker.log import LogForwarder
from deploy.local.sagemaker.mirror import Mirror
from deploy.local.sagemaker.mount import MOUNT, mounted
from deploy.local.sagemaker.site import Site

TICK_SECONDS = 0.1
# What a process needs of this machine; all else comes from the request, as in a container.
_INHERITED = ("PYTHONPATH", "LD_LIBRARY_PATH")


class ProcessJob(Job):
    """A job whose work is a process."""

    def __init__(self, request: dict[str, Any], arn: str, site: Site) -> None:
        super().__init__(request, arn, site)
        self.folder = site.folder / arn.rpartition(":")[2]

    def _command(self) -> Sequence[str]:
        """Entry point and arguments."""
        raise NotImplementedError

    def _fetch(self) -> None:
        """Bring what the process reads."""
        raise NotImplementedError

    def _keep(self, end: str) -> None:
        """Bring away what the process made; it ended so."""
        raise NotImplementedError

    def _variables(self) -> dict[str, str]:
        """Environment variables that the service sets."""
        return {}

    def _error(self) -> str:
        """What the process itself told about its failure."""
        return ""

    def _observe(self, lines: list[str]) -> None:
        """See to the running process; lines that its log has got."""

    def _facts(self) -> dict[str, Any]:
        return {f"{self.kind}StartTime": self.started}

    def _work(self) -> str:
        self._enter("Downloading")
        self.place(MOUNT).mkdir(parents=True)
        self._fetch()
        if self.stopped.is_set():
            return "Stopped"
        self._enter("Training")
        code, end = self._execute()
        if end == "Completed" and code:
            end, self.failure = "Failed", f"AlgorithmError: {self._error()}, exit code: {code}"
        self._enter("Uploading")
        self._keep(end)
        return end

    def _execute(self) -> tuple[int, str]:
        """Exit code, and how it came to it."""
        work = self.folder / "work"
        work.mkdir()
        self.started = time.time()
        file = self.folder / "log"
        with file.open("wb") as log:
            process = subprocess.Popen(
                mounted(self.place(MOUNT), self._command()),
                cwd=work,
                env=self._environment(work),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        group, stream = f"/aws/sagemaker/{self.kind}Jobs", f"{self.name}/algo-1-{int(self.created)}"
        forwarder = LogForwarder(self.site.client("logs"), file, group, stream)
        try:
            end = self._watch(process, forwarder)
        finally:
            with suppress(ProcessLookupError):  # a container takes all of its processes with it
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        self._observe(forwarder.forward(ended=True))
        return code if code >= 0 else 128 - code, end

    def _watch(self, process: subprocess.Popen[bytes], forwarder: LogForwarder) -> str:
        seconds = self.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86_400)
        deadline = time.time() + seconds
        asked = ""
        while process.poll() is None:
            if not asked and (self.stopped.is_set() or time.time() > deadline):
                asked = "Stopped" if self.stopped.is_set() else "MaxRuntimeExceeded"
                self._enter("Stopping")
                process.terminate()  # a container's first process alone gets the signal
                deadline = time.time() + self.site.grace_seconds
            elif asked and time.time() > deadline:
                process.kill()
            self._observe(forwarder.forward())
            time.sleep(TICK_SECONDS)
        return asked or "Completed"

    def _environment(self, work: Path) -> dict[str, str]:
        credentials = boto3.Session().get_credentials()
        return {
            **{key: os.environ[key] for key in _INHERITED if key in os.environ},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(work),
            "AWS_ENDPOINT_URL": self.site.endpoint,
            "AWS_REGION": self.site.region,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            **self._variables(),
            **self.request.get("Environment", {}),
        }

    def mirror(self, uri: str, path: Path | str) -> Mirror:
        """A path of the container and its place on S3."""
        return Mirror(self.site.client("s3"), uri, self.place(path))

    def place(self, path: Path | str) -> Path:
        """Where a path of the container lies on this machine."""
        return self.folder / str(path).lstrip("/")

    def read(self, path: Path | str) -> str:
        """Text of a file of the container, if it is there."""
        file = self.place(path)
        return file.read_text(errors="replace") if file.is_file() else ""


def lies_under(path: str, folder: Path | str) -> bool:
    """Whether an absolute path of the container lies under a folder of it."""
    return Path(path).is_relative_to(folder) and ".." not in Path(path).parts

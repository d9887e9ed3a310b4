"""A processing job: a process with a folder in place of ``/opt/ml``, its files on S3, its log.

The image is not looked at: the entry point runs in the Python that runs this. Where a path of the
request begins with ``/opt/ml`` the job's folder takes its place, which is what a mount would do.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

import boto3

MOUNT = "/opt/ml"
LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
TICK_SECONDS = 0.1
# What a process needs of this machine; all else comes from the request, as in a container.
_INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Site:
    """Where jobs run.

    Attributes
    ----------
    folder
        Holds a folder for each job.
    endpoint
        Server of S3 and CloudWatch.
    region
        Region jobs believe to be in.
    grace_seconds
        Time between SIGTERM and SIGKILL; the service gives 120.
    """

    folder: Path
    endpoint: str
    region: str = "eu-west-2"
    grace_seconds: float = 120.0

    def client(self, service: str) -> Any:
        """Client of S3 or CloudWatch, with the server's own credentials."""
        return boto3.client(service, endpoint_url=self.endpoint, region_name=self.region)


class ProcessingJob:
    """One job, from its request to its end."""

    def __init__(self, request: dict[str, Any], arn: str, site: Site) -> None:
        self.request, self.arn, self.site = request, arn, site
        self.name: str = request["ProcessingJobName"]
        self.folder = site.folder / self.name
        self.status, self.failure, self.message = "InProgress", "", ""
        self.created = self.modified = time.time()
        self.started: float | None = None
        self.ended: float | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._log_read = 0
        self._stream = f"{self.name}/algo-1-{int(self.created)}"

    def start(self) -> None:
        """Run it in the background."""
        self._thread.start()

    def fail(self, reason: str) -> None:
        """End it before it begins."""
        self.ended = time.time()
        self.status, self.failure = "Failed", reason

    def stop(self) -> None:
        """Ask it to end: SIGTERM, and later SIGKILL."""
        if self.status == "InProgress":
            self.status = "Stopping"
            self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for its end."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def describe(self) -> dict[str, Any]:
        """Answer to DescribeProcessingJob."""
        told = ("ProcessingInputs", "ProcessingOutputConfig", "ProcessingResources")
        told += ("StoppingCondition", "AppSpecification", "Environment", "RoleArn", "NetworkConfig")
        facts = {
            "ProcessingJobName": self.name,
            "ProcessingJobArn": self.arn,
            "ProcessingJobStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            "ProcessingStartTime": self.started,
            "ProcessingEndTime": self.ended,
            "FailureReason": self.failure[:1024],
            "ExitMessage": self.message[:1024],
        }
        request = {key: self.request[key] for key in told if key in self.request}
        return {**request, **{key: value for key, value in facts.items() if value}}

    def _run(self) -> None:
        try:
            self._fetch()
            code, outcome = self._execute()
            self._keep()
        except Exception as error:
            self.ended = time.time()
            self.failure = f"InternalServerError: {type(error).__name__}: {error}"
            self.status = "Failed"
            return
        message = self._place("/opt/ml/output/message")
        self.message = message.read_text() if message.is_file() else ""
        if outcome == "Completed" and code:
            outcome, self.failure = "Failed", f"AlgorithmError: , exit code: {code}"
        self.ended = self.modified = time.time()
        self.status = outcome

    def _execute(self) -> tuple[int, str]:
        """Exit code, and how it came to it."""
        application = self.request["AppSpecification"]
        words = [
            *application.get("ContainerEntrypoint", ()),
            *application.get("ContainerArguments", ()),
        ]
        command = [str(self._place(word)) if word.startswith(MOUNT) else word for word in words]
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
        work = self.folder / "work"
        work.mkdir()
        self.started = time.time()
        limit = self.request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86_400)
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=work,
                env=self._environment(work),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        outcome = self._watch(process, self.started + limit)
        with suppress(ProcessLookupError):  # a container takes all of its processes with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._forward_log()
        return process.returncode, outcome

    def _watch(self, process: subprocess.Popen[bytes], deadline: float) -> str:
        while process.poll() is None:
            if self._stop.wait(TICK_SECONDS) or time.time() > deadline:
                self._end(process)
                return "Stopped"
            self._forward_log()
        return "Completed"

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()  # a container's first process alone gets the signal
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.site.grace_seconds)

    def _environment(self, work: Path) -> dict[str, str]:
        credentials = boto3.Session().get_credentials()
        return {
            **{key: os.environ[key] for key in _INHERITED if key in os.environ},
            "HOME": str(work),
            "AWS_ENDPOINT_URL": self.site.endpoint,
            "AWS_REGION": self.site.region,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            **self.request.get("Environment", {}),
        }

    def _place(self, path: str) -> Path:
        """Where a path of the container lies on this machine."""
        return self.folder / path.lstrip("/")

    def _fetch(self) -> None:
        self.folder.mkdir(parents=True)
        client = self.site.client("s3")
        for item in self.request.get("ProcessingInputs", ()):
            bucket, prefix = _address(item["S3Input"]["S3Uri"])
            target = self._place(item["S3Input"]["LocalPath"])
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            keys = [found["Key"] for page in pages for found in page.get("Contents", ())]
            for key in keys:
                name = key.removeprefix(prefix).lstrip("/") or key.rpartition("/")[2]
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, key, str(target / name))

    def _keep(self) -> None:
        client = self.site.client("s3")
        for item in self.request.get("ProcessingOutputConfig", {}).get("Outputs", ()):
            bucket, prefix = _address(item["S3Output"]["S3Uri"])
            source = self._place(item["S3Output"]["LocalPath"])
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                key = f"{prefix.rstrip('/')}/{file.relative_to(source)}"
                client.upload_file(str(file), bucket, key)

    def _forward_log(self) -> None:
        """Send the log's new lines to CloudWatch."""
        with (self.folder / "log").open("rb") as log:
            log.seek(self._log_read)
            text = log.read()
        lines = [line for line in text.decode(errors="replace").splitlines() if line]
        if not lines:
            return
        client = self.site.client("logs")
        if self._log_read == 0:
            _ensure(client.create_log_group, logGroupName=LOG_GROUP)
            _ensure(client.create_log_stream, logGroupName=LOG_GROUP, logStreamName=self._stream)
        now = int(time.time() * 1000)
        client.put_log_events(
            logGroupName=LOG_GROUP,
            logStreamName=self._stream,
            logEvents=[{"timestamp": now, "message": line} for line in lines],
        )
        self._log_read += len(text)


def _ensure(create: Any, **names: str) -> None:
    try:
        create(**names)
    except Exception as error:
        if "ResourceAlreadyExists" not in type(error).__name__:
            raise


def _address(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")

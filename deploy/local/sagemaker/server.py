"""The server: SageMaker's JSON 1.1 protocol for processing jobs and model packages."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from deploy.local.sagemaker.jobs import ProcessingJob, Site
from deploy.local.sagemaker.packages import ModelRegistry
from deploy.local.sagemaker.refusal import Refusal
from deploy.local.sagemaker.validation import problems

_ACCOUNT = "123456789012"
_CAPACITY = "CapacityError: Unable to provision requested ML compute capacity. Please retry."


@dataclass
class SageMaker:
    """The service's state.

    Attributes
    ----------
    jobs
        By name, in the order of their creation.
    calls
        Operation and request of every call.
    faults
        Operation -> error codes to answer its next calls with.
    without_capacity
        How many of the next jobs find no machine.
    registry
        Groups and packages of models.
    """

    site: Site
    jobs: dict[str, ProcessingJob] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    without_capacity: int = 0
    address: str = ""
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.registry = ModelRegistry(f"arn:aws:sagemaker:{self.site.region}:{_ACCOUNT}")

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks.

        Raises
        ------
        Refusal
            When the service would refuse.
        """
        operations = {
            "CreateProcessingJob": self._create,
            "DescribeProcessingJob": self._describe,
            "StopProcessingJob": self._stop,
            **self.registry.operations,
        }
        with self._lock:
            self.calls.append((operation, request))
            if self.faults[operation]:
                raise Refusal(self.faults[operation].pop(0), "Rate exceeded")
            if operation not in operations:
                raise Refusal("UnknownOperationException", f"{operation} is not spoken here")
            found = problems(operation, request)
            if found:
                count = f"{len(found)} validation error{'s' * (len(found) > 1)} detected"
                raise Refusal("ValidationException", f"{count}: {'; '.join(found)}")
            return operations[operation](request)

    def close(self) -> None:
        """End every job."""
        for job in self.jobs.values():
            job.stop()
        for job in self.jobs.values():
            job.join(10)

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["ProcessingJobName"]
        arn = f"arn:aws:sagemaker:{self.site.region}:{_ACCOUNT}:processing-job/{name}"
        if name in self.jobs:
            raise Refusal("ResourceInUse", f"Job name must be unique: {arn} exists")
        self.jobs[name] = job = ProcessingJob(request, arn, self.site)
        if self.without_capacity:
            self.without_capacity -= 1
            job.fail(_CAPACITY)
        else:
            job.start()
        return {"ProcessingJobArn": arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._job(request).describe()

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        if job.status != "InProgress":
            raise Refusal("ValidationException", f"The job is {job.status} and cannot be stopped")
        job.stop()
        return {}

    def _job(self, request: dict[str, Any]) -> ProcessingJob:
        name = request["ProcessingJobName"]
        if name not in self.jobs:
            raise Refusal("ValidationException", f"Could not find requested job with name: {name}")
        return self.jobs[name]


@contextmanager
def serving(site: Site, port: int = 0) -> Iterator[SageMaker]:
    """The server on a port of this machine, until the context ends."""
    service = SageMaker(site)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            operation = self.headers.get("X-Amz-Target", "").removeprefix("SageMaker.")
            try:
                status, answer = 200, service.answer(operation, json.loads(body or b"{}"))
            except Refusal as refusal:
                status, answer = 400, {"__type": refusal.code, "message": str(refusal)}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    service.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield service
    finally:
        service.close()
        server.shutdown()
        thread.join()
        server.server_close()

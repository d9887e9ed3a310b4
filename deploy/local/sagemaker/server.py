"""The server: SageMaker's JSON 1.1 protocol."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from typing import Any

from deploy.local.sagemaker.jobs import Job
from deploy.local.sagemaker.mount import require_mounts
from deploy.local.sagemaker.packages import ModelRegistry
from deploy.local.sagemaker.processing import ProcessingJob
from deploy.local.sagemaker.site import Site
from deploy.local.sagemaker.table import ACCOUNT, JobTable, Refusal
from deploy.local.sagemaker.training import TrainingJob
from deploy.local.sagemaker.trials import page
from deploy.local.sagemaker.tuning import TuningJob
from deploy.local.sagemaker.validation import problems

_CAPACITY = "CapacityError: Unable to provision requested ML compute capacity. Please retry."
_FAULT = "InternalServerError: We encountered an internal error. Please try again."


class SageMaker:
    """The service's state.

    Attributes
    ----------
    jobs, training, tuning
        Processing, training and tuning jobs, by name, in the order of their creation.
    calls
        Operation and request of every call.
    faults
        Operation -> error codes to answer its next calls with.
    without_capacity
        How many of the next jobs find no machine.
    internal_errors
        How many of the next attempts at jobs end in a fault of the service.
    registry
        Groups and packages of models.
    """

    def __init__(self, site: Site) -> None:
        tune = partial(TuningJob, train=self._train)
        self.jobs = JobTable(ProcessingJob, site, ProcessingJob, self._start)
        self.training = JobTable(TrainingJob, site, TrainingJob, self._start)
        self.tuning = JobTable(TuningJob, site, tune, TuningJob.start)
        self.registry = ModelRegistry(f"arn:aws:sagemaker:{site.region}:{ACCOUNT}")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.without_capacity = 0
        self.internal_errors = 0
        self.address = ""
        self._lock = RLock()

    def answer(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks.

        Raises
        ------
        Refusal
            When the service would refuse.
        """
        operations = {
            **self.jobs.operations,
            **self.training.operations,
            **self.tuning.operations,
            **self.registry.operations,
            "ListTrainingJobsForHyperParameterTuningJob": self._list_trials,
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
        jobs: list[Job] = [*self.tuning.values(), *self.training.values(), *self.jobs.values()]
        for job in jobs:
            job.stop()
        for job in jobs:
            job.join(10)

    def _start(self, job: Job) -> None:
        if self.without_capacity:
            self.without_capacity -= 1
            job.fail(_CAPACITY)
            return
        attempts = 1 + job.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
        faults = min(attempts, self.internal_errors)
        self.internal_errors -= faults
        if faults == attempts:
            job.fail(_FAULT)
        else:
            job.start()

    def _train(self, request: dict[str, Any], tuning_arn: str) -> TrainingJob:
        """A training job for a tuning job."""
        with self._lock:
            self.training.create(request)
            job = self.training.find(request)
            job.tuning_arn = tuning_arn
            return job

    def _list_trials(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self.tuning.find(request)
        return page(list(job.trials), job.name, request)


@contextmanager
def serving(site: Site, port: int = 0) -> Iterator[SageMaker]:
    """The server on a port of this machine, until the context ends.

    Raises
    ------
    PermissionError
        When jobs cannot have their folder mounted.
    """
    require_mounts()
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

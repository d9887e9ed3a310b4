"""A job's life: its state, from its request to its end."""

import time
from collections.abc import Iterable
from threading import Event, Lock, Thread
from typing import Any, ClassVar

from botocore.exceptions import ClientError

from deploy.local.sagemaker.site import Site
from deploy.local.sagemaker.validation import known


class CallerError(Exception):
    """The request asks for what there is not."""


class Job:
    """One job.

    Attributes
    ----------
    kind
        What its operations are named after: `Processing` of `CreateProcessingJob`.
    unknown
        Code and message of the answer to who asks for a job that there is not.
    status
        `InProgress`, `Stopping`, and at the end `Completed`, `Stopped` or `Failed`.
    phases
        What it did and since when, the finer status.
    """

    kind: ClassVar[str]
    unknown: ClassVar[tuple[str, str]]

    def __init__(self, request: dict[str, Any], arn: str, site: Site) -> None:
        self.request, self.arn, self.site = request, arn, site
        self.name: str = request[f"{self.kind}JobName"]
        self.status, self.failure = "InProgress", ""
        self.created = self.modified = time.time()
        self.phases = [("Starting", self.created)]
        self.started: float | None = None
        self.ended: float | None = None
        self.stopped = Event()
        self._lock = Lock()
        self._thread = Thread(target=self._run, daemon=True)

    @classmethod
    def objections(cls, request: dict[str, Any]) -> Iterable[str]:
        """What the service would refuse beyond its model, and what is not done here."""
        return ()

    def start(self) -> None:
        """Run it in the background."""
        self._thread.start()

    def fail(self, reason: str) -> None:
        """End it before it begins."""
        self._end("Failed", reason)

    def stop(self) -> None:
        """Ask it to end."""
        with self._lock:
            if self.status == "InProgress":
                self.status = "Stopping"
                self.stopped.set()

    def join(self, seconds: float | None) -> None:
        """Wait for its end, at most so long."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status in ("Completed", "Failed", "Stopped")

    def describe(self) -> dict[str, Any]:
        """Answer to its describe operation."""
        facts = {
            f"{self.kind}JobArn": self.arn,
            f"{self.kind}JobStatus": self.status,
            "CreationTime": self.created,
            "LastModifiedTime": self.modified,
            f"{self.kind}EndTime": self.ended,
            "FailureReason": self.failure[:1024],
            **self._facts(),
        }
        told = known(f"Describe{self.kind}Job", "output", self.request)
        return {**told, **{key: value for key, value in facts.items() if value}}

    def _facts(self) -> dict[str, Any]:
        """What only this kind of job has to tell."""
        raise NotImplementedError

    def _work(self) -> str:
        """Do it; the phase it ends in."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self._end(self._work(), self.failure)
        except (CallerError, ClientError) as error:
            self._end("Failed", f"ClientError: {error}")
        except Exception as error:
            self._end("Failed", f"InternalServerError: {type(error).__name__}: {error}")

    def _enter(self, phase: str) -> None:
        self.modified = time.time()
        self.phases.append((phase, self.modified))

    def _end(self, phase: str, failure: str) -> None:
        with self._lock:
            self._enter(phase)
            self.failure, self.ended = failure, self.modified
            self.status = "Stopped" if phase == "MaxRuntimeExceeded" else phase

"""A client of SageMaker's processing and training jobs that speak Dagster Pipes.

The service has no client token, so the job's name is what makes creating it idempotent: who finds
the name taken adopts the job. Nothing travels in environment variables: the service allows 256
characters for each.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from dagster import (
    AssetExecutionContext,
    DagsterExecutionInterruptedError,
    OpExecutionContext,
    PipesClient,
    PipesClientCompletedInvocation,
    PipesEnvContextInjector,
)
from dagster._core.pipes.context import PipesMessageHandler, PipesSession
from dagster_pipes import PipesContextData

from mm_assets.assets.compute import Compute
from mm_assets.cohort.s3 import s3_client
from mm_assets.resources.cloudwatch import JobLog
from mm_assets.resources.job_folder import (
    ORDER,
    FolderMessageReader,
    JobFolder,
    job_folders,
)
from mm_assets.resources.sagemaker_request import (
    ENTRYPOINT,
    PROCESSING,
    JobKind,
    Place,
    SageMakerSettings,
)

Context = AssetExecutionContext | OpExecutionContext

CAPACITY_ATTEMPTS = 3
STOP_SECONDS = 150.0  # the service gives a job 120 between SIGTERM and SIGKILL
_TERMINAL = ("Completed", "Failed", "Stopped")
_CAPACITY = ("CapacityError", "InternalServerError")


class SageMakerError(RuntimeError):
    """A job did not succeed; the message says how it ended and what it last wrote."""


class CapacityError(SageMakerError):
    """There was no machine for the job: trying again later may help."""


class PipesSageMakerClient(PipesClient):
    """Runs jobs and follows them to their end.

    Parameters
    ----------
    settings
        What jobs need beside their work.
    root
        ``s3://`` address under which every job gets a prefix of its own.
    """

    def __init__(self, settings: SageMakerSettings, root: str) -> None:
        self.settings = settings
        address = urlsplit(root)
        self.bucket, self.prefix = address.netloc, address.path.strip("/")

    def folder(self, name: str) -> JobFolder:
        """Folder of a job."""
        return JobFolder(s3_client(), self.bucket, f"{self.prefix}/{name}")

    def known(self) -> dict[str, dict[str, Any]]:
        """Jobs whose outcome nobody has taken yet: name -> order."""
        folders = job_folders(s3_client(), self.bucket, self.prefix)
        orders = {name: folder.order() for name, folder in folders.items()}
        return {name: order for name, order in orders.items() if order is not None}

    def run(  # type: ignore[override]  # clients add arguments of their own
        self,
        *,
        context: Context,
        extras: Mapping[str, Any] | None = None,
        names: Iterable[str],
        order: Mapping[str, Any],
        compute: Compute,
        kind: JobKind = PROCESSING,
        files: Mapping[str, bytes] | None = None,
        on_message: Callable[[Any], None] = lambda message: None,
        command: Sequence[str] = ENTRYPOINT,
    ) -> PipesClientCompletedInvocation:
        """Run a job, or adopt the one of its name, until its end; a few times without capacity.

        Parameters
        ----------
        names
            Name of the job, then those of further attempts: of jobs that are over, or found no
            machine.
        order
            What the entry point is told, as JSON; its key ``pipes`` is added.
        files
            Name -> content of further files beside the order.
        on_message
            Called with every custom message, as it comes.
        command
            What the container runs, with the path of its order behind.

        Raises
        ------
        SageMakerError
            When the job fails, is stopped, or ends without having said that it is finished. What
            else is raised leaves the job alone: the next run with its name adopts it.
        """
        data = _context_data(context, extras or {})
        without_capacity = 0
        for name in names:
            job = _Run(self, context, name, kind, on_message)
            try:
                done = job.run(data, order, files or {}, compute, command)
            except CapacityError as error:
                without_capacity += 1
                if without_capacity == CAPACITY_ATTEMPTS:
                    raise
                context.log.warning(f"{error}; it is tried again")
                time.sleep(self.settings.capacity_seconds * 2**without_capacity)
                continue
            if done is not None:
                return done
        raise SageMakerError("there is no further name for the job")

    def discard(self, context: Context, name: str, kind: JobKind) -> None:
        """Stop a job whose outcome nobody wants any more, and remove what is left of it."""
        _Run(self, context, name, kind, lambda message: None).stop("its inputs have changed")

    def tidy(self, context: Context, name: str) -> None:
        """Remove what is left of a processing job that is over, as after a kill at its end."""
        job = _Run(self, context, name, PROCESSING, lambda message: None)
        if job.is_over():
            job.folder.clear()

    def service(self, name: str) -> Any:
        """The client of an AWS service."""
        return self._services[name]

    @cached_property
    def _services(self) -> dict[str, Any]:
        return {name: aws_client(name) for name in ("sagemaker", "logs")}


def aws_client(service: str) -> Any:
    """Client of a service; throttled requests are repeated by botocore, later and later."""
    import boto3
    from botocore.config import Config

    config = Config(retries={"mode": "standard", "total_max_attempts": 12})
    # boto3 itself does not read the variable that AWS's containers set.
    return boto3.Session(region_name=os.environ.get("AWS_REGION")).client(service, config=config)


def _context_data(context: Context, extras: Mapping[str, Any]) -> PipesContextData:
    """Context of a job that reports slides rather than assets."""
    return PipesContextData(
        asset_keys=None,
        code_version_by_asset_key=None,
        provenance_by_asset_key=None,
        partition_key=None,
        partition_key_range=None,
        partition_time_window=None,
        run_id=context.run_id,
        job_name=context.job_name,
        retry_number=context.retry_number,
        extras=dict(extras),
    )


class _Run:
    """One job of one name."""

    def __init__(
        self,
        client: PipesSageMakerClient,
        context: Context,
        name: str,
        kind: JobKind,
        on_message: Callable[[Any], None],
    ) -> None:
        self.settings, self.context, self.name, self.kind = client.settings, context, name, kind
        self.on_message, self.told = on_message, 0
        # Without the attempt at the end: a job goes on where that before it was ended.
        self.checkpoints = client.folder(f"checkpoints/{name.rpartition('-')[0]}")
        self.sagemaker = client.service("sagemaker")
        self.folder = client.folder(name)
        self.is_new = self.folder.order() is None
        self.reader = FolderMessageReader(self.folder)
        self.handler = PipesMessageHandler(context, self.reader)
        self.log = JobLog(client.service("logs"), kind.log_group, name)

    def run(
        self,
        data: PipesContextData,
        order: Mapping[str, Any],
        files: Mapping[str, bytes],
        compute: Compute,
        command: Sequence[str],
    ) -> PipesClientCompletedInvocation | None:
        """The finished job; None when the name belongs to one that is long over."""
        with (
            PipesEnvContextInjector().inject_context(data) as context_params,
            self.handler.handle_messages() as message_params,
        ):
            session = PipesSession(data, self.handler, context_params, message_params, self.context)
            tags = session.default_remote_invocation_info
            place = Place(self.folder.inputs, self.folder.outputs, self.checkpoints.address)
            request = self.settings.request(self.kind, place, compute, tags, command)
            try:
                if self.is_new:
                    self._tell({**order, "pipes": dict(session.get_bootstrap_env_vars())}, files)
                if not self._created_or_adopted(request):
                    return None
                end = self._follow()
            except (DagsterExecutionInterruptedError, KeyboardInterrupt):
                self.stop("interrupted")
                raise
        self.folder.clear()
        self._refuse_failure(end, compute.hours)
        self.checkpoints.clear()
        word = self.kind.word
        seconds = end[f"{word}EndTime"] - end.get(f"{word}StartTime", end["CreationTime"])
        metadata = {"job": self.name, "job_seconds": seconds.total_seconds()}
        return PipesClientCompletedInvocation(session, metadata=metadata)

    def _tell(self, order: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.folder.put(name, content)
        self.folder.put(ORDER, json.dumps(order).encode())

    def _created_or_adopted(self, request: Mapping[str, Any]) -> bool:
        """Whether there is a job of this name whose outcome is still to be taken."""
        refused = self.sagemaker.exceptions
        try:
            self._call("create", **request)
        except refused.ResourceInUse:
            return self._adopted()
        except refused.ClientError as error:
            if self.is_new:
                self.folder.clear()
            if isinstance(error, refused.ResourceLimitExceeded):
                raise CapacityError(f"{self.name}: {error}") from error
            raise
        self.context.log.info(f"SageMaker job {self.name} was created")
        return True

    def _adopted(self) -> bool:
        status = self._status(self._describe())
        if self.is_new and status != "InProgress":
            self.folder.clear()
            return False
        self.context.log.info(f"SageMaker job {self.name} is there already ({status}): adopted")
        return True

    def _describe(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._call("describe")
        return facts

    def _call(self, verb: str, **request: Any) -> Any:
        operation = getattr(self.sagemaker, f"{verb}_{self.kind.word.lower()}_job")
        return operation(**{f"{self.kind.word}JobName": self.name}, **request)

    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self._status(self._describe()) in _TERMINAL

    def _status(self, facts: Mapping[str, Any]) -> str:
        return str(facts[f"{self.kind.word}JobStatus"])

    def _follow(self) -> dict[str, Any]:
        """Hand on what the job tells until it has ended; how it ended."""
        while True:
            facts = self._describe()
            self.log.poll()
            self.reader.poll()
            messages = self.handler.get_custom_messages()
            for message in messages[self.told :]:
                self.on_message(message)
            self.told = len(messages)
            if self._status(facts) in _TERMINAL:
                return facts
            time.sleep(self.settings.poll_seconds)

    def stop(self, why: str) -> None:
        """Stop the job, wait for its end and remove what it was told and has told."""
        self.context.log.warning(f"{why}: SageMaker job {self.name} is stopped")
        try:
            self._call("stop")
            deadline = time.monotonic() + STOP_SECONDS
            while not self.is_over():
                if time.monotonic() > deadline:
                    break
                time.sleep(self.settings.poll_seconds)
        except self.sagemaker.exceptions.ClientError as error:
            self.context.log.warning(f"SageMaker job {self.name}: {error}")
        self.folder.clear()

    def _refuse_failure(self, end: Mapping[str, Any], hours: float) -> None:
        """Raise unless the job succeeded in the service's eyes and in its own."""
        status, reason = self._status(end), end.get("FailureReason", "")
        if status == "Failed" and reason.startswith(_CAPACITY):
            raise CapacityError(f"SageMaker job {self.name}: {reason}")
        exception = self.reader.exception
        if status == "Stopped":
            reason = f"it was stopped by hand, or at its limit of {hours:g} hours"
        elif exception:
            reason = f"{reason} {exception['name']}: {exception['message']}".strip()
        elif not self.handler.received_closed_message:
            reason = reason or "it ended without having said that it is finished"
        elif status == "Completed":
            return
        tail = "\n".join(self.log.tail)
        told = f"\nIts last lines:\n{tail}" if tail else ""
        raise SageMakerError(f"SageMaker job {self.name}: {status}: {reason}{told}")

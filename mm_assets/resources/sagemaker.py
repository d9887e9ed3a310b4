"""A client of SageMaker's processing and training jobs that speak Dagster Pipes.

The service has no client token, so the job's name is what makes creating it idempotent: who finds
the name taken adopts the job. Nothing travels in environment variables: the service allows 256
characters for each.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
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
from mm_assets.assets.log import Log
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
    TRAINING,
    JobKind,
    Place,
    SageMakerSettings,
)

Context = AssetExecutionContext | OpExecutionContext

CAPACITY_ATTEMPTS = 3
STOP_SECONDS = 150.0  # the service gives a job 120 between SIGTERM and SIGKILL
LEFT_SECONDS = 600.0  # whoever follows a job, or is about to create it, has done so by then
_CHECKPOINTS = "checkpoints"
_UNKNOWN = ("ValidationException", "ResourceNotFound")  # the first is what the service says
_TERMINAL = ("Completed", "Failed", "Stopped")
_CAPACITY = ("CapacityError", "InternalServerError")


class SageMakerError(RuntimeError):
    """A job did not succeed; the message says how it ended and what it last wrote."""


class CapacityError(SageMakerError):
    """There was no machine for the job: trying again later may help."""


class Jobs:
    """The jobs of one stage.

    Parameters
    ----------
    root
        ``s3://`` address under which every job gets a prefix of its own.
    """

    def __init__(self, root: str) -> None:
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

    def tidy(self, name: str, kind: JobKind) -> None:
        """Remove what is left of a job that a killed run does not follow any more.

        One that ended a moment ago is let be, for its run may not have looked yet, and so is an
        order without a job, for its run may be about to create it.
        """
        job = _Job(self, name, kind)
        if job.left_for() > LEFT_SECONDS:
            job.clear()

    def clear_checkpoints(self) -> None:
        """Remove the state of all trainings of the stage."""
        self.folder(_CHECKPOINTS).clear()

    def checkpoints(self, name: str) -> JobFolder:
        """Folder of the state that a job keeps.

        Its name is without the attempt at the end: a job goes on where that before it was ended.
        """
        return self.folder(f"{_CHECKPOINTS}/{name.rpartition('-')[0]}")

    def service(self, name: str) -> Any:
        """The client of an AWS service."""
        return self._services[name]

    @cached_property
    def _services(self) -> dict[str, Any]:
        return {name: aws_client(name) for name in ("sagemaker", "logs")}


class PipesSageMakerClient(Jobs, PipesClient):
    """Runs jobs and follows them to their end.

    Parameters
    ----------
    settings
        What jobs need beside their work.
    root
        As of `Jobs`. One training at a time works under it.
    """

    def __init__(self, settings: SageMakerSettings, root: str) -> None:
        super().__init__(root)
        self.settings = settings

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
        on_billed: Callable[[float], None] = lambda seconds: None,
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
        on_billed
            Called with the seconds that the service bills, when a job has ended, well or not.
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
            job = _Run(self, context, name, kind, on_message, on_billed)
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

    def discard(self, name: str, kind: JobKind, log: Log) -> None:
        """Stop a job whose outcome nobody wants any more, and remove what is left of it."""
        job = _Job(self, name, kind)
        job.stop("its inputs have changed", log, self.settings.poll_seconds)
        job.clear()


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


class _Job:
    """One job of one name."""

    def __init__(self, jobs: Jobs, name: str, kind: JobKind) -> None:
        self.jobs, self.name, self.kind = jobs, name, kind
        self.sagemaker = jobs.service("sagemaker")
        self.folder, self.checkpoints = jobs.folder(name), jobs.checkpoints(name)

    def left_for(self) -> float:
        """Seconds since it ended, or since its order was put if it is not there; else 0."""
        try:
            facts = self.describe()
        except ClientError as error:
            if error.response["Error"]["Code"] not in _UNKNOWN:
                raise
            return self.folder.age()
        if self.status(facts) not in _TERMINAL:
            return 0.0
        passed: float = (datetime.now(UTC) - facts["LastModifiedTime"]).total_seconds()
        return passed

    def stop(self, why: str, log: Log, poll_seconds: float) -> None:
        """Stop the job and wait for its end."""
        log.warning(f"{why}: SageMaker job {self.name} is stopped")
        try:
            self.call("stop")
            deadline = time.monotonic() + STOP_SECONDS
            while self.status(self.describe()) not in _TERMINAL:
                if time.monotonic() > deadline:
                    break
                time.sleep(poll_seconds)
        except ClientError as error:
            log.warning(f"SageMaker job {self.name}: {error}")

    def clear(self) -> None:
        """Remove whatever lies on S3 for it."""
        self.checkpoints.clear()
        self.folder.clear()

    def describe(self) -> dict[str, Any]:
        """What the service tells of it."""
        facts: dict[str, Any] = self.call("describe")
        return facts

    def call(self, verb: str, **request: Any) -> Any:
        """Ask something of the service."""
        operation = getattr(self.sagemaker, f"{verb}_{self.kind.word.lower()}_job")
        return operation(**{f"{self.kind.word}JobName": self.name}, **request)

    def status(self, facts: Mapping[str, Any]) -> str:
        """Its state."""
        return str(facts[f"{self.kind.word}JobStatus"])

    def billed(self, end: Mapping[str, Any]) -> float:
        """Seconds that the service bills: those on its machine, none if it never got one."""
        if "BillableTimeInSeconds" in end:
            return float(end["BillableTimeInSeconds"])
        begun, ended = (end.get(f"{self.kind.word}{which}Time") for which in ("Start", "End"))
        return (ended - begun).total_seconds() if begun and ended else 0.0


class _Run(_Job):
    """A job that is followed."""

    def __init__(
        self,
        client: PipesSageMakerClient,
        context: Context,
        name: str,
        kind: JobKind,
        on_message: Callable[[Any], None],
        on_billed: Callable[[float], None],
    ) -> None:
        super().__init__(client, name, kind)
        self.settings, self.context = client.settings, context
        self.on_message, self.on_billed, self.told = on_message, on_billed, 0
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
                self.stop("interrupted", self.context.log, self.settings.poll_seconds)
                self.folder.clear()
                raise
        self._tell_bill(end)
        self.folder.clear()
        self._refuse_failure(end, compute.hours)
        if self.kind is TRAINING:
            # Those of other inputs too: nobody goes on with them any more.
            self.jobs.clear_checkpoints()
        return PipesClientCompletedInvocation(session)

    def _tell_bill(self, end: Mapping[str, Any]) -> None:
        seconds = self.billed(end)
        self.context.log.info(f"SageMaker job {self.name}: {seconds:.0f} s are billed")
        self.on_billed(seconds)

    def _tell(self, order: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.folder.put(name, content)
        self.folder.put(ORDER, json.dumps(order).encode())

    def _created_or_adopted(self, request: Mapping[str, Any]) -> bool:
        """Whether there is a job of this name whose outcome is still to be taken."""
        refused = self.sagemaker.exceptions
        try:
            self.call("create", **request)
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
        status = self.status(self.describe())
        if self.is_new and status != "InProgress":
            self.folder.clear()
            return False
        self.context.log.info(f"SageMaker job {self.name} is there already ({status}): adopted")
        return True

    def _follow(self) -> dict[str, Any]:
        """Hand on what the job tells until it has ended; how it ended."""
        while True:
            facts = self.describe()
            self.log.poll()
            self.reader.poll()
            messages = self.handler.get_custom_messages()
            for message in messages[self.told :]:
                self.on_message(message)
            self.told = len(messages)
            if self.status(facts) in _TERMINAL:
                return facts
            time.sleep(self.settings.poll_seconds)

    def _refuse_failure(self, end: Mapping[str, Any], hours: float) -> None:
        """Raise unless the job succeeded in the service's eyes and in its own."""
        status, reason = self.status(end), end.get("FailureReason", "")
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

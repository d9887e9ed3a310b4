"""The jobs of one kind, and the operations on them."""

import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from deploy.local.sagemaker.jobs import Job
from deploy.local.sagemaker.site import Site

ACCOUNT = "123456789012"
J = TypeVar("J", bound=Job)
Operation = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(Exception):
    """An answer that is an error: its code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class JobTable(dict[str, J], Generic[J]):
    """Jobs of a kind by name, in the order of their creation.

    Parameters
    ----------
    kind
        Class of the jobs.
    site
        Where they run.
    make
        A job of a request, an ARN and a site.
    start
        Starts a new job.

    Attributes
    ----------
    quota
        How many jobs may be under way at once; None: any number.
    """

    def __init__(
        self,
        kind: type[J],
        site: Site,
        make: Callable[[dict[str, Any], str, Site], J],
        start: Callable[[J], None],
    ) -> None:
        super().__init__()
        self.kind, self.site, self._make, self._start = kind, site, make, start
        self.quota: int | None = None
        resource = re.sub("(?<!^)([A-Z])", r"-\1", f"{kind.kind}Job").lower()
        self._arn = f"arn:aws:sagemaker:{site.region}:{ACCOUNT}:{resource}"

    @property
    def operations(self) -> dict[str, Operation]:
        """What can be asked for, by the service's names."""
        kind = self.kind.kind
        return {
            f"Create{kind}Job": self.create,
            f"Describe{kind}Job": lambda request: self.find(request).describe(),
            f"Stop{kind}Job": self.stop,
        }

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """Create and start a job."""
        name = request[f"{self.kind.kind}JobName"]
        arn = f"{self._arn}/{name}"
        if name in self:
            raise Refusal(
                "ResourceInUse",
                "Job name must be unique within an AWS account and region, and a job with this "
                f"name already exists ({arn})",
            )
        under_way = sum(not job.is_over for job in self.values())
        if self.quota is not None and under_way >= self.quota:
            raise Refusal(
                "ResourceLimitExceeded",
                f"The account-level service limit is {self.quota} jobs, with current utilization "
                f"of {under_way} jobs and a request delta of 1 jobs",
            )
        objections = list(self.kind.objections(request))
        if objections:
            raise Refusal("ValidationException", "; ".join(objections))
        self[name] = job = self._make(request, arn, self.site)
        self._start(job)
        return {f"{self.kind.kind}JobArn": arn}

    def stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Stop a job that is not over."""
        job = self.find(request)
        if job.is_over:
            raise Refusal("ValidationException", f"The job is {job.status} and cannot be stopped")
        job.stop()
        return {}

    def find(self, request: dict[str, Any]) -> J:
        """The job that a request names."""
        name = request[f"{self.kind.kind}JobName"]
        if name not in self:
            code, message = self.kind.unknown
            raise Refusal(code, message.format(name=name))
        return self[name]

"""The request that creates a processing job, and the names of jobs."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mm_assets.assets.compute import Compute
from mm_assets.resources.job_folder import ORDER

INPUT = "/opt/ml/processing/input/job"
ENTRYPOINT = ("python", "-m", "mm_assets.job")
VOLUME_GB = 100  # twice the default limit of the slide cache
_NAME_CHARACTERS = 63
_ROLE, _IMAGE = "MM_SAGEMAKER_ROLE", "MM_SAGEMAKER_IMAGE"
_FORWARDED = ("AWS_REGION", "MM_SLIDE_CACHE_GB")


def job_name(*parts: str, digest: str, attempt: int) -> str:
    """Name of at most 63 characters of ``[a-zA-Z0-9-]`` that ends with digest and attempt.

    Examples
    --------
    >>> job_name("mm", "demo", "tile_embeddings", digest="0f3a", attempt=1)
    'mm-demo-tile-embeddings-0f3a-1'
    """
    end = f"-{digest}-{attempt}"
    words = re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(parts)).strip("-")
    return words[: _NAME_CHARACTERS - len(end)].rstrip("-") + end


@dataclass(frozen=True)
class SageMakerSettings:
    """What jobs need beside their work.

    Attributes
    ----------
    role, image
        ARN of the role that jobs take, and the image they run.
    subnets, security_groups
        Network of the jobs; none means the service's own.
    environment
        Variables of the jobs, each at most 256 characters.
    poll_seconds
        Time between looks at a job.
    capacity_seconds
        Half the time before the second attempt at a job without a machine; it doubles.
    """

    role: str
    image: str
    subnets: Sequence[str] = ()
    security_groups: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    poll_seconds: float = 5.0
    capacity_seconds: float = 60.0

    @classmethod
    def from_environment(cls) -> "SageMakerSettings":
        """As `MM_SAGEMAKER_ROLE`, `_IMAGE`, `_SUBNETS` and `_SECURITY_GROUPS` say.

        Raises
        ------
        ValueError
            When role or image is not given.
        """
        missing = [name for name in (_ROLE, _IMAGE) if not os.environ.get(name)]
        if missing:
            raise ValueError(f"launcher sagemaker: set {' and '.join(missing)}")
        return cls(
            role=os.environ[_ROLE],
            image=os.environ[_IMAGE],
            subnets=_listed("MM_SAGEMAKER_SUBNETS"),
            security_groups=_listed("MM_SAGEMAKER_SECURITY_GROUPS"),
            environment={name: os.environ[name] for name in _FORWARDED if name in os.environ},
        )

    def request(
        self,
        name: str,
        inputs: str,
        compute: Compute,
        tags: Mapping[str, str],
        entrypoint: Sequence[str],
    ) -> dict[str, Any]:
        """The request that creates a job."""
        request: dict[str, Any] = {
            "ProcessingJobName": name,
            "RoleArn": self.role,
            "AppSpecification": {
                "ImageUri": self.image,
                "ContainerEntrypoint": list(entrypoint),
                "ContainerArguments": [f"{INPUT}/{ORDER}"],
            },
            "ProcessingInputs": [
                {
                    "InputName": "job",
                    "S3Input": {
                        "S3Uri": inputs,
                        "LocalPath": INPUT,
                        "S3DataType": "S3Prefix",
                        "S3InputMode": "File",
                    },
                }
            ],
            "ProcessingResources": {
                "ClusterConfig": {
                    "InstanceCount": 1,
                    "InstanceType": compute.sagemaker_instance,
                    "VolumeSizeInGB": VOLUME_GB,
                }
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": max(1, round(compute.hours * 3600))},
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }
        if self.environment:
            request["Environment"] = dict(self.environment)
        if self.subnets:
            request["NetworkConfig"] = {
                "VpcConfig": {
                    "Subnets": list(self.subnets),
                    "SecurityGroupIds": list(self.security_groups),
                }
            }
        return request


def _listed(variable: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in os.environ.get(variable, "").split(",") if part.strip())

"""The requests that create processing and training jobs, and the names of jobs."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mm_assets.assets.compute import Compute
from mm_assets.cohort.folders import TRAINING_STATE
from mm_assets.resources.job_folder import ORDER

ENTRYPOINT = ("python", "-m", "mm_assets.job")
CHANNEL = "job"
CHECKPOINTS = "/opt/ml/checkpoints"
VOLUME_GB = 100  # twice the default limit of the slide cache
NAME_CHARACTERS = 63
_ROLE, _IMAGE = "MM_SAGEMAKER_ROLE", "MM_SAGEMAKER_IMAGE"
MLFLOW_SECRET = "MM_SAGEMAKER_MLFLOW_SECRET"
_FORWARDED = (
    *("AWS_REGION", "MM_SLIDE_CACHE_GB", MLFLOW_SECRET),
    *("MM_DAGSTER_URL", "MM_MLFLOW_URL", "MM_VIEWER_URL"),
)


@dataclass(frozen=True)
class JobKind:
    """Processing or training jobs: what the service calls their parts.

    Attributes
    ----------
    word
        First word of the operations and of the keys of requests and answers.
    inputs
        Folder of the container in which a job's order lies.
    """

    word: Literal["Processing", "Training"]
    inputs: str

    @property
    def log_group(self) -> str:
        """CloudWatch's group of the jobs' logs."""
        return f"/aws/sagemaker/{self.word}Jobs"

    @property
    def order(self) -> str:
        """Path of the order in the container."""
        return f"{self.inputs}/{ORDER}"


PROCESSING = JobKind("Processing", "/opt/ml/processing/input/job")
TRAINING = JobKind("Training", f"/opt/ml/input/data/{CHANNEL}")


@dataclass(frozen=True)
class Place:
    """Where a job's files lie on S3, as ``s3://`` addresses.

    Attributes
    ----------
    inputs
        Its order and what lies beside it.
    outputs
        Where the service puts what it makes of a training job's folders.
    checkpoints
        State of trainings, there before a job that goes on with it and after one that was ended.
    """

    inputs: str
    outputs: str
    checkpoints: str


def job_name(*parts: str, digest: str, attempt: int, characters: int = NAME_CHARACTERS) -> str:
    """Name of so many ``[a-zA-Z0-9-]`` at most that ends with digest and attempt.

    Examples
    --------
    >>> job_name("mm", "demo", "tile_embeddings", digest="0f3a", attempt=1)
    'mm-demo-tile-embeddings-0f3a-1'
    """
    end = f"-{digest}-{attempt}"
    words = re.sub(r"[^a-zA-Z0-9]+", "-", "-".join(parts)).strip("-")
    return words[: characters - len(end)].rstrip("-") + end


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
        kind: JobKind,
        place: Place,
        compute: Compute,
        tags: Mapping[str, str],
        command: Sequence[str],
    ) -> dict[str, Any]:
        """The request, but for the name, of a job that runs `command` on its order's path."""
        code = {
            "ContainerEntrypoint": list(command),
            "ContainerArguments": [kind.order],
        }
        request: dict[str, Any] = {
            "RoleArn": self.role,
            "StoppingCondition": {"MaxRuntimeInSeconds": max(1, round(compute.hours * 3600))},
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }
        if kind is PROCESSING:
            return request | self._processing(place, compute, code)
        return request | self._training(place, compute, code)

    def _processing(
        self, place: Place, compute: Compute, code: Mapping[str, Any]
    ) -> dict[str, Any]:
        source = {
            "S3Uri": place.inputs,
            "LocalPath": PROCESSING.inputs,
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
        }
        network = {"NetworkConfig": {"VpcConfig": self._network()}} if self.subnets else {}
        return {
            "AppSpecification": {"ImageUri": self.image, **code},
            "ProcessingInputs": [{"InputName": CHANNEL, "S3Input": source}],
            "ProcessingResources": {"ClusterConfig": _machine(compute)},
            "Environment": dict(self.environment),
            **network,
        }

    def _training(self, place: Place, compute: Compute, code: Mapping[str, Any]) -> dict[str, Any]:
        algorithm = {"TrainingImage": self.image, "TrainingInputMode": "File", **code}
        return {
            "AlgorithmSpecification": algorithm,
            **self.training_parts(place, compute),
            "CheckpointConfig": {"S3Uri": place.checkpoints, "LocalPath": CHECKPOINTS},
            "Environment": {**self.environment, TRAINING_STATE: CHECKPOINTS},
        }

    def training_parts(self, place: Place, compute: Compute) -> dict[str, Any]:
        """What training jobs and the children of tuning jobs are told alike."""
        source = {"S3DataType": "S3Prefix", "S3Uri": place.inputs}
        network = {"VpcConfig": self._network()} if self.subnets else {}
        return {
            "InputDataConfig": [
                {
                    "ChannelName": CHANNEL,
                    "DataSource": {
                        "S3DataSource": {**source, "S3DataDistributionType": "FullyReplicated"}
                    },
                }
            ],
            "OutputDataConfig": {"S3OutputPath": place.outputs},
            "ResourceConfig": _machine(compute),
            **network,
        }

    def _network(self) -> dict[str, Any]:
        return {"Subnets": list(self.subnets), "SecurityGroupIds": list(self.security_groups)}


def _machine(compute: Compute) -> dict[str, Any]:
    return {
        "InstanceCount": 1,
        "InstanceType": compute.sagemaker_instance,
        "VolumeSizeInGB": VOLUME_GB,
    }


def _listed(variable: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in os.environ.get(variable, "").split(",") if part.strip())

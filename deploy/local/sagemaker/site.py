"""Where jobs run: folders, the server of S3 and CloudWatch, what stands for the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

IMAGES = Path(__file__).parents[2] / "images"


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
    train
        The image's `train`, for training jobs whose request says nothing to run: images are not
        looked at.
    sync_seconds
        Time between looks for new checkpoints.
    """

    folder: Path
    endpoint: str
    region: str = "eu-west-2"
    grace_seconds: float = 120.0
    train: Sequence[str] = (str(IMAGES / "train"),)
    sync_seconds: float = 1.0

    def client(self, service: str) -> Any:
        """Client of S3 or CloudWatch, with the server's own credentials."""
        return boto3.client(service, endpoint_url=self.endpoint, region_name=self.region)

"""Training jobs: a process, its hyper-parameters, channels, checkpoints and model."""

import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from deploy.local.sagemaker import metrics
from deploy.local.sagemaker.jobs import CallerError
from deploy.local.sagemaker.metrics import Metrics
from deploy.local.sagemaker.mirror import Mirror, address, put
from deploy.local.sagemaker.mount import MOUNT
from deploy.local.sagemaker.process import ProcessJob, lies_under
from deploy.local.sagemaker.site import Site

CONFIG = "/opt/ml/input/config"
DATA = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
_HOST = "algo-1"
# What a tarball of the job's output holds.
_KEPT = {"model.tar.gz": "/opt/ml/model", "output.tar.gz": "/opt/ml/output/data"}


class TrainingJob(ProcessJob):
    """One training job, of its own or of a tuning job.

    When it ends, ``/opt/ml/model`` and ``/opt/ml/output/data`` become tarballs under its output
    address, the model only if it has not failed.

    Attributes
    ----------
    tuning_arn
        The tuning job that it is of, if any.
    metrics
        What its log has told so far.
    """

    kind = "Training"
    unknown = ("ValidationException", "Requested resource not found.")

    def __init__(self, request: dict[str, Any], arn: str, site: Site) -> None:
        super().__init__(request, arn, site)
        self.tuning_arn = ""
        self.metrics = Metrics(request["AlgorithmSpecification"].get("MetricDefinitions", ()))
        self._checkpoints: Mirror | None = None
        self._synced = 0.0

    @classmethod
    def objections(cls, request: dict[str, Any]) -> Iterator[str]:
        """What the service asks for although its model does not, and what is not done here."""
        needed = ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition")
        missing = [member for member in needed if member not in request]
        if missing:
            yield f"{', '.join(missing)} must be given"
            return
        algorithm, machine = request["AlgorithmSpecification"], request["ResourceConfig"]
        if "TrainingImage" not in algorithm:
            yield "TrainingImage must be given"
        if machine.get("InstanceCount") != 1 or "InstanceType" not in machine:
            yield "ResourceConfig: jobs run on one machine of one type here"
        yield from metrics.objections(algorithm.get("MetricDefinitions", ()))
        for channel in request.get("InputDataConfig", ()):
            yield from _channel_objections(channel, algorithm["TrainingInputMode"])
        if request["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP":
            yield "OutputDataConfig: only tarballs are made here"
        checkpoints = request.get("CheckpointConfig", {}).get("LocalPath", CHECKPOINTS)
        if not lies_under(checkpoints, MOUNT):
            yield f"CheckpointConfig: only a LocalPath under {MOUNT} is mounted here"

    def _command(self) -> Sequence[str]:
        algorithm = self.request["AlgorithmSpecification"]
        entrypoint = algorithm.get("ContainerEntrypoint", ())
        return [*entrypoint, *algorithm.get("ContainerArguments", ())] or self.site.train

    def _variables(self) -> dict[str, str]:
        return {"TRAINING_JOB_NAME": self.name, "TRAINING_JOB_ARN": self.arn}

    def _fetch(self) -> None:
        for folder in _KEPT.values():
            self.place(folder).mkdir(parents=True)
        self._configure("hyperparameters", self.request.get("HyperParameters", {}))
        self._configure("resourceconfig", _machine(self.request["ResourceConfig"]["InstanceType"]))
        channels = {item["ChannelName"]: item for item in self.request.get("InputDataConfig", ())}
        mode = self.request["AlgorithmSpecification"]["TrainingInputMode"]
        told = {name: _told(channel, mode) for name, channel in channels.items()}
        self._configure("inputdataconfig", told)
        for name, channel in channels.items():
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            if not self.mirror(uri, f"{DATA}/{name}").pull():
                raise CallerError(f"channel {name}: no S3 objects found under {uri}")
        checkpoint = self.request.get("CheckpointConfig")
        if checkpoint:
            path = checkpoint.get("LocalPath", CHECKPOINTS)
            self.place(path).mkdir(parents=True, exist_ok=True)
            self._checkpoints = self.mirror(checkpoint["S3Uri"], path)
            self._checkpoints.pull()

    def _observe(self, lines: list[str]) -> None:
        self.metrics.observe(lines)
        if self._checkpoints and time.monotonic() > self._synced + self.site.sync_seconds:
            self._checkpoints.push()
            self._synced = time.monotonic()

    def _keep(self, end: str) -> None:
        if self._checkpoints:
            self._checkpoints.push()
        bucket, prefix = address(self._output)
        for name, path in _KEPT.items():
            if end != "Failed" or name != "model.tar.gz":
                tarball = self.folder / name
                _pack(self.place(path), tarball)
                put(self.site.client("s3"), tarball, bucket, prefix, name)

    def _error(self) -> str:
        return self.read("/opt/ml/output/failure")

    def _facts(self) -> dict[str, Any]:
        phases = list(self.phases)
        seconds = max(1, round(self.ended - self.started)) if self.ended and self.started else None
        ends = [moment for _, moment in phases[1:]] + [self.ended]
        return {
            **super()._facts(),
            "SecondaryStatus": phases[-1][0],
            "SecondaryStatusTransitions": [
                {"Status": phase, "StartTime": begin, **({"EndTime": end} if end else {})}
                for (phase, begin), end in zip(phases, ends, strict=True)
            ],
            "ModelArtifacts": {"S3ModelArtifacts": f"{self._output}/model.tar.gz"},
            "FinalMetricDataList": self.metrics.describe(),
            "TrainingTimeInSeconds": seconds,
            "BillableTimeInSeconds": seconds,
            "TuningJobArn": self.tuning_arn,
        }

    @property
    def _output(self) -> str:
        """Address of what the job leaves."""
        path: str = self.request["OutputDataConfig"]["S3OutputPath"]
        return f"{path.rstrip('/')}/{self.name}/output"

    def _configure(self, name: str, content: dict[str, Any]) -> None:
        file = self.place(f"{CONFIG}/{name}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))


def _channel_objections(channel: dict[str, Any], default_mode: str) -> Iterator[str]:
    name, source = channel["ChannelName"], channel["DataSource"].get("S3DataSource")
    if source is None or source["S3DataType"] != "S3Prefix":
        yield f"channel {name}: only prefixes of S3 are brought here"
    if channel.get("InputMode", default_mode) != "File":
        yield f"channel {name}: only InputMode File is spoken here"
    unpacked = {channel.get("CompressionType", "None"), channel.get("RecordWrapperType", "None")}
    if unpacked != {"None"}:
        yield f"channel {name}: files are neither unpacked nor wrapped here"


def _told(channel: dict[str, Any], default_mode: str) -> dict[str, str]:
    """What the container is told of a channel."""
    source = channel["DataSource"]["S3DataSource"]
    content = {"ContentType": channel["ContentType"]} if "ContentType" in channel else {}
    return {
        **content,
        "TrainingInputMode": channel.get("InputMode", default_mode),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }


def _machine(instance_type: str) -> dict[str, Any]:
    """`resourceconfig.json` of a job on one machine."""
    group = "homogeneousCluster"
    return {
        "current_host": _HOST,
        "current_instance_type": instance_type,
        "current_group_name": group,
        "hosts": [_HOST],
        "instance_groups": [
            {"instance_group_name": group, "instance_type": instance_type, "hosts": [_HOST]}
        ],
        "network_interface_name": "eth0",
    }


def _pack(folder: Path, tarball: Path) -> None:
    with tarfile.open(tarball, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, arcname=file.name)

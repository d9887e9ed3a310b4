"""Registered models mirrored to SageMaker: a model package group each, a package per version.

MLflow decides, and packages follow: the champion's is approved, all others wait for an approval
that only becoming champion gives. Nothing is approved or rejected in SageMaker itself: the next
`sync` would undo it.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mm_assets.resources.model_run import FINGERPRINT_TAG, OUTCOME
from mm_assets.resources.tracking import CHAMPION

if TYPE_CHECKING:
    from mlflow import MlflowClient

APPROVED, PENDING, REJECTED = "Approved", "PendingManualApproval", "Rejected"
IMAGE = "MM_SAGEMAKER_IMAGE"
# Property of a package -> tag of the version.
_PROPERTIES = {
    "dagster_run": "dagster.run_id",
    "dagster_asset": "dagster.asset_key",
    "code_version": "mm.code_version",
    "splits": "mm.splits",
    "fingerprint": FINGERPRINT_TAG,
}
_NAME_CHARACTERS, _TOKEN_CHARACTERS, _REASON_CHARACTERS = 63, 36, 1024


@dataclass(frozen=True)
class Version:
    """A version as MLflow has it."""

    model: str
    number: int
    run_id: str
    tags: Mapping[str, str]
    champion: bool

    @property
    def identity(self) -> tuple[str, str]:
        """What its package is found by; numbers alone begin anew in another database."""
        return str(self.number), self.run_id

    @property
    def outcome(self) -> str:
        """What was decided of it, in words."""
        return self.tags.get(OUTCOME, "not evaluated yet")

    def request(self, image: str) -> dict[str, Any]:
        """The request that creates its package.

        It has no model data: MLflow's files are a folder, and the service wants one ``tar.gz``.
        """
        found = {key: self.tags.get(tag, "") for key, tag in _PROPERTIES.items()}
        number, run_id = self.identity
        found |= {"mlflow_model": self.model, "mlflow_version": number, "mlflow_run": run_id}
        name = f"{self.model}:{number}:{run_id}"
        return {
            "ModelPackageGroupName": group_name(self.model),
            "ModelPackageDescription": f"{self.model} version {number} of MLflow",
            "ModelApprovalStatus": PENDING,
            "InferenceSpecification": {"Containers": [{"Image": image}]},
            "CustomerMetadataProperties": {key: text for key, text in found.items() if text},
            "ClientToken": hashlib.sha256(name.encode()).hexdigest()[:_TOKEN_CHARACTERS],
        }


@dataclass(frozen=True)
class Package:
    """A package as the service has it."""

    arn: str
    identity: tuple[str, str]
    status: str
    reason: str


def group_name(model: str) -> str:
    """Group of a registered model: its letters and digits, and a digest that tells it from others.

    Examples
    --------
    >>> group_name("demo.survival.heec")
    'mm-demo-survival-heec-53bc33c2'
    """
    end = f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    words = re.sub(r"[^a-zA-Z0-9]+", "-", f"mm-{model}")
    return words[: _NAME_CHARACTERS - len(end)].rstrip("-") + end


def sync(client: "MlflowClient", model: str) -> None:
    """Make packages and approvals of a registered model agree with MLflow.

    Raises
    ------
    ValueError
        When `MM_SAGEMAKER_IMAGE` is not set.
    botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError
        When the service refuses or cannot be reached. What is done stays; the next call goes on.
    """
    image = os.environ.get(IMAGE)
    if not image:
        raise ValueError(f"{IMAGE} is not set: the image of the packages")
    service = _service()
    _ensure_group(service, model)
    # Somebody may promote another version meanwhile: who writes last must have seen it.
    seen = None
    while (versions := _versions(client, model)) != seen:
        _agree(service, model, versions, image)
        seen = versions


def _service() -> Any:
    import boto3
    from botocore.config import Config

    # Throttled requests are repeated by botocore, later and later.
    retries = {"mode": "standard", "total_max_attempts": 12}
    config = Config(retries=retries, connect_timeout=5, read_timeout=20)
    session = boto3.Session(region_name=os.environ.get("AWS_REGION"))
    return session.client("sagemaker", config=config)


def _versions(client: "MlflowClient", model: str) -> list[Version]:
    """All versions, the oldest first."""
    champion = client.get_registered_model(model).aliases.get(CHAMPION)
    versions = [
        Version(model, int(v.version), str(v.run_id), dict(v.tags), str(v.version) == str(champion))
        for v in client.search_model_versions(f"name = '{model}'")
    ]
    return sorted(versions, key=lambda version: version.number)


def _decision(version: Version, champion: Version | None) -> tuple[str, str]:
    """Approval status of the package of a version, and why.

    A former champion is pending again, not rejected: it may become champion again.
    """
    if version == champion:
        return APPROVED, version.outcome
    if champion is None:
        return PENDING, f"no version is champion; decided of this one: {version.outcome}"
    return PENDING, (
        f"version {champion.number} is champion: {champion.outcome}; "
        f"decided of this one: {version.outcome}"
    )


def _ensure_group(service: Any, model: str) -> None:
    name = group_name(model)
    if _has_group(service, name):
        return
    try:
        service.create_model_package_group(
            ModelPackageGroupName=name, ModelPackageGroupDescription=f"{model} of MLflow"
        )
    except service.exceptions.ClientError:
        if not _has_group(service, name):  # else another process was faster
            raise


def _has_group(service: Any, name: str) -> bool:
    try:
        service.describe_model_package_group(ModelPackageGroupName=name)
    except service.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != "ValidationException":
            raise
        return False
    return True


def _agree(service: Any, model: str, versions: Sequence[Version], image: str) -> None:
    packages = _packages(service, model)
    known = {package.identity for package in packages}
    for version in versions:
        if version.identity not in known:
            arn = service.create_model_package(**version.request(image))["ModelPackageArn"]
            packages.append(Package(arn, version.identity, PENDING, ""))
    champion = next((version for version in versions if version.champion), None)
    decisions = {version.identity: _decision(version, champion) for version in versions}
    gone = REJECTED, "MLflow has this version no more"
    wanted = [(package, *decisions.get(package.identity, gone)) for package in packages]
    # The champion comes last: at no moment are two approved.
    for package, status, words in sorted(wanted, key=lambda one: one[1] == APPROVED):
        reason = " ".join(words.split())[:_REASON_CHARACTERS]
        if (package.status, package.reason) != (status, reason):
            service.update_model_package(
                ModelPackageArn=package.arn, ModelApprovalStatus=status, ApprovalDescription=reason
            )


def _packages(service: Any, model: str) -> list[Package]:
    """Packages of the group that were made here."""
    pages = service.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group_name(model)
    )
    found = []
    for summary in (one for page in pages for one in page["ModelPackageSummaryList"]):
        arn = summary["ModelPackageArn"]
        facts = service.describe_model_package(ModelPackageName=arn)
        made = facts.get("CustomerMetadataProperties", {})
        if made.get("mlflow_model") == model:
            identity = made["mlflow_version"], made["mlflow_run"]
            reason = facts.get("ApprovalDescription", "")
            found.append(Package(arn, identity, facts["ModelApprovalStatus"], reason))
    return found

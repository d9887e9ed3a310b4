"""The model registry: groups of versioned model packages, kept in memory."""

import time
from collections.abc import Callable
from typing import Any

from deploy.local.sagemaker.table import Refusal

Request = dict[str, Any]
PAGE = 10
CUSTOM_PROPERTIES = 50  # how many a package may have
_TOLD = ("ModelPackageGroupName", "ModelPackageVersion", "ModelPackageArn", "CreationTime")
_TOLD += ("ModelPackageDescription", "ModelPackageStatus", "ModelApprovalStatus")


class ModelRegistry:
    """Groups and their packages.

    Parameters
    ----------
    arn
        What the address of a resource begins with.

    Attributes
    ----------
    groups, packages
        By name and by address, as they are described, in the order of their creation.
    """

    def __init__(self, arn: str) -> None:
        self._arn = arn
        self.groups: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, dict[str, Any]] = {}
        self._made_with: dict[str, tuple[Request, str]] = {}

    @property
    def operations(self) -> dict[str, Callable[[Request], dict[str, Any]]]:
        """What it does, by the names of the protocol."""
        return {
            "CreateModelPackageGroup": self._create_group,
            "DescribeModelPackageGroup": self._group,
            "ListModelPackageGroups": self._list_groups,
            "CreateModelPackage": self._create,
            "DescribeModelPackage": lambda request: self._package(request["ModelPackageName"]),
            "UpdateModelPackage": self._update,
            "ListModelPackages": self._list,
        }

    def _create_group(self, request: Request) -> dict[str, Any]:
        name = request["ModelPackageGroupName"]
        arn = f"{self._arn}:model-package-group/{name}"
        if name in self.groups:
            raise Refusal("ValidationException", f"Model Package Group already exists: {arn}")
        self.groups[name] = {
            **{key: value for key, value in request.items() if key != "Tags"},
            "ModelPackageGroupArn": arn,
            "ModelPackageGroupStatus": "Completed",
            "CreationTime": time.time(),
            "CreatedBy": {},
        }
        return {"ModelPackageGroupArn": arn}

    def _group(self, request: Request) -> dict[str, Any]:
        name = request["ModelPackageGroupName"].rpartition("/")[2]
        if name not in self.groups:
            arn = f"{self._arn}:model-package-group/{name}"
            raise Refusal("ValidationException", f"ModelPackageGroup {arn} does not exist.")
        return self.groups[name]

    def _list_groups(self, request: Request) -> dict[str, Any]:
        part = request.get("NameContains", "")
        found = [group for name, group in self.groups.items() if part in name]
        return _page("ModelPackageGroupSummaryList", found, request)

    def _create(self, request: Request) -> dict[str, Any]:
        self._refuse(request)
        group = self._group(request)["ModelPackageGroupName"]
        if token := request.get("ClientToken"):
            before, arn = self._made_with.get(token, (request, ""))
            if before != request:
                raise Refusal("ConflictException", f"The token {token} made another package")
            if arn:
                return {"ModelPackageArn": arn}
        number = 1 + sum(p["ModelPackageGroupName"] == group for p in self.packages.values())
        arn = f"{self._arn}:model-package/{group}/{number}"
        self.packages[arn] = {
            "ModelApprovalStatus": "PendingManualApproval",
            **{key: value for key, value in request.items() if key != "ClientToken"},
            "ModelPackageName": group,
            "ModelPackageGroupName": group,
            "ModelPackageVersion": number,
            "ModelPackageArn": arn,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": [], "ImageScanStatuses": []},
            "CreationTime": time.time(),
        }
        if token:
            self._made_with[token] = request, arn
        return {"ModelPackageArn": arn}

    def _refuse(self, request: Request) -> None:
        """What the service's model allows and its documentation does not."""
        if "ModelPackageGroupName" not in request or "ModelPackageName" in request:
            raise Refusal("ValidationException", "Only packages of a group are spoken of here")
        if "Tags" in request:
            raise Refusal("ValidationException", "A package of a group has the tags of its group")
        for container in request.get("InferenceSpecification", {}).get("Containers", ()):
            if not container.get("ModelDataUrl", ".tar.gz").endswith(".tar.gz"):
                raise Refusal("ValidationException", "ModelDataUrl must be a .tar.gz")

    def _package(self, name: str) -> dict[str, Any]:
        arn = name if name.startswith("arn:") else f"{self._arn}:model-package/{name}"
        if arn not in self.packages:
            raise Refusal("ValidationException", f"ModelPackage {arn} does not exist.")
        return self.packages[arn]

    def _update(self, request: Request) -> dict[str, Any]:
        package = self._package(request["ModelPackageArn"])
        custom = {**package.get("CustomerMetadataProperties", {})}
        custom |= request.get("CustomerMetadataProperties", {})
        for key in request.get("CustomerMetadataPropertiesToRemove", ()):
            custom.pop(key, None)
        if len(custom) > CUSTOM_PROPERTIES:
            raise Refusal(
                "ValidationException", f"More than {CUSTOM_PROPERTIES} CustomerMetadataProperties"
            )
        changed = ("ModelApprovalStatus", "ApprovalDescription", "InferenceSpecification")
        package |= {key: request[key] for key in changed if key in request}
        package |= {"CustomerMetadataProperties": custom, "LastModifiedTime": time.time()}
        return {"ModelPackageArn": package["ModelPackageArn"]}

    def _list(self, request: Request) -> dict[str, Any]:
        found = list(self.packages.values())
        if "ModelPackageGroupName" in request:
            group = self._group(request)["ModelPackageGroupName"]
            found = [p for p in found if p["ModelPackageGroupName"] == group]
        if status := request.get("ModelApprovalStatus"):
            found = [p for p in found if p["ModelApprovalStatus"] == status]
        summaries = [{key: p[key] for key in _TOLD if key in p} for p in found]
        return _page("ModelPackageSummaryList", summaries, request)


def _page(name: str, found: list[dict[str, Any]], request: Request) -> dict[str, Any]:
    if request.get("SortOrder") == "Descending":
        found = found[::-1]
    start, size = int(request.get("NextToken") or 0), request.get("MaxResults", PAGE)
    page = {name: found[start : start + size]}
    return page if start + size >= len(found) else {**page, "NextToken": str(start + size)}

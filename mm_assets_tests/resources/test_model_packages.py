"""Registered models mirrored to packages of the local SageMaker server, with a real MLflow."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from deploy.local.sagemaker.server import SageMaker
from mm_assets.resources.model_packages import group_name, sync
from mm_assets.resources.model_run import OUTCOME
from mm_assets.resources.tracking import MIRROR, Tracking
from mm_assets_tests.resources.models import model_run
from mm_assets_tests.sagemaker import IMAGE

REPOSITORY = Path(__file__).resolve().parents[2]
PENDING, WRITES = "PendingManualApproval", ("CreateModelPackage", "UpdateModelPackage")


@pytest.fixture
def registry(sagemaker_settings: SageMaker, monkeypatch: pytest.MonkeyPatch) -> SageMaker:
    """The server, and the mirror switched on."""
    monkeypatch.setenv(MIRROR, "1")
    return sagemaker_settings


def packages(model: str) -> list[dict[str, Any]]:
    """Packages of a model as the service describes them, in its order."""
    service = boto3.client("sagemaker", region_name="eu-west-2")
    pages = service.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group_name(model)
    )
    return [
        service.describe_model_package(ModelPackageName=one["ModelPackageArn"])
        for page in pages
        for one in page["ModelPackageSummaryList"]
    ]


def statuses(model: str) -> dict[str, str]:
    """MLflow's version -> status of its package; one package has each."""
    found = [
        (p["CustomerMetadataProperties"]["mlflow_version"], p["ModelApprovalStatus"])
        for p in packages(model)
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def writes(service: SageMaker) -> list[dict[str, Any]]:
    return [request for operation, request in service.calls if operation in WRITES]


@contextmanager
def without_mirror() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MIRROR)
        yield


def test_the_champions_package_is_approved_and_another_follows_it(
    tracking: Tracking, registry: SageMaker
) -> None:
    first = tracking.log_model(model_run("mirrored"))
    assert statuses(first.name) == {"1": "Approved"}
    tracking.note(first, {OUTCOME: "champion: the first version"})
    second = tracking.log_model(model_run("mirrored", code_version="2"))
    assert statuses(first.name) == {"1": "Approved", "2": PENDING}
    tracking.note(second, {OUTCOME: "not promoted over version 1: worse"})
    reasons = [package["ApprovalDescription"] for package in packages(first.name)]
    assert reasons == [
        "champion: the first version",
        "version 1 is champion: champion: the first version; "
        "decided of this one: not promoted over version 1: worse",
    ]

    registry.calls.clear()
    tracking.promote(second, {OUTCOME: "promoted by Ana: seen\non new slides"})
    assert statuses(first.name) == {"1": PENDING, "2": "Approved"}
    old, new = packages(first.name)
    assert new["ApprovalDescription"] == "promoted by Ana: seen on new slides"
    assert old["ApprovalDescription"].startswith("version 2 is champion: promoted by Ana")
    # At no moment were two approved.
    assert [request["ModelApprovalStatus"] for request in writes(registry)] == [PENDING, "Approved"]
    assert new["InferenceSpecification"]["Containers"] == [{"Image": IMAGE}]
    assert new["CustomerMetadataProperties"] == {
        "mlflow_model": "demo.survival.mirrored",
        "mlflow_version": "2",
        "mlflow_run": second.run_id,
        "dagster_run": "1f0a",
        "dagster_asset": "demo/heec_survival",
        "code_version": "2",
        "splits": "sha256:4",
        "fingerprint": model_run("mirrored", code_version="2").fingerprint(),
    }
    tracking.promote(first, {})
    assert statuses(first.name) == {"1": "Approved", "2": PENDING}


def test_what_agrees_is_left_alone(tracking: Tracking, registry: SageMaker) -> None:
    for code_version in "12":
        tracking.log_model(model_run("still", code_version))
    before = len(writes(registry))
    for code_version in "12":
        tracking.log_model(model_run("still", code_version))
    assert len(writes(registry)) == before
    assert statuses("demo.survival.still") == {"1": "Approved", "2": PENDING}


def test_two_mirrors_at_once_make_one_package_a_version(
    tracking: Tracking, registry: SageMaker
) -> None:
    with without_mirror():
        for code_version in "123":
            tracking.log_model(model_run("twice", code_version))
    assert not registry.calls
    client = tracking._client()
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(sync, client, "demo.survival.twice") for _ in range(4)]:
            done.result()
    assert statuses("demo.survival.twice") == {"1": "Approved", "2": PENDING, "3": PENDING}


def test_a_promotion_during_the_mirroring_is_seen(tracking: Tracking, registry: SageMaker) -> None:
    with without_mirror():
        first, second = (tracking.log_model(model_run("meanwhile", v)) for v in "12")
    client = tracking._client()

    class Interrupted:
        """A client between whose requests somebody promotes a version."""

        get_registered_model = client.get_registered_model

        def search_model_versions(self, query: str) -> Any:
            found = client.search_model_versions(query)
            with without_mirror():
                tracking.promote(second, {OUTCOME: "promoted"})
            return found

    sync(Interrupted(), first.name)
    assert statuses(first.name) == {"1": PENDING, "2": "Approved"}


def test_more_versions_than_a_page(tracking: Tracking, registry: SageMaker) -> None:
    with without_mirror():
        first = tracking.log_model(model_run("many"))
    client = tracking._client()
    source = client.get_model_version(first.name, "1").source
    for _ in range(11):
        client.create_model_version(first.name, source=source, run_id=first.run_id)
    sync(client, first.name)
    assert statuses(first.name) == {"1": "Approved"} | {str(n): PENDING for n in range(2, 13)}
    registry.calls.clear()
    sync(client, first.name)
    assert writes(registry) == []
    assert sum(operation == "ListModelPackages" for operation, _ in registry.calls) == 2


def test_versions_that_are_gone_and_packages_made_by_hand(
    tracking: Tracking, registry: SageMaker
) -> None:
    first = tracking.log_model(model_run("gone"))
    second = tracking.log_model(model_run("gone", code_version="2"))
    service = boto3.client("sagemaker", region_name="eu-west-2")
    ours = [package["ModelPackageArn"] for package in packages(first.name)]
    service.update_model_package(ModelPackageArn=ours[1], ModelApprovalStatus="Approved")
    by_hand = service.create_model_package(
        ModelPackageGroupName=group_name(first.name), ModelApprovalStatus="Approved"
    )["ModelPackageArn"]
    tracking.note(second, {OUTCOME: "not promoted"})
    found = {p["ModelPackageArn"]: p["ModelApprovalStatus"] for p in packages(first.name)}
    assert found == {ours[0]: "Approved", ours[1]: PENDING, by_hand: "Approved"}

    tracking._client().delete_model_version(first.name, "1")
    tracking.note(second, {OUTCOME: "not promoted"})
    found = {p["ModelPackageArn"]: p["ModelApprovalStatus"] for p in packages(first.name)}
    assert found == {ours[0]: "Rejected", ours[1]: PENDING, by_hand: "Approved"}
    reason = service.describe_model_package(ModelPackageName=ours[1])["ApprovalDescription"]
    assert reason == "no version is champion; decided of this one: not promoted"


def test_throttled_requests_are_repeated(
    tracking: Tracking, registry: SageMaker, caplog: pytest.LogCaptureFixture
) -> None:
    for operation in ("DescribeModelPackageGroup", "ListModelPackages", *WRITES):
        registry.faults[operation] += ["ThrottlingException"]
    registered = tracking.log_model(model_run("throttled"))
    assert not any(registry.faults.values())
    assert caplog.messages == []
    assert statuses(registered.name) == {"1": "Approved"}


@pytest.mark.parametrize(
    "operation", ["DescribeModelPackageGroup", "CreateModelPackageGroup", *WRITES]
)
def test_a_model_is_registered_though_the_service_fails(
    tracking: Tracking, registry: SageMaker, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    name = f"failing_{operation}"
    registry.faults[operation] += ["AccessDeniedException"]
    first = tracking.log_model(model_run(name))
    (warning,) = caplog.messages
    assert first.aliases == ("champion",)
    assert warning.startswith(f"{first.name}: its SageMaker model packages do not follow MLflow")
    assert f"calling the {operation} operation" in warning
    assert "nothing is lost" in warning
    # The next event repairs what was left.
    second = tracking.log_model(model_run(name, code_version="2"))
    assert statuses(first.name) == {"1": "Approved", "2": PENDING}
    registry.faults["UpdateModelPackage"] += ["AccessDeniedException"]
    assert tracking.promote(second, {OUTCOME: "promoted"}).aliases == ("champion",)
    tracking.note(second, {})
    assert statuses(first.name) == {"1": PENDING, "2": "Approved"}


def test_without_an_image_the_variable_is_named(
    tracking: Tracking,
    registry: SageMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("MM_SAGEMAKER_IMAGE")
    assert tracking.log_model(model_run("imageless")).version == 1
    assert "MM_SAGEMAKER_IMAGE is not set" in caplog.text
    assert not registry.calls


SWITCHED_OFF = """
import sys
from mm_assets.resources.tracking import Tracking
from mm_assets_tests.resources.models import model_run
tracking = Tracking(tracking_uri=sys.argv[1])
tracking.promote(tracking.log_model(model_run("off")), {"mm.promotion": "promoted"})
print("boto3" in sys.modules, "mm_assets.resources.model_packages" in sys.modules)
"""


def test_switched_off_nothing_is_called_and_nothing_imported(
    sagemaker_settings: SageMaker, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWITCHED_OFF, f"sqlite:///{tmp_path}/mlflow.db"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert sagemaker_settings.calls == []


def test_names_of_groups() -> None:
    long = group_name(f"cohort.{'task' * 20}.heec")
    names = [group_name("a_b.c.d"), group_name("a.b_c.d"), long]
    assert names[0].startswith("mm-a-b-c-d-")
    assert len(set(names)) == 3
    assert len(long) == 63


CONTAINERS = {"Containers": [{"Image": IMAGE, "ModelDataUrl": "s3://bucket/model"}]}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"ModelPackageGroupName": "mm-absent"}, "mm-absent does not exist"),
        ({"ModelPackageName": "mm-alone"}, "Only packages of a group"),
        ({"Tags": [{"Key": "a", "Value": "b"}]}, "tags of its group"),
        ({"InferenceSpecification": CONTAINERS}, "must be a .tar.gz"),
        ({"CustomerMetadataProperties": {"a": "b, c"}}, "regular expression pattern"),
        ({"CustomerMetadataProperties": {"a": "b" * 257}}, "less than or equal to 256"),
        ({"ModelPackageDescription": "two\nlines"}, "regular expression pattern"),
        ({"ClientToken": "x" * 37}, "less than or equal to 36"),
    ],
)
def test_what_the_service_refuses_the_local_one_does(
    sagemaker: SageMaker, request_: dict[str, Any], message: str
) -> None:
    service = boto3.client("sagemaker", region_name="eu-west-2")
    service.create_model_package_group(
        ModelPackageGroupName="mm-group", ModelPackageGroupDescription="Größe ½, (é) €"
    )
    with pytest.raises(ClientError, match=message):
        service.create_model_package(**{"ModelPackageGroupName": "mm-group", **request_})
    assert not sagemaker.registry.packages


def test_groups_and_tokens_of_the_local_service(sagemaker: SageMaker) -> None:
    service = boto3.client("sagemaker", region_name="eu-west-2")
    for name in ("mm-one", "mm-two"):
        service.create_model_package_group(ModelPackageGroupName=name)
    with pytest.raises(ClientError, match="already exists"):
        service.create_model_package_group(ModelPackageGroupName="mm-one")
    listed = service.list_model_package_groups(SortOrder="Descending")
    names = [group["ModelPackageGroupName"] for group in listed["ModelPackageGroupSummaryList"]]
    assert names == ["mm-two", "mm-one"]
    made = [
        service.create_model_package(ModelPackageGroupName="mm-one", ClientToken=token)
        for token in ("a", "a", "b")
    ]
    ends = [answer["ModelPackageArn"].rpartition("package/")[2] for answer in made]
    assert ends == ["mm-one/1", "mm-one/1", "mm-one/2"]
    with pytest.raises(ClientError, match="ConflictException"):
        service.create_model_package(ModelPackageGroupName="mm-two", ClientToken="a")
    with pytest.raises(ClientError, match=r"mm-one/3 does not exist"):
        service.describe_model_package(ModelPackageName=ends[0].replace("/1", "/3"))

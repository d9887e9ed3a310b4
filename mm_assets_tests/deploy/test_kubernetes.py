"""Manifests and the jobs of steps, against the schemas of Kubernetes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster_k8s.job import (
    DagsterK8sJobConfig,
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
)
from kubernetes.client import ApiClient

from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.loading import load_config
from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.conftest import REPOSITORY

VERSION = "1.31"
MANIFESTS = ("access.yaml", "control_plane.yaml")


def _documents() -> Iterator[dict[str, Any]]:
    for name in MANIFESTS:
        yield from yaml.safe_load_all((REPOSITORY / "deploy" / "k8s" / name).read_text())


@pytest.mark.parametrize(
    "manifest", _documents(), ids=lambda found: f"{found['kind']}-{found['metadata']['name']}"
)
def test_manifests_are_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_a_misspelt_key_is_seen() -> None:
    manifest = next(m for m in _documents() if m["kind"] == "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_every_service_finds_a_deployment_that_listens() -> None:
    documents = list(_documents())
    listening = {
        document["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]: port
        for document in documents
        if document["kind"] == "Deployment"
        for container in document["spec"]["template"]["spec"]["containers"]
        for port in [p["containerPort"] for p in container.get("ports", [])]
    }
    services = {
        document["spec"]["selector"]["app.kubernetes.io/name"]: document["spec"]["ports"][0]["port"]
        for document in documents
        if document["kind"] == "Service"
    }
    assert services == listening
    assert len(services) == 4


def test_steps_ask_for_what_their_assets_declare(tmp_path: Path) -> None:
    own = {"tile_weights": "cohort", "region_weights": "cohort"}
    config = load_config(make_cohort(tmp_path / "tiny", patients=4, slides=1, hipt=own, nuclei={}))
    seen = {}
    for stage in cohort_stages(config):
        compute = stage.compute_for(config)
        tags = compute.op_tags()["dagster-k8s/config"]
        job = construct_dagster_k8s_job(
            DagsterK8sJobConfig(job_image="image", dagster_home="/opt/dagster"),
            args=["dagster", "api", "execute_step"],
            job_name=f"step-{stage.name}".replace("_", "-").lower(),
            user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(tags),
        )
        made = ApiClient().sanitize_for_serialization(job)
        kubernetes_validate.validate(made, VERSION, strict=True)
        wants = made["spec"]["template"]["spec"]["containers"][0]["resources"]
        assert wants["requests"]["cpu"] == str(compute.cpu)
        seen[stage.name] = int(wants.get("limits", {}).get("nvidia.com/gpu", 0))
    assert seen["tile_embeddings"] == 1
    assert seen["tissue"] == 0

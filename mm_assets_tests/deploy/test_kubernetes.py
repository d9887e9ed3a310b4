"""Manifests and the jobs of runs and steps, against the schemas of Kubernetes."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import kubernetes
import kubernetes_validate
import pytest
import yaml
from dagster._core.launcher import LaunchRunContext
from dagster_k8s import k8s_job_executor
from dagster_k8s.client import DagsterK8sUnrecoverableAPIError
from dagster_k8s.job import (
    DagsterK8sJobConfig,
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
)
from kubernetes.client import ApiClient

from mm_assets.assets.compute import Compute
from mm_assets.assets.graph import cohort_stages
from mm_assets.cohort.loading import load_config
from mm_assets_tests.cohorts import make_cohort
from mm_assets_tests.conftest import REPOSITORY

VERSION = "1.31"
KUBERNETES = REPOSITORY / "deploy" / "k8s"
MANIFESTS = ("access.yaml", "control_plane.yaml")
SETTINGS = ("deploy/dagster.yaml", "deploy/workspace.yaml", "deploy/k8s/run_launcher.yaml")


def _documents() -> Iterator[dict[str, Any]]:
    for name in MANIFESTS:
        yield from yaml.safe_load_all((KUBERNETES / name).read_text())


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


def variables() -> dict[str, str]:
    """The ConfigMap's example."""
    lines = (KUBERNETES / "variables.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def _variables_in(settings: object) -> Iterator[str]:
    match settings:
        case {"env": str(name)}:
            yield name
        case dict():
            for value in settings.values():
                yield from _variables_in(value)
        case list():
            for value in settings:
                yield from _variables_in(value)


def test_what_settings_ask_for_is_in_the_config_map_or_a_secret() -> None:
    asked = {
        name
        for file in SETTINGS
        for name in _variables_in(yaml.safe_load((REPOSITORY / file).read_text()))
    }
    assert {"MM_NAMESPACE", "MM_WORKER_IMAGE", "MM_CODE_HOST"} <= asked
    assert {name for name in asked if not name.startswith("DAGSTER_PG_")} <= set(variables())


def test_mlflow_is_called_by_a_name_it_answers_to() -> None:
    told = variables()
    called = told["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert called in told["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    (service,) = (
        found
        for found in _documents()
        if found["kind"] == "Service" and found["metadata"]["name"] == called.partition(":")[0]
    )
    assert called.endswith(f":{service['spec']['ports'][0]['port']}")


@dg.op(tags=Compute(gpu=1, gpu_kind="NVIDIA-A10G").op_tags())
def embed() -> None:
    """A step that never gets its machine."""


@dg.job(executor_def=k8s_job_executor)
def embedding() -> None:
    """A run of one step."""
    embed()


class FullCluster(BaseHTTPRequestHandler):
    """Kubernetes' API where the quota is used up: jobs are read and refused."""

    asked: list[tuple[str, dict[str, Any]]]

    def do_POST(self) -> None:
        """Create a job."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(body)))
        self.send_error(403, "exceeded quota")

    def log_message(self, *_: object) -> None:
        """Not on the tests' terminal."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Addresses and jobs that a cluster was asked for; all are refused."""
    handler = type("Handler", (FullCluster,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    place = kubernetes.client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(kubernetes.client.Configuration, "_default", place)
    monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
    yield handler.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """An instance of this machine whose runs go where those of a cluster's go."""
    (tmp_path / "dagster.yaml").write_text((KUBERNETES / "run_launcher.yaml").read_text())
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as made:
        yield made


def _ask_for_a_run(instance: dg.DagsterInstance) -> None:
    origin = dg.reconstructable(embedding).get_python_origin()
    run = instance.create_run_for_job(embedding, job_code_origin=origin)
    with pytest.raises(DagsterK8sUnrecoverableAPIError):
        instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))


def _ask_for_a_step(instance: dg.DagsterInstance) -> None:
    result = dg.execute_job(dg.reconstructable(embedding), instance, raise_on_error=False)
    assert not result.success


@pytest.mark.parametrize(
    ("ask", "command", "needs"),
    [
        (_ask_for_a_run, "execute_run", {}),
        (_ask_for_a_step, "execute_step", {"nvidia.com/gpu": "1"}),
    ],
    ids=["run", "step"],
)
def test_runs_and_steps_are_jobs_of_the_workers_image_that_reach_mlflow(
    instance: dg.DagsterInstance,
    asked: list[tuple[str, dict[str, Any]]],
    ask: Any,
    command: str,
    needs: dict[str, str],
) -> None:
    ask(instance)
    ((address, job),) = asked
    assert address == f"/apis/batch/v1/namespaces/{variables()['MM_NAMESPACE']}/jobs"
    kubernetes_validate.validate(job, VERSION, strict=True)
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == variables()["MM_WORKER_IMAGE"]
    # All that runs: the image has no entry point.
    assert "command" not in container
    assert container["args"][:3] == ["dagster", "api", command]
    assert container["resources"].get("limits", {}) == needs
    sources = [next(iter(source.values()))["name"] for source in container["envFrom"]]
    assert sources == ["mm-assets", "mm-assets-postgres", "mm-assets-login"]
    assert pod["spec"]["securityContext"]["runAsUser"] == 10001
    labels = pod["metadata"]["labels"]
    assert _let_in() in labels.items()
    assert not [name for name, wanted in _served().items() if wanted.items() <= labels.items()]


def _let_in() -> tuple[str, str]:
    """The label of pods that reach the control plane's."""
    (policy,) = (found for found in _documents() if found["kind"] == "NetworkPolicy")
    own = policy["spec"]["podSelector"]["matchLabels"]
    assert {"podSelector": {"matchLabels": own}} in policy["spec"]["ingress"][0]["from"]
    ((label, value),) = own.items()
    return label, value


def _served() -> dict[str, dict[str, str]]:
    """Labels by which services find their pods."""
    services = (found for found in _documents() if found["kind"] == "Service")
    return {found["metadata"]["name"]: found["spec"]["selector"] for found in services}

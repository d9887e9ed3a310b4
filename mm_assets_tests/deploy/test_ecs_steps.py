"""Steps as tasks of ECS: moto's takes the requests, and what they ask for is run here."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import yaml
from moto.ec2.utils import generate_instance_identity_document
from moto.server import ThreadedMotoServer

from mm_assets.assets.compute import Compute
from mm_assets_tests.conftest import REPOSITORY
from mm_assets_tests.deploy.ecs_job import job

CLUSTER, RUNS, GPU_RUNS, CAPACITY = "mm-assets", "mm-assets-run", "mm-assets-run-gpu", "gpu"


@pytest.fixture
def ecs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a cluster with a task, which this process is, and a machine for others."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-west-2",
        "MM_ENGINE": "ecs",
        "MM_RUN_TASK_DEFINITION": RUNS,
        "MM_GPU_TASK_DEFINITION": GPU_RUNS,
        "MM_GPU_CAPACITY_PROVIDER": CAPACITY,
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("ecs")
    client.create_cluster(clusterName=CLUSTER)
    for family in (RUNS, GPU_RUNS):
        client.register_task_definition(
            family=family,
            networkMode="awsvpc",
            cpu="4096",
            memory="16384",
            containerDefinitions=[{"name": "run", "image": "image", "memory": 1024}],
        )
    _add_machine(client)
    with _metadata(_start_run(client)) as address:
        monkeypatch.setenv("ECS_CONTAINER_METADATA_URI_V4", address)
        yield client
    server.stop()


def test_every_step_is_a_task_of_its_size(ecs: Any, tmp_path: Path) -> None:
    settings = yaml.safe_load((REPOSITORY / "deploy" / "ecs" / "run_launcher.yaml").read_text())
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    done = threading.Event()
    agent = threading.Thread(target=_run_tasks, args=(ecs, done, str(tmp_path)))
    agent.start()
    try:
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            result = dg.execute_job(dg.reconstructable(job), instance=instance)
            assert result.success
            processes = {
                event.asset_key.to_user_string(): materialization.metadata["process"].value
                for event in result.all_events
                if event.is_step_materialization and event.asset_key
                for materialization in [event.step_materialization_data.materialization]
            }
    finally:
        done.set()
        agent.join()
    assert len({*processes.values(), os.getpid()}) == 3
    first, second = sorted(_tasks(ecs)[1:], key=lambda task: "capacityProviderName" in task)
    assert (first["launchType"], first["overrides"]["cpu"]) == ("FARGATE", "2048")
    assert first["overrides"]["memory"] == "8192"
    assert RUNS in first["taskDefinitionArn"]
    assert GPU_RUNS in second["taskDefinitionArn"]
    assert second["capacityProviderName"] == CAPACITY
    assert "cpu" not in second["overrides"]


def test_what_no_task_can_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_ENGINE", "ecs")
    with pytest.raises(ValueError, match="2 GPUs wanted, a task of ECS has one"):
        Compute(gpu=2, cpu=8).op_tags()
    with pytest.raises(ValueError, match="set MM_GPU_TASK_DEFINITION and MM_GPU_CAPACITY_PROVIDER"):
        Compute(gpu=1).op_tags()


def test_runs_must_be_tasks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MM_ENGINE", "MM_GPU_TASK_DEFINITION", "MM_GPU_CAPACITY_PROVIDER"):
        monkeypatch.setenv(name, "ecs")
    with (
        dg.instance_for_test() as instance,
        pytest.raises(ValueError, match=r"append deploy/ecs/run_launcher\.yaml"),
    ):
        dg.execute_job(dg.reconstructable(job), instance=instance)


def _add_machine(client: Any) -> None:
    ec2 = boto3.resource("ec2")
    image = next(iter(boto3.client("ec2").describe_images()["Images"]))["ImageId"]
    (machine,) = ec2.create_instances(ImageId=image, MinCount=1, MaxCount=1)
    document = json.dumps(generate_instance_identity_document(machine))
    client.register_container_instance(cluster=CLUSTER, instanceIdentityDocument=document)


def _start_run(client: Any) -> str:
    subnet = next(iter(boto3.resource("ec2").subnets.all()))
    group = next(iter(boto3.resource("ec2").security_groups.all()))
    network = {"subnets": [subnet.id], "securityGroups": [group.id]}
    started = client.run_task(
        cluster=CLUSTER,
        taskDefinition=RUNS,
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": network},
    )
    return str(started["tasks"][0]["taskArn"])


class _metadata:
    """What ECS tells a task of itself, at an address; closed at the end."""

    def __init__(self, task: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"Cluster": CLUSTER, "TaskARN": task}).encode())

            def log_message(self, *words: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *problem: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def _tasks(client: Any) -> list[dict[str, Any]]:
    arns = client.list_tasks(cluster=CLUSTER)["taskArns"]
    tasks = client.describe_tasks(cluster=CLUSTER, tasks=arns)["tasks"]
    return sorted(tasks, key=lambda task: bool(task["overrides"]))


def _run_tasks(client: Any, done: threading.Event, home: str) -> None:
    """Do what containers would."""
    seen: set[str] = set()
    while not done.wait(0.5):
        for task in _tasks(client):
            if task["taskArn"] in seen or not task["overrides"]:
                continue
            seen.add(task["taskArn"])
            (container,) = task["overrides"]["containerOverrides"]
            given = {pair["name"]: pair["value"] for pair in container["environment"]}
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            environment = {**os.environ, "PATH": path, "DAGSTER_HOME": home, **given}
            if subprocess.run(container["command"], env=environment).returncode:
                client.stop_task(cluster=CLUSTER, task=task["taskArn"])

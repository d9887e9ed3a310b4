"""What is appended to Dagster's settings for each place where runs can go."""

from importlib import import_module

import pytest
import yaml
from dagster._config import process_config

from mm_assets_tests.conftest import REPOSITORY

DEPLOY = REPOSITORY / "deploy"


@pytest.mark.parametrize(
    ("place", "variable", "found"),
    [
        # The launcher itself looks this one up.
        ("ecs", "MM_RUN_TASK_DEFINITION", "{'env': 'MM_RUN_TASK_DEFINITION'}"),
        ("k8s", "MM_NAMESPACE", "'job_namespace': 'somewhere'"),
        ("ray", "MM_RAY_ADDRESS", "'address': 'somewhere'"),
    ],
)
def test_the_launcher_of_runs_takes_its_settings(
    monkeypatch: pytest.MonkeyPatch, place: str, variable: str, found: str
) -> None:
    monkeypatch.setenv("MM_WORKER_IMAGE", "an-image")
    monkeypatch.setenv(variable, "somewhere")
    text = (DEPLOY / place / "run_launcher.yaml").read_text()
    given = yaml.safe_load(text)["run_launcher"]
    launcher = getattr(import_module(given["module"]), given["class"])
    result = process_config(launcher.config_type(), given["config"])
    assert result.success, result.errors
    assert found in str(result.value)
    settings = (DEPLOY / "dagster.yaml").read_text()
    assert set(yaml.safe_load(settings + text)) > set(yaml.safe_load(settings))


def test_code_is_found_by_its_host() -> None:
    (location,) = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]
    assert location["grpc_server"]["host"] == {"env": "MM_CODE_HOST"}

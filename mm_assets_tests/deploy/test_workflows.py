"""Workflows of GitHub: by zizmor, and that they name programs of ours that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mm_assets_tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "ci"
WORKFLOWS = sorted(FOLDER.glob("*.yaml"))


def test_zizmor_finds_nothing() -> None:
    zizmor = Path(sys.executable).with_name("zizmor")
    done = subprocess.run(
        [zizmor, "--offline", "--quiet", "--persona", "pedantic", *WORKFLOWS],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert len(WORKFLOWS) == 2


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_programs_are_there(workflow: Path) -> None:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    for action in [step["uses"] for step in steps if "uses" in step]:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)
    for command in [step["run"] for step in steps if "run" in step]:
        program = REPOSITORY / next(
            word for word in command.split() if word.startswith(("deploy/", ".ci/"))
        )
        assert program.stat().st_mode & 0o100
        subprocess.run(["bash", "-n", program], check=True)


def test_production_gets_what_was_tried_after_an_approval() -> None:
    jobs = yaml.safe_load((FOLDER / "deliver.yaml").read_text())["jobs"]
    assert jobs["promote"]["needs"] == ["build", "try"]
    assert jobs["promote"]["environment"] == "production"
    digests = [
        {name: value for name, value in jobs[job]["env"].items() if name.endswith("_DIGEST")}
        for job in ("try", "promote")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3

"""What the pipeline asks of the test stage, told to a double of AWS's command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from mm_assets.cli import app
from mm_assets_tests.conftest import REPOSITORY

# Tasks are numbered, and over when they are asked for the second time; `FAILS` is the bad one.
AWS = """#!{python}
import json, os, sys
tasks, words = {tasks!r}, sys.argv[1:]
told = json.load(open(tasks)) if os.path.exists(tasks) else []
if words[1] == "run-task":
    told.append({{"overrides": json.loads(words[words.index("--overrides") + 1]), "asked": 0}})
    print(len(told) - 1)
else:
    number = int(words[words.index("--tasks") + 1])
    told[number]["asked"] += 1
    over, fails = told[number]["asked"] == 2, os.environ["FAILS"] == str(number)
    print("STOPPED" if over else "RUNNING", int(fails) if over else "None")
json.dump(told, open(tasks, "w"))
"""


def tasks(folder: Path, fails: str = "", **variables: str) -> tuple[int, list[tuple[str, ...]]]:
    """Exit status of the program, and launcher and command of each task."""
    double, told = folder / "aws", folder / "tasks.json"
    double.write_text(AWS.format(python=sys.executable, tasks=str(told)))
    double.chmod(0o755)
    given = {"MM_DEPLOY_STAGE": "test", "MM_DEPLOY_ACCOUNT": "1", "SUBNETS": "s", "GROUP": "g"}
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "FAILS": fails, "POLL_SECONDS": "0"}
    done = subprocess.run(
        ["bash", REPOSITORY / "deploy" / "ci" / "run_demo.sh"],
        env={**given, **path, **variables},
        check=False,
    )
    runs = [task["overrides"]["containerOverrides"][0] for task in json.loads(told.read_text())]
    assert {run["name"] for run in runs} == {"run"}
    return done.returncode, [(run["environment"][0]["value"], *run["command"]) for run in runs]


def accepted(words: tuple[str, ...]) -> None:
    """Fail unless `mm` knows the command and all its options."""
    command, rest = get_command(app), list(words)
    context = None
    while hasattr(command, "commands"):
        context = command.make_context("mm", rest[:0], parent=context, resilient_parsing=True)
        command = command.get_command(context, rest.pop(0))
        assert command
    command.make_context("mm", rest, parent=context)


def test_the_cohort_is_put_made_and_shown(tmp_path: Path) -> None:
    status, found = tasks(tmp_path, PATIENTS="37")
    assert status == 0
    launchers = ("local", "local", "sagemaker", "local", "local")
    assert [task[:2] for task in found] == [(launcher, "mm") for launcher in launchers]
    for _, _, *words in found:
        accepted(tuple(words))
    _, _, *create = found[0]
    assert create[create.index("--patients") + 1] == "37"
    assert create[create.index("--to") + 1] == "s3://mm-assets-test-1-store/cohorts/synthetic"
    slides = create[create.index("--slides-to") + 1]
    assert slides == "s3://mm-assets-test-1-slides/synthetic"
    assert "tile_embeddings" in found[2]
    assert found[-1][2:] == ("reload",)


@pytest.mark.parametrize("fails", ["0", "2"])
def test_what_fails_ends_the_delivery(tmp_path: Path, fails: str) -> None:
    status, found = tasks(tmp_path, fails)
    assert status != 0
    assert len(found) == int(fails) + 1
    assert found[0][found[0].index("--patients") + 1] == "120"

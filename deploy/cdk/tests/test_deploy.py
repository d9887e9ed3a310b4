"""The program that deploys, with CDK's own put aside: what it describes and which part of it."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import Synthesized, variables

REPOSITORY = Path(__file__).parents[3]


def test_the_base_comes_first_and_stays_as_it_was(synthesized: Synthesized, tmp_path: Path) -> None:
    given = variables(synthesized.stage).items()
    without = {name: text for name, text in given if not name.endswith("_DIGEST")}
    programs = {
        "make": "exit 0",
        "npx": f'echo "$4" >{tmp_path}/stacks; exec {sys.executable} app.py',
    }
    for program, text in programs.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    where = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CDK_OUTDIR": str(tmp_path / "out")}
    subprocess.run(
        ["deploy/ci/deploy.sh", "base"],
        cwd=REPOSITORY,
        env={**os.environ, **without, **where},
        check=True,
    )
    assert (tmp_path / "stacks").read_text() == "mm-assets-base\n"
    template = "mm-assets-base.template.json"
    made = (tmp_path / "out" / template).read_bytes()
    assert made == (synthesized.folder / template).read_bytes()

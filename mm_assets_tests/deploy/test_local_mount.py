"""The mount of a job's folder on /opt/ml, and what is said where it may not be made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.sagemaker.mount import mounted, require_mounts
from mm_assets_tests.conftest import REPOSITORY

TRY = "from deploy.local.sagemaker.mount import require_mounts; require_mounts()"


def without_rights(*options: str) -> subprocess.CompletedProcess[str]:
    """`require_mounts` in a process of less rights."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() or setpriv is None:
        pytest.skip("needs root and setpriv, to give up rights")
    return subprocess.run(
        [setpriv, *options, "--", sys.executable, "-c", TRY],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_without_the_right_to_mount_it_is_told_what_it_takes() -> None:
    done = without_rights("--bounding-set=-all", "--inh-caps=-all")
    assert done.returncode == 1
    assert "PermissionError: jobs get a folder of their own on /opt/ml" in done.stderr
    assert "run as root" in done.stderr
    assert "unshare failed: Operation not permitted" in done.stderr


def test_without_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PermissionError, match="takes Linux with util-linux"):
        require_mounts()


def test_the_process_is_the_command_itself(tmp_path: Path) -> None:
    try:
        require_mounts()
    except PermissionError as error:
        pytest.skip(str(error))
    process = subprocess.Popen(
        mounted(tmp_path, ["sh", "-c", "echo $$ > /opt/ml/pid; exit 7"]), cwd="/"
    )
    assert process.wait() == 7
    assert int((tmp_path / "pid").read_text()) == process.pid

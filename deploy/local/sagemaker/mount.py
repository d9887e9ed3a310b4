"""A folder of a job's own on ``/opt/ml``: bind-mounted in a mount namespace that is the job's.

Root may do so. Others may in a user namespace of their own, where the system allows these; the job
then believes to be root.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

MOUNT = Path("/opt/ml")


def mounted(folder: Path, command: Sequence[str]) -> list[str]:
    """A command that becomes the given one, with the folder on ``/opt/ml``, under the same pid."""
    unshare, mount, shell = (shutil.which(name) or name for name in ("unshare", "mount", "sh"))
    namespaces = ["--mount", "--propagation", "private"]
    if os.geteuid():
        namespaces.append("--map-root-user")
    script = f'{mount} --bind "$0" {MOUNT} && exec "$@"'
    return [unshare, *namespaces, shell, "-c", script, str(folder), *command]


def require_mounts() -> None:
    """Try a mount.

    Raises
    ------
    PermissionError
        When this process may not mount; the message says what it takes.
    """
    needed = (
        f"jobs get a folder of their own on {MOUNT}, which takes Linux with util-linux, the folder "
        f"{MOUNT}, and the right to mount: run as root (in a container: with CAP_SYS_ADMIN), or "
        "allow user namespaces to unprivileged users"
    )
    try:
        MOUNT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            trial = subprocess.run(mounted(Path(folder), ["true"]), capture_output=True, text=True)
    except OSError as error:
        raise PermissionError(f"{needed} ({error})") from error
    if trial.returncode:
        raise PermissionError(f"{needed} ({trial.stderr.strip()})")

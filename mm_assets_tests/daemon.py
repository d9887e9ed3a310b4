"""A real Dagster daemon for tests, in a process of its own."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")
_PORTS = range(20_000, 32_000)  # Linux gives out those from 32,768 on
_locked: list[IO[str]] = []


def environment(home: Path, cohorts: Path) -> dict[str, str]:
    """Variables under which a process sees the test's cohorts and nothing else."""
    return {
        **os.environ,
        "MM_HOME": str(home),
        "MM_COHORTS": str(cohorts),
        "DAGSTER_HOME": str(home / "dagster"),
        "PYTHONFAULTHANDLER": "1",
    }


def free_port() -> int:
    """A port of the loopback address that nothing listens on and no other test was given.

    Servers take seconds to listen: until then a port that the system gives out may be given to
    another process, so it is one that the system does not give out, locked as long as this
    process lives.
    """
    folder = Path(tempfile.gettempdir()) / "mm_assets_ports"
    folder.mkdir(exist_ok=True)
    for port in random.sample(_PORTS, len(_PORTS)):
        handle = (folder / str(port)).open("w")
        with suppress(OSError), socket.socket() as probe:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind(("127.0.0.1", port))
            _locked.append(handle)
            return port
        handle.close()
    raise RuntimeError("no port is free")


@contextmanager
def running_daemon(home: Path, cohorts: Path) -> Iterator[Path]:
    """The daemon, from start to end; yields the file its output goes to."""
    log = home / "daemon.log"
    command = [sys.executable, "-m", "dagster._daemon", "run", "-m", "mm_assets.definitions"]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            env=environment(home, cohorts),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield log
        finally:
            # Not SIGINT: who runs the tests in the background has it ignored.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(
    what: str,
    look: Callable[[], T | None],
    seconds: float,
    log: Path,
    group: int | None = None,
) -> T:
    """Poll until `look` returns something; on a time-out fail with the end of the log.

    An `OSError` (a server that does not answer yet) counts as nothing; the last one is told on
    failure. Processes of `group` are then aborted, so that the log shows what each of them did.
    """
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            found = look()
        except OSError as error:
            found, last = None, error
        if found:
            return found
        time.sleep(1)
    if group is not None:
        os.killpg(group, signal.SIGABRT)
        time.sleep(5)
    tail = "\n".join(log.read_text().splitlines()[-200:])
    raise AssertionError(
        f"{what} did not happen within {seconds:.0f} s (last: {last!r}); the log says:\n{tail}"
    )

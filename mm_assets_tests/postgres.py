"""A real PostgreSQL server for Dagster's storage, in a folder of its own."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from mm_assets_tests.daemon import free_port

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Postgres:
    """A running server on the loopback address, with a database and a user ``dagster``."""

    port: int
    pid: int

    def configure(self, dagster_home: Path) -> None:
        """Write a Dagster home whose storage is this server, otherwise as ours is."""
        settings = yaml.safe_load(files("mm_assets.resources").joinpath("dagster.yaml").read_text())
        database = {
            "scheme": "postgresql+psycopg2",
            "hostname": "127.0.0.1",
            "port": self.port,
            "username": "dagster",
            "password": "",
            "db_name": "dagster",
        }
        settings["storage"] = {"postgres": {"postgres_db": database}}
        dagster_home.mkdir(parents=True)
        (dagster_home / "dagster.yaml").write_text(yaml.safe_dump(settings))

    def cpu_seconds(self) -> float:
        """CPU time of the server and all its processes, past and present."""
        own = _ticks(self.pid)
        ticks = sum(own)
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if _parent(int(folder.name)) == self.pid:
                    ticks += sum(_ticks(int(folder.name)))
            except OSError:
                continue  # it has just ended and counts among the server's past ones
        return ticks / _TICKS


def find_programs() -> Path | None:
    """Folder of ``initdb`` and ``postgres``, which are seldom on the path."""
    on_path = shutil.which("postgres")
    installed = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), on_path]
    return next((Path(found).resolve().parent for found in installed if found), None)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """The server, from start to end; it runs as another user where we are root, as it must.

    Raises
    ------
    FileNotFoundError
        When PostgreSQL is not installed.
    """
    programs = find_programs()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    user = _other_user() if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        data = str(folder / "data")
        create = [str(programs / "initdb"), "-D", data, "-U", "dagster", "-A", "trust", "-N"]
        quiet = subprocess.DEVNULL
        subprocess.run([*create, "-E", "UTF8"], user=user, check=True, stdout=quiet, cwd=folder)
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [str(programs / "postgres"), "-D", data, *options],
                user=user,
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            _create_database(port, process, folder / "log")
            yield Postgres(port, process.pid)
        finally:
            process.send_signal(signal.SIGINT)  # does not wait for connections
            process.wait(30)


def _create_database(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg2

    where = {"host": "127.0.0.1", "port": port, "user": "dagster"}
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            connection = psycopg2.connect(dbname="postgres", **where)
        except psycopg2.OperationalError:
            time.sleep(0.05)
            continue
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE dagster")
        connection.close()
        return
    raise RuntimeError(f"the PostgreSQL server does not answer:\n{log.read_text()}")


def _other_user() -> str:
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _ticks(pid: int) -> list[int]:
    """User and system time of a process and of its ended children."""
    return [int(field) for field in _fields(pid)[11:15]]


def _parent(pid: int) -> int:
    return int(_fields(pid)[1])


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: the name before it may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

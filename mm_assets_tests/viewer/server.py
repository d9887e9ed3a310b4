"""`mm view` as a process, and requests as nobody's browser would send them."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mm_assets_tests.daemon import environment, free_port, wait_for


@contextmanager
def running_viewer(home: Path, yaml: Path) -> Iterator[int]:
    """`mm view` of a cohort; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "mm_assets", "view", "tiny", "--no-browser", "--port"]
    log = home / "viewer.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*command, str(port)],
            env=environment(home, yaml.parents[1]),
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for("the viewer", lambda: ask(port, "/api/cohorts")[0] == 200, 120, log, process.pid)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def ask(
    port: int,
    path: str,
    body: Any = None,
    method: str | None = None,
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers; the path is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body
    if body is not None and not isinstance(body, bytes):
        data = json.dumps(body).encode()
        sent.setdefault("content-type", "application/json")
    connection.putrequest(method or ("GET" if body is None else "POST"), path, skip_host=True)
    connection.putheader("host", sent.pop("host", f"127.0.0.1:{port}"))
    if data is not None:
        connection.putheader("content-length", str(len(data)))
    for name, value in sent.items():
        connection.putheader(name, value)
    connection.endheaders(data)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, {k.lower(): v for k, v in answer.getheaders()}

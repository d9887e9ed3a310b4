"""A slow S3: a proxy that delays objects, spoils them and remembers requests."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from mm_assets_tests.s3_proxy import ask, proxy, send_head

PIECES = 20


@dataclass(frozen=True)
class Fetch:
    """One GET of an object: its name and, by `time.time`, when it began and ended."""

    name: str
    began: float
    ended: float


class SlowS3:
    """The proxy; set its attributes at any time.

    Attributes
    ----------
    seconds
        How long the body of an object takes.
    spoil
        Applied to every body.
    fetches
        Finished GETs of objects.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.seconds = 0.0
        self.spoil: Callable[[bytes], bytes] = bytes
        self.fetches: list[Fetch] = []
        self.address = ""

    def names(self) -> list[str]:
        """Names of the objects fetched, sorted, once for each GET."""
        return sorted(fetch.name for fetch in self.fetches)

    def relay(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request with the server's answer, a piece at a time."""
        began = time.time()
        answer = ask(self.server, request)
        is_object = request.command == "GET" and "list-type" not in request.path
        if is_object:
            answer = replace(answer, content=self.spoil(answer.content))
        send_head(request, answer)
        size = -(-len(answer.content) // PIECES)
        for start in range(0, len(answer.content), max(1, size)):
            request.wfile.write(answer.content[start : start + size])
            request.wfile.flush()
            if is_object:
                time.sleep(self.seconds / PIECES)
        if is_object:
            name = urlsplit(request.path).path.rpartition("/")[2]
            self.fetches.append(Fetch(name, began, time.time()))


@contextmanager
def slow_s3(server: str) -> Iterator[SlowS3]:
    """The proxy on a port of its own."""
    slow = SlowS3(server)
    with proxy(slow.relay) as address:
        slow.address = address
        yield slow

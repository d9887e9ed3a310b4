"""A faulty S3: a proxy that refuses requests, cuts bodies short and falls silent."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from mm_assets_tests.s3_proxy import Answer, ask, proxy, read_body, send_head

REFUSED = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>no</Message></Error>'
# Shares of the requests, as drawn one after the other.
SHARES = {"refused": 0.05, "failed": 0.05, "cut": 0.02, "silent": 0.01}


class FaultyS3:
    """The proxy.

    Attributes
    ----------
    seconds
        How long it is silent before it hangs up.
    met
        How many requests met what: those of `SHARES`, and ``well``. ``refused`` ones never reach
        the server; all others do, whether or not the client hears of it.
    """

    def __init__(self, server: str, seconds: float) -> None:
        self.server, self.seconds, self.address = server, seconds, ""
        self.met: Counter[str] = Counter()
        self._random, self._lock = random.Random(0), threading.Lock()

    def relay(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request, or fail to."""
        with self._lock:
            (kind,) = self._random.choices([*SHARES, "well"], [*SHARES.values(), self._rest])
            self.met[kind] += 1
        if kind == "refused":
            read_body(request)
            self._refuse(request, 503)
            return
        answer = ask(self.server, request)
        if kind == "failed":
            self._refuse(request, 500)
        elif kind == "silent":
            time.sleep(self.seconds)
            request.close_connection = True
        else:
            self._send(request, answer, cut=kind == "cut")

    @property
    def _rest(self) -> float:
        return 1 - sum(SHARES.values())

    def _refuse(self, request: BaseHTTPRequestHandler, status: int) -> None:
        content = b"" if request.command == "HEAD" else REFUSED
        send_head(request, Answer(status, (("Content-Length", str(len(content))),), content))
        request.wfile.write(content)

    def _send(self, request: BaseHTTPRequestHandler, answer: Answer, cut: bool) -> None:
        if not cut:
            send_head(request, answer)
            request.wfile.write(answer.content)
            return
        if answer.content:  # else not even the head arrives
            send_head(request, answer)
            request.wfile.write(answer.content[: len(answer.content) // 2])
        request.close_connection = True


@contextmanager
def faulty_s3(server: str, seconds: float) -> Iterator[FaultyS3]:
    """The proxy on a port of its own."""
    faulty = FaultyS3(server, seconds)
    with proxy(faulty.relay) as address:
        faulty.address = address
        yield faulty

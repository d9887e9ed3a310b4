"""A slow S3: a proxy before a server that delays objects, spoils them and remembers requests."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


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
        self.server = urlsplit(server).netloc
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
        upstream = http.client.HTTPConnection(self.server)
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length)
        upstream.request(request.command, request.path, body, dict(request.headers))
        answer = upstream.getresponse()
        content = answer.read()
        is_object = request.command == "GET" and "list-type" not in request.path
        if is_object:
            content = self.spoil(content)
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                request.send_header(name, value)
        request.end_headers()
        pieces = 20
        for start in range(0, len(content), max(1, -(-len(content) // pieces))):
            request.wfile.write(content[start : start + -(-len(content) // pieces)])
            request.wfile.flush()
            if is_object:
                time.sleep(self.seconds / pieces)
        if is_object:
            name = urlsplit(request.path).path.rpartition("/")[2]
            self.fetches.append(Fetch(name, began, time.time()))


@contextmanager
def slow_s3(server: str) -> Iterator[SlowS3]:
    """The proxy on a port of its own."""
    slow = SlowS3(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def relay(self) -> None:
            try:
                slow.relay(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

        def log_message(self, *_: object) -> None:
            """Be silent."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    slow.address = f"http://127.0.0.1:{proxy.server_port}"
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield slow
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()

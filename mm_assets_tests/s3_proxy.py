"""A proxy before an S3 server, through which tests watch and disturb requests."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BODY_HEADERS = ("content-length", "transfer-encoding", "expect")
DENIED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
HOP_HEADERS = ("transfer-encoding", "connection", "date", "server")


@dataclass(frozen=True)
class Answer:
    """A server's answer to one request."""

    status: int
    headers: tuple[tuple[str, str], ...]
    content: bytes


Relay = Callable[[BaseHTTPRequestHandler], None]


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """Body of a request, whether its length was told beforehand or not."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def ask(server: str, request: BaseHTTPRequestHandler) -> Answer:
    """Hand a request on to the server at an address."""
    upstream = http.client.HTTPConnection(urlsplit(server).netloc)
    body = read_body(request)
    told = {k: v for k, v in request.headers.items() if k.lower() not in BODY_HEADERS}
    upstream.request(
        request.command, request.path, body, {**told, "Content-Length": str(len(body))}
    )
    answer = upstream.getresponse()
    headers = tuple(h for h in answer.getheaders() if h[0].lower() not in HOP_HEADERS)
    return Answer(answer.status, headers, answer.read())


def send_head(request: BaseHTTPRequestHandler, answer: Answer) -> None:
    """Send everything of an answer but its content."""
    request.send_response(answer.status)
    for name, value in answer.headers:
        request.send_header(name, value)
    request.end_headers()


@contextmanager
def proxy(relay: Relay) -> Iterator[str]:
    """Address of a proxy that has `relay` answer every request, each in a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client was killed or has given up
                super().handle()

        def answer(self) -> None:
            relay(self)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Be silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def forbidding_s3() -> Iterator[str]:
    """Address of a server that allows nothing."""

    def refuse(request: BaseHTTPRequestHandler) -> None:
        read_body(request)
        content = b"" if request.command == "HEAD" else DENIED
        send_head(request, Answer(403, (("Content-Length", str(len(content))),), content))
        request.wfile.write(content)

    with proxy(refuse) as address:
        yield address

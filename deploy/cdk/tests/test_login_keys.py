"""The function that fetches the balancer's public keys, from a server that has one."""

import http.server
import urllib.error
from collections.abc import Iterator
from threading import Thread

import login_keys
import pytest

KNOWN, UNKNOWN, BROKEN = (f"{n}0000000-0000-0000-0000-000000000000" for n in range(3))
PEM = "-----BEGIN PUBLIC KEY-----"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths that the server was asked for."""
    paths: list[str] = []

    class Keys(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response({f"/{KNOWN}": 200, f"/{BROKEN}": 500}.get(self.path, 403))
            self.end_headers()
            self.wfile.write(PEM.encode())

    with http.server.HTTPServer(("127.0.0.1", 0), Keys) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(login_keys, "KEYS", f"http://127.0.0.1:{server.server_port}")
        yield paths
        server.shutdown()


def test_a_key_is_fetched_by_its_id(asked: list[str]) -> None:
    assert login_keys.handler({"kid": KNOWN}, None) == PEM
    assert login_keys.handler({"kid": UNKNOWN}, None) is None
    with pytest.raises(urllib.error.HTTPError, match="500"):
        login_keys.handler({"kid": BROKEN}, None)
    assert asked == [f"/{KNOWN}", f"/{UNKNOWN}", f"/{BROKEN}"]


@pytest.mark.parametrize("kid", ["", "../x", f"{KNOWN}/../x", f"{KNOWN}?x", "http://elsewhere"])
def test_nothing_else_is_fetched(asked: list[str], kid: str) -> None:
    assert login_keys.handler({"kid": kid}, None) is None
    assert asked == []

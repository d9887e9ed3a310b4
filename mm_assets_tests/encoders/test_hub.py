"""Downloads from a server that speaks the hub's protocol, in a process with a home of its own."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mm_assets.encoders.catalogue import FOUNDATION, list_encoders
from mm_assets.encoders.hub import cached_weights, fetch_weights
from mm_assets.encoders.registry import load_encoder
from mm_assets.encoders.weights import WeightsError

TOKEN = "hf_of_the_user"
BODY = b"weights"
FETCH = "from mm_assets.encoders.hub import fetch_weights as f; print(f('huggingface.co/{}'))"


class Hub(BaseHTTPRequestHandler):
    """One gated repository with `pytorch_model.bin`, and an open one with nothing in it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        gated = self.path.startswith("/makers/gated/")
        if gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"})
        elif gated and self.path.endswith("/pytorch_model.bin"):
            self._send(200, {"ETag": '"abc"', "X-Repo-Commit": "c" * 40}, BODY)
        else:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "c" * 40})

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(repository: str, endpoint: str, home: Path, **variables: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", FETCH.format(repository)],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip(), done.stderr


def test_weights_come_with_the_users_token_and_stay(endpoint: str, tmp_path: Path) -> None:
    _, refused = fetch("makers/gated", endpoint, tmp_path)
    assert "WeightsError: no weights from huggingface.co/makers/gated (" in refused
    assert "accept its licence there, log in with `hf auth login`" in refused
    path, problem = fetch("makers/gated", endpoint, tmp_path, HF_TOKEN=TOKEN)
    assert Path(path).read_bytes() == BODY, problem
    again, _ = fetch("makers/gated", endpoint, tmp_path, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert again == path
    _, empty = fetch("makers/empty", endpoint, tmp_path)
    assert "makers/empty holds neither model.safetensors nor pytorch_model.bin" in empty


def test_what_is_not_on_the_hub_is_refused() -> None:
    with pytest.raises(WeightsError, match="is not on the hub"):
        fetch_weights("github.com/mahmoodlab/HIPT")
    with pytest.raises(WeightsError, match="hipt: give the path of a state dict in place of `hub`"):
        load_encoder("hipt", "hub", "cpu")


def test_what_is_in_the_hubs_cache_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    source = FOUNDATION["uni"].source
    assert cached_weights(source) is None
    assert "log in with `hf auth login`" in _listed(tmp_path, "uni")["todo"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    todo = _listed(tmp_path, "uni")["todo"]
    assert todo.startswith(f"accept the licence at {source}, say `weights: hub`")
    repository = tmp_path / "hub" / "models--MahmoodLab--UNI"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").write_bytes(BODY)
    assert cached_weights(source) == fetch_weights(source) == snapshot / "pytorch_model.bin"
    row = _listed(tmp_path, "uni")
    assert (row["weights"], row["todo"]) == ("in the hub's cache", "weights: hub")


def _listed(folder: Path, name: str) -> dict[str, Any]:
    return next(row for row in list_encoders(folder) if row["encoder"] == name)

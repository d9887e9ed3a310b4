"""The viewer over HTTP: what it shows, what it records, what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mm_assets.viewer.app import MOST_BYTES
from mm_assets_tests.cohorts import Cohort
from mm_assets_tests.viewer.conftest import BAD, SLIDE, SQUARE
from mm_assets_tests.viewer.server import ask, running_viewer
from mm_assets_tests.viewer.test_opinions import FACTS

TILE = f"/api/tiny/slides/{SLIDE}/tiles"


@pytest.fixture(scope="module")
def port(cohort: tuple[Path, Path]) -> Iterator[int]:
    with running_viewer(*cohort) as port:
        yield port


def test_slides_with_their_evidence(port: int) -> None:
    rows = {row["slide"]: row for row in json.loads(ask(port, "/api/tiny/slides")[1])}
    assert rows[SLIDE]["shows"]["evidence_subtype"]["score"] == 0.85
    assert rows[SLIDE]["patient"] == "P000"
    assert rows[BAD]["reason"] == "the file is cut off"
    assert not rows[BAD]["shows"]
    found = json.loads(ask(port, f"/api/tiny/slides/{SLIDE}/evidence/evidence_subtype")[1])
    assert (found["instances"][0]["x"], found["instances"][0]["y"]) == SQUARE[:2]


def test_what_is_not_there_is_said(port: int) -> None:
    for path, words in (
        (f"/api/tiny/slides/{SLIDE}/evidence/evidence_survival", "mm materialize tiny"),
        (
            f"/api/tiny/slides/{SLIDE}/evidence/attention_subtype",
            "has no evidence 'attention_subtype'",
        ),
        (f"/api/tiny/slides/{BAD}", "the file is cut off"),
        ("/api/other/slides", "no cohort is named 'other'"),
        ("/api/tiny/slides/nothing", "no slide 'nothing'"),
    ):
        status, content, _ = ask(port, path)
        assert status == 404
        assert words in json.loads(content)["error"]


@pytest.mark.parametrize(
    "path",
    [
        f"{TILE}/12/9_9.jpg",
        f"{TILE}/13/0_0.jpg",
        f"{TILE}/-1/0_0.jpg",
        f"{TILE}/12/-1_0.jpg",
        f"{TILE}/12/0_0.png",
        f"{TILE}/12/0.jpg",
        f"{TILE}/12/%C2%B2_0.jpg",
        f"{TILE}/12/{5000 * '9'}_0.jpg",
        f"{TILE}/{5000 * '9'}/0_0.jpg",
        "/api/tiny/slides/..%2f..%2f..%2fetc%2fpasswd",
        "/api/tiny/slides/..%2fP000-S1/tiles/12/0_0.jpg",
        "/api/tiny/slides/%2fetc%2fpasswd/tiles/0/0_0.jpg",
        "/api/tiny/slides/../../../etc/passwd",
        "/api/..%2ftiny/slides",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
    ],
)
def test_nothing_outside_the_cohort(port: int, path: str) -> None:
    status, content, _ = ask(port, path)
    assert status == 404
    assert b"root:" not in content
    assert b"import" not in content


def test_tiles_are_pictures_that_browsers_may_keep(port: int) -> None:
    status, content, headers = ask(port, f"{TILE}/12/7_5.jpg")
    assert status == 200
    assert content.startswith(b"\xff\xd8")
    assert headers["content-type"] == "image/jpeg"
    assert "max-age" in headers["cache-control"]


def test_opinions_are_recorded_and_exported(
    port: int, cohort: tuple[Path, Path], tmp_path: Path
) -> None:
    said = FACTS | {"comment": "=mitoses, many", "user": "Ana"}
    status, content, _ = ask(port, "/api/tiny/opinions", said, origin=f"http://127.0.0.1:{port}")
    assert status == 201
    assert json.loads(content)["time"].startswith("20")
    rows = json.loads(ask(port, f"/api/tiny/opinions?slide_id={SLIDE}&asset=evidence_subtype")[1])
    assert [row["user"] for row in rows] == ["Ana"]
    assert not json.loads(ask(port, "/api/tiny/opinions?slide_id=other")[1])
    home, yaml = cohort
    made = Cohort(yaml, home)
    assert json.loads(made.mm("opinions", "tiny", "--json")) == rows
    table = tmp_path / "opinions.csv"
    made.mm("opinions", "tiny", "--out", str(table))
    assert '"\'=mitoses, many"' in table.read_text()


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (403, FACTS, {"origin": "https://elsewhere.example"}),
        (403, FACTS, {"origin": "null"}),
        (400, FACTS, {"host": "elsewhere.example"}),
        (415, FACTS, {"content_type": "text/plain"}),
        (413, b"x" * (MOST_BYTES + 1), {"content_type": "application/json"}),
        (422, FACTS | {"verdict": "none"}, {}),
        (422, b"{", {"content_type": "application/json"}),
        (422, FACTS | {"subject": "no:such:feature"}, {}),
        (422, FACTS | {"model_version": 99}, {}),
        (404, FACTS | {"slide_id": "nothing"}, {}),
        (404, FACTS | {"asset": "evidence_survival"}, {}),
    ],
)
def test_opinions_that_are_refused(
    port: int, status: int, body: object, headers: dict[str, str]
) -> None:
    before = ask(port, "/api/tiny/opinions")[1]
    assert ask(port, "/api/tiny/opinions", body, **headers)[0] == status
    assert ask(port, "/api/tiny/opinions")[1] == before


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(port: int, method: str) -> None:
    for path in ("/api/tiny/opinions", f"/api/tiny/slides/{SLIDE}", f"{TILE}/12/0_0.jpg"):
        assert ask(port, path, method=method)[0] == 405


def test_no_other_site_can_frame_or_read_anything(port: int) -> None:
    for path in ("/", "/static/viewer.css", "/api/cohorts", f"{TILE}/12/0_0.jpg", "/nothing"):
        headers = ask(port, path)[2]
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"


def test_other_names_for_this_machine_are_refused(port: int) -> None:
    assert ask(port, "/api/tiny/slides", host="rebound.example")[0] == 400


def test_only_the_loopback_address_listens(port: int) -> None:
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == port] == ["127.0.0.1"]

"""Words of a load balancer: which are believed, and what it takes to be let in."""

import time
from typing import Any

import jwt
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from mm_assets.resources.login import WORD, Login, NotLoggedIn, VerifiedLogin, login_of
from mm_assets_tests.balancer import BALANCER, CLAIMS, KEY_ID, Signer

LOGIN = Login(BALANCER, "operators", "groups", "mm-operators")
SIGNER = Signer()


def keys(identifier: str) -> str:
    return {KEY_ID: SIGNER.pem}[identifier]


def test_a_person_is_known_by_the_providers_claims() -> None:
    assert LOGIN.person(SIGNER.word(), keys) == "ann@example.org"
    assert LOGIN.person(SIGNER.word({"sub": "1", "groups": "mm-operators"}), keys) == "1"
    anybody = Login(BALANCER, "operators")
    assert anybody.person(SIGNER.word({"sub": "1"}), keys) == "1"


# Seconds from now -> when: words are signed in the test, because they hold for two minutes.
OVER = {"exp": -60}


@pytest.mark.parametrize(
    ("header", "claims", "reason"),
    [
        (OVER, CLAIMS, "time is over"),
        ({"exp": None}, CLAIMS, "verified"),
        ({}, {**CLAIMS, **OVER}, "expired"),
        ({"signer": BALANCER.replace("app/mm", "app/other")}, CLAIMS, "another balancer"),
        ({"client": "viewers"}, CLAIMS, "other pages"),
        ({"kid": "../../" + KEY_ID}, CLAIMS, "names no key"),
        ({"kid": KEY_ID.replace("0d", "1d")}, CLAIMS, "verified"),
        ({"alg": "none"}, CLAIMS, "verified"),
        ({}, {**CLAIMS, "groups": ["mm-viewers"]}, "no mm-operators"),
        ({}, {**CLAIMS, "groups": "mm-operators-not"}, "no mm-operators"),
        ({}, {"sub": "1"}, "no mm-operators"),
    ],
)
def test_a_word_that_does_not_hold_is_refused(
    header: dict[str, Any], claims: dict[str, Any], reason: str
) -> None:
    with pytest.raises(NotLoggedIn, match=reason):
        LOGIN.person(SIGNER.word(_timed(claims), **_timed(header)), keys)


def _timed(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "exp": time.time() + part["exp"]} if part.get("exp") else part


@pytest.mark.parametrize("word", ["", "a", "a.b.c", "a.b.c.d"])
def test_what_is_no_word_is_refused(word: str) -> None:
    with pytest.raises(NotLoggedIn, match="verified"):
        LOGIN.person(word, keys)


def test_another_signature_is_refused() -> None:
    with pytest.raises(NotLoggedIn, match="verified: Signature"):
        LOGIN.person(Signer().word(), keys)


def test_the_public_key_is_no_shared_secret() -> None:
    """A known way to forge a JWT: signed with the public key as if it were a password."""
    about = jwt.get_unverified_header(SIGNER.word())
    forged = jwt.encode(CLAIMS, "x" * 32, "HS256", headers={**about, "alg": "HS256"})
    with pytest.raises(NotLoggedIn, match="verified"):
        LOGIN.person(forged, lambda _: "x" * 32)


def test_claims_that_were_changed_are_refused() -> None:
    about, _, signature = SIGNER.word().split(".")
    _, claims, _ = Signer().word({**CLAIMS, "email": "eve@example.org"}).split(".")
    with pytest.raises(NotLoggedIn, match="verified"):
        LOGIN.person(f"{about}.{claims}.{signature}", keys)


def pages(socket_seconds: float = 60.0) -> TestClient:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse("a page")

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)

    routes = [Route("/server_info", page), Route("/runs", page), WebSocketRoute("/graphql", echo)]
    return TestClient(VerifiedLogin(Starlette(routes=routes), LOGIN, keys, socket_seconds))


def test_pages_are_for_people_who_are_logged_in() -> None:
    client, word = pages(), SIGNER.word()
    assert client.get("/runs", headers={WORD: word}).text == "a page"
    assert client.get("/server_info").text == "a page"
    refused = client.get("/runs")
    assert (refused.status_code, "where the balancer puts one" in refused.text) == (403, True)
    twice: Any = [(WORD, word), (WORD, word)]
    assert client.get("/runs", headers=twice).status_code == 403
    assert client.get("/server_info/../runs").status_code == 403
    assert client.get("/runs", headers={WORD: SIGNER.word(client="viewers")}).status_code == 403


def test_websockets_are_for_people_who_are_logged_in() -> None:
    client = pages()
    with client.websocket_connect("/graphql", headers={WORD: SIGNER.word()}) as socket:
        socket.send_text("here")
        assert socket.receive_text() == "here"
    for headers in ({}, {WORD: Signer().word()}):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/graphql", headers=headers),
        ):
            pass


def test_a_websocket_ends_so_that_the_next_is_verified() -> None:
    with pages(1.0).websocket_connect("/graphql", headers={WORD: SIGNER.word()}) as socket:
        socket.send_text("here")
        assert socket.receive_text() == "here"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.code == 1001


@pytest.mark.parametrize("missing", ["MM_LOGIN_BALANCER", "MM_LOGIN_CLIENT"])
def test_settings_are_complete_or_named(missing: str) -> None:
    given = {"MM_LOGIN_BALANCER": BALANCER, "MM_LOGIN_CLIENT": "operators"}
    assert login_of(given) == Login(BALANCER, "operators")
    assert login_of({**given, "MM_LOGIN_GROUP": "groups=mm-operators"}) == LOGIN
    with pytest.raises(ValueError, match=f"{missing} is not set"):
        login_of({**given, missing: ""})
    with pytest.raises(ValueError, match="claim=group"):
        login_of({**given, "MM_LOGIN_GROUP": "mm-operators"})

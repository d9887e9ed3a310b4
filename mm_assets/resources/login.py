"""Who a load balancer says is asking: its signed word, verified at every request.

AWS's Application Load Balancer logs people in at an OIDC provider and tells the server behind it of
them in the header ``x-amzn-oidc-data``: a JWT of two minutes' life whose header names the balancer,
the provider's client and the signing key, and whose payload has the claims that the provider makes
of the person (user guide, "Authenticate users using an Application Load Balancer").
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jwt
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

WORD = "x-amzn-oidc-data"
HEALTH = "/server_info"  # what the balancer itself asks, without a word; tells versions alone
_KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_POLICY_VIOLATION, _GOING_AWAY = 1008, 1001
SOCKET_SECONDS = 3600.0
_log = logging.getLogger(__name__)

PublicKeys = Callable[[str], str]


class NotLoggedIn(Exception):
    """A request without a word of the balancer that holds."""


@dataclass(frozen=True)
class Login:
    """Whose word counts, and for whom.

    Attributes
    ----------
    balancer
        ARN of the load balancer.
    client
        The provider's client with which people log in to this server.
    claim, group
        Claim that must be, or be a list with, this value; both empty: whom the provider lets use
        the client.
    """

    balancer: str
    client: str
    claim: str = ""
    group: str = ""

    def person(self, word: str, keys: PublicKeys) -> str:
        """The person's email address, or what else the provider calls them.

        Parameters
        ----------
        word
            Value of the header.
        keys
            Id of a key -> PEM; `LookupError` where there is none.

        Raises
        ------
        NotLoggedIn
            Says what is wrong with the word.
        """
        try:
            about = jwt.get_unverified_header(word)
            # The library verifies times of the payload; the balancer promises one in the header.
            if float(about.get("exp", 0)) < time.time():
                raise NotLoggedIn("its time is over")
            if about.get("signer") != self.balancer:
                raise NotLoggedIn("another balancer signed")
            if about.get("client") != self.client:
                raise NotLoggedIn("the login was for other pages")
            if not _KEY_ID.fullmatch(str(about.get("kid"))):
                raise NotLoggedIn("it names no key")
            claims = jwt.decode(
                word, keys(about["kid"]), algorithms=["ES256"], options={"verify_aud": False}
            )
        except (jwt.PyJWTError, LookupError, ValueError, TypeError) as error:
            raise NotLoggedIn(f"the balancer's word cannot be verified: {error}") from error
        if self.claim and self.group not in _values(claims.get(self.claim)):
            raise NotLoggedIn(f"{self.claim} has no {self.group}")
        return str(claims.get("email") or claims.get("sub"))


def _values(claim: Any) -> list[Any]:
    return claim if isinstance(claim, list) else [claim]


def login_of(environment: Mapping[str, str]) -> Login:
    """What ``MM_LOGIN_BALANCER``, ``_CLIENT`` and, as ``claim=group``, ``_GROUP`` say.

    Raises
    ------
    ValueError
        Names the variable that is missing or wrong.
    """
    balancer, client = (required(environment, f"MM_LOGIN_{x}") for x in ("BALANCER", "CLIENT"))
    wanted = environment.get("MM_LOGIN_GROUP", "")
    claim, _, group = wanted.partition("=")
    if wanted and not (claim and group):
        raise ValueError(f"MM_LOGIN_GROUP={wanted}: write claim=group")
    return Login(balancer, client, claim, group)


def required(environment: Mapping[str, str], name: str) -> str:
    """Value of a variable that is set; `ValueError` where it is not."""
    if not environment.get(name):
        raise ValueError(f"{name} is not set")
    return environment[name]


def keys_of_function(name: str) -> PublicKeys:
    """Public keys as a Lambda function fetches them, for servers that do not reach the internet."""
    import boto3

    client = boto3.client("lambda", region_name=os.environ.get("AWS_REGION"))

    @lru_cache(maxsize=64)
    def key(identifier: str) -> str:
        reply = client.invoke(FunctionName=name, Payload=json.dumps({"kid": identifier}))
        found = json.loads(reply["Payload"].read())
        if "FunctionError" in reply or not isinstance(found, str):
            raise LookupError(f"{name} has no key {identifier}: {found}")
        return found

    return key


class VerifiedLogin:
    """An ASGI application that only people who are logged in reach, by HTTP and by websocket.

    A websocket carries the word of its beginning only, so it ends after `socket_seconds`: the pages
    open another by themselves, which the balancer passes on while the login holds.
    """

    def __init__(
        self,
        application: ASGIApp,
        login: Login,
        keys: PublicKeys,
        socket_seconds: float = SOCKET_SECONDS,
    ) -> None:
        self.application, self.login, self.keys = application, login, keys
        self.socket_seconds = socket_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, or refuse it with 403."""
        if scope["type"] != "lifespan" and scope["path"] != HEALTH:
            try:
                await run_in_threadpool(self._verify, Headers(scope=scope).getlist(WORD))
            except NotLoggedIn as error:
                _log.warning("refused %s: %s", scope["path"], error)
                await _refusal(scope, str(error))(scope, receive, send)
                return
        if scope["type"] == "websocket":
            receive = _ending(receive, send, time.monotonic() + self.socket_seconds)
        await self.application(scope, receive, send)

    def _verify(self, words: list[str]) -> None:
        if len(words) != 1:
            raise NotLoggedIn(f"{len(words)} headers {WORD}, where the balancer puts one")
        self.login.person(words[0], self.keys)


def _ending(receive: Receive, send: Send, end: float) -> Receive:
    """`receive` of a websocket that is closed at a time of the monotonic clock."""

    async def receive_until() -> Message:
        try:
            return await asyncio.wait_for(receive(), end - time.monotonic())
        except TimeoutError:
            await send(
                {"type": "websocket.close", "code": _GOING_AWAY, "reason": "its time is over"}
            )
            return {"type": "websocket.disconnect", "code": _GOING_AWAY}

    return receive_until


def _refusal(scope: Scope, reason: str) -> ASGIApp:
    if scope["type"] == "websocket":
        return WebSocketClose(_POLICY_VIOLATION, reason)
    return PlainTextResponse(f"not logged in: {reason}", 403)

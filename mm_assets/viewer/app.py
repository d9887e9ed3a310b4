"""The viewer's web application: slides in deep zoom, evidence over them, and what people say of it.

It answers the loopback address only, writes nothing but opinions, and knows nothing outside the
cohorts it was given.
"""

import getpass
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_assets.resources.store import StoreError
from mm_assets.viewer.catalogue import Catalogue, NotThere
from mm_assets.viewer.deepzoom import TILE_PX, DeepZoom
from mm_assets.viewer.open_slides import OpenSlides
from mm_assets.viewer.opinions import Opinions, Statement
from mm_assets.wsi.errors import SlideError

STATIC = Path(__file__).parent / "static"
HOSTS = ["127.0.0.1", "localhost"]
MOST_TILES = 2048
MOST_BYTES = 16_384
# No other site may frame the pages, read the slides or send opinions.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_DIGITS = 9


def viewer_app(cohorts: Mapping[str, Catalogue], opinions: Mapping[str, Opinions]) -> Starlette:
    """The application for some cohorts, by name."""
    viewer = _Viewer(cohorts, opinions)
    page = "/{cohort}/slides/{slide}"
    data = "/api/{cohort}"
    routes = [
        Route("/", partial(_page, "cohort.html")),
        Route("/api/cohorts", viewer.answer(viewer.cohorts)),
        Route(f"{data}/slides", viewer.answer(viewer.slides)),
        Route(f"{data}/slides/{{slide}}", viewer.answer(viewer.slide)),
        Route(f"{data}/slides/{{slide}}/evidence/{{asset}}", viewer.answer(viewer.evidence)),
        Route(f"{data}/slides/{{slide}}/tiles/{{level}}/{{tile}}", viewer.tile),
        Route(f"{data}/opinions", viewer.answer(viewer.list_opinions)),
        Route(f"{data}/opinions", viewer.add_opinion, methods=["POST"]),
        Route(page, partial(_page, "slide.html")),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(_WithHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS),
        ],
        lifespan=viewer.lifespan,
        exception_handlers={
            NotThere: partial(_refuse, 404),
            SlideError: partial(_refuse, 422),
            StoreError: partial(_refuse, 422),
            HTTPException: _refuse_http,
        },
    )
    app.mount("/static", StaticFiles(directory=STATIC))
    return app


class _WithHeaders:
    """Adds `_HEADERS` to every answer, also those of static files and refusals."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


class _Viewer:
    def __init__(self, cohorts: Mapping[str, Catalogue], opinions: Mapping[str, Opinions]) -> None:
        self._cohorts, self._opinions = cohorts, opinions
        self._open: OpenSlides[DeepZoom] = OpenSlides(lambda key: cohorts[key[0]].open(key[1]))
        self._tile = lru_cache(MOST_TILES)(self._draw)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> Any:
        yield
        self._open.close()

    def answer(self, find: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """An endpoint that answers with JSON; what it does may take time."""

        async def endpoint(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(find, request))

        return endpoint

    def cohorts(self, request: Request) -> Any:
        cohorts = [{"cohort": c.cohort, "shows": c.shows} for c in self._cohorts.values()]
        return {"cohorts": cohorts, "user": _user()}

    def slides(self, request: Request) -> Any:
        return self._cohort(request).slides()

    def slide(self, request: Request) -> Any:
        cohort, slide = self._cohort(request), request.path_params["slide"]
        version = cohort.version(slide)
        with self._open.use((cohort.cohort, slide, version)) as opened:
            geometry = opened.geometry
        return {
            "slide": slide,
            "width": geometry.width,
            "height": geometry.height,
            "levels": geometry.highest + 1,
            "tile": TILE_PX,
            "version": version,
            "shows": cohort.shows,
        }

    def evidence(self, request: Request) -> Any:
        parameters = request.path_params
        found = self._cohort(request).evidence(parameters["slide"], parameters["asset"])
        return found.model_dump(by_alias=True, mode="json")

    def list_opinions(self, request: Request) -> Any:
        wanted = {k: v for k, v in request.query_params.items() if k in ("slide_id", "asset")}
        rows = self._opinions[self._cohort(request).cohort].rows()
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    async def tile(self, request: Request) -> Response:
        """A tile; its address ends in the slide's digest, so it can be kept."""
        parameters = request.path_params
        place, _, extension = parameters["tile"].partition(".")
        column, _, row = place.partition("_")
        numbers = (parameters["level"], column, row)
        if extension != "jpg" or not all(n.isdecimal() and len(n) <= _DIGITS for n in numbers):
            raise HTTPException(404, "tiles are named <level>/<column>_<row>.jpg")
        cohort = self._cohort(request).cohort
        slide = (cohort, parameters["slide"], request.query_params.get("v", ""))
        try:
            data = await run_in_threadpool(self._tile, slide, tuple(map(int, numbers)))
        except KeyError as error:
            raise HTTPException(404, f"no such tile: {error.args[0]}") from None
        headers = {"cache-control": "private, max-age=86400"}
        return Response(data, media_type="image/jpeg", headers=headers)

    async def add_opinion(self, request: Request) -> Response:
        """Record what somebody says; pages of other sites cannot."""
        cohort = self._cohort(request)
        origin = request.headers.get("origin")
        if origin is not None and origin != f"{request.url.scheme}://{request.headers['host']}":
            raise HTTPException(403, "opinions come from the viewer's own pages")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "send JSON")
        try:
            statement = Statement.model_validate_json(await _body(request))
        except ValidationError as error:
            reasons = "; ".join(f"{e['loc'][-1:]}: {e['msg']}" for e in error.errors())
            raise HTTPException(422, reasons) from None
        document = await run_in_threadpool(cohort.evidence, statement.slide_id, statement.asset)
        if not statement.is_about(document):
            raise HTTPException(422, "the evidence on this slide has changed: load the page again")
        opinion = await run_in_threadpool(self._opinions[cohort.cohort].add, statement)
        return JSONResponse(opinion.model_dump(), 201)

    def _cohort(self, request: Request) -> Catalogue:
        name = request.path_params["cohort"]
        if name not in self._cohorts:
            raise NotThere(f"no cohort is named {name!r}; there are {', '.join(self._cohorts)}")
        return self._cohorts[name]

    def _draw(self, slide: tuple[str, ...], at: tuple[int, ...]) -> bytes:
        with self._open.use(slide) as opened:
            return opened.tile(*at)


def _user() -> str:
    """The name of whoever runs the viewer; containers may have users without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


async def _body(request: Request) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"an opinion has at most {MOST_BYTES} bytes")
    return data


async def _page(name: str, request: Request) -> Response:
    return FileResponse(STATIC / name)


async def _refuse(status: int, request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)

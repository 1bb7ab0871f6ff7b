"""The HTTP application: its routes, limits, status and metrics."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from .._version import __version__
from ..camera import LEAST_FOV
from ..models import zoo
from ..optional import why_no_module
from ..palettes import check_palette
from .bodies import read_picture
from .encoding import FORMATS, suffix_of
from .jobs import Answer, Job, PredictOptions, refuse
from .metrics import Metrics
from .page import add_page, describe_interface
from .parameters import add_explanations, check_names
from .pool import Pool
from .settings import ServerSettings
from .video_jobs import VideoJobs
from .videos import add_videos

_CLOSED = 499  # nginx's status for a client that has gone; nobody receives it
_LARGEST_SIZE = 4096
Format = Literal["png16", "color", "gray", "exr", "npz", "npy", "json", "tiff", "pfm", "ply", "glb"]
Fit = Literal["pad", "official", "upper_bound", "video"]

_ERRORS = {
    401: "the token is missing or wrong",
    403: "this server fetches no URLs",
    408: "the body did not arrive in time",
    413: "the body or the picture is too large",
    415: "the file is not a picture that can be read",
    422: "a parameter, the form or the JSON is invalid, or the model needs a camera",
    500: "the picture cannot be computed",
    503: "the queue is full; try again after `Retry-After` seconds",
    504: "there was no answer in time",
}
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "string", "format": "binary"}},
    }
}
_URL = {
    "schema": {
        "type": "object",
        "required": ["url"],
        "additionalProperties": False,
        "properties": {"url": {"type": "string", "format": "uri"}},
    },
    "example": {"url": "https://example.org/photo.jpg"},
}
_BODY = {
    "required": True,
    "description": "The picture, by one of: its bytes, a form with one file, a URL.",
    "content": {
        "application/octet-stream": _PICTURE,
        "image/*": _PICTURE,
        "multipart/form-data": _FORM,
        "application/json": _URL,
    },
}
_MAP = {
    "schema": {"type": "object"},
    "example": {
        "kind": "disparity",
        "unit": "",
        "min": 1.0,
        "max": 2.0,
        "shape": [1, 2],
        "dtype": "float32",
        "data": "AACAPwAAAEA=",
    },
}


def _describe_error(text: str) -> dict[str, Any]:
    """An error in the OpenAPI description."""
    schema = {"type": "object", "properties": {"detail": {"type": "string"}}}
    return {
        "description": text,
        "content": {"application/json": {"schema": schema, "example": {"detail": text}}},
    }


class _Measured:
    """ASGI middleware that counts answers and the time until they begin."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                # The route's path has a name for each job; the number of labels stays small.
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, message["status"]).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
            await send(message)

        await self.app(scope, receive, counted)


class Server:
    """The state behind the routes.

    Args:
        settings: The settings.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.admitted = 0
        # `lifespan` makes them.
        self.pool: Pool = None  # type: ignore[assignment]
        self.videos: VideoJobs = None  # type: ignore[assignment]
        self._seconds = 1.0  # average time of an answer

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Starts the workers with the application and ends them with it."""
        self.pool = Pool(self.settings, self.metrics.batches.observe)
        self.videos = VideoJobs(self.settings)
        try:
            yield
        finally:
            await asyncio.to_thread(self.videos.close)
            await asyncio.to_thread(self.pool.close)

    async def check_token(self, authorization: Annotated[str, Header()] = "") -> None:
        """Refuses a request without the token."""
        token = self.settings.token
        kind, _, given = authorization.partition(" ")
        same = hmac.compare_digest(given.strip().encode(), token.encode())
        if token and not (kind.lower() == "bearer" and same):
            raise HTTPException(401, _ERRORS[401], {"WWW-Authenticate": "Bearer"})

    async def answer(
        self, request: Request, options: PredictOptions, form: str, palette: str
    ) -> Answer:
        """Admits a request, reads its picture, and waits for the answer."""
        if self.admitted >= self.settings.queue:
            return refuse(503, _ERRORS[503])
        self.admitted += 1
        try:
            picture = await read_picture(request, self.settings)
            if isinstance(picture, Answer):
                return picture
            return await self._compute(request, Job(picture, options, form, palette))
        except ClientDisconnect:
            return refuse(_CLOSED, "the client has gone")
        finally:
            self.admitted -= 1

    async def _compute(self, request: Request, job: Job) -> Answer:
        start = time.monotonic()
        item = self.pool.submit(job)
        answer: asyncio.Future[Any] = asyncio.wrap_future(item.future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_wait_for_hangup(request))
        try:
            await asyncio.wait(
                {answer, gone},
                timeout=self.settings.timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if answer.done():
                self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
                return answer.result()
            self.pool.cancel(item)
            if gone.done():
                return refuse(_CLOSED, "the client has gone")
            return refuse(504, f"no answer within {self.settings.timeout:g} s")
        finally:
            gone.cancel()
            answer.cancel()

    def respond(self, answer: Answer, form: str) -> Response:
        """The response of an answer."""
        if answer.status == 200:
            name = f"depth{suffix_of(form)}"
            headers = {**answer.facts, "Content-Disposition": f'inline; filename="{name}"'}
            return Response(answer.body, media_type=FORMATS[form], headers=headers)
        retry = {"Retry-After": str(max(1, math.ceil(self._seconds)))}
        raise HTTPException(
            answer.status,
            answer.body.decode(errors="replace"),
            retry if answer.status == 503 else None,
        )

    def describe_models(self) -> list[dict[str, Any]]:
        """The models that requests may name."""
        return [
            {**_describe(name), "default": i == 0} for i, name in enumerate(self.settings.models)
        ]


async def _wait_for_hangup(request: Request) -> None:
    """Waits until the client closes the connection. Call it after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _describe(name: str) -> dict[str, Any]:
    entry = zoo.find(name)
    if entry is None:  # a file or a folder
        return {"id": name, "kind": None, "unit": None, "license": None}
    config = entry.config
    return {
        "id": name,
        "kind": "disparity" if config.quantity == "disparity" else "depth",
        "unit": "m" if config.is_metric else "",
        "license": config.license,
    }


def create_app(settings: ServerSettings) -> FastAPI:
    """Makes the application.

    Its lifespan starts the workers and ends them. ``app.state.server`` is the `Server`.

    Args:
        settings: The settings.

    Returns:
        An ASGI application.
    """
    server = Server(settings)
    app = FastAPI(
        title="dafast",
        version=__version__,
        description="Depth from photos. `docs/serve.md` of dafast describes the formats.",
        lifespan=server.lifespan,
        dependencies=[Depends(check_names)],
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
    )
    app.state.server = server
    add_explanations(app)
    _add_depth(app, server)
    _add_status(app, server)
    if settings.videos and not why_no_module("av"):
        add_videos(app, server)
    if settings.page:
        add_page(app, server.describe_models)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["*"],
        )
    app.add_middleware(_Measured, metrics=server.metrics)
    return app


def _add_depth(app: FastAPI, server: Server) -> None:
    """Adds ``POST /v1/depth``."""
    binary = dict.fromkeys(sorted(set(FORMATS.values()) - {"application/json"}), _PICTURE)
    errors: dict[int | str, Any] = {
        status: _describe_error(text) for status, text in _ERRORS.items()
    }
    errors[200] = {
        "description": "The file. Headers `X-Depth-*` say what the values mean.",
        "content": {**binary, "application/json": _MAP},
    }

    @app.post(
        "/v1/depth",
        summary="Depth of one photo",
        dependencies=[Depends(server.check_token)],
        response_class=Response,
        responses=errors,
        openapi_extra={"requestBody": _BODY},
    )
    async def predict_depth(
        request: Request,
        format: Annotated[Format, Query(description="File to answer with")] = "png16",
        model: Annotated[
            str | None, Query(description="A model of `/v1/models`; the first by default")
        ] = None,
        size: Annotated[
            int | None,
            Query(
                ge=14,
                le=_LARGEST_SIZE,
                description="Side in pixels that the network sees",
                examples=[518],
            ),
        ] = None,
        fit: Annotated[Fit | None, Query(description="How a photo is scaled to it")] = None,
        fov: Annotated[
            float | None,
            Query(
                ge=LEAST_FOV,
                lt=180,
                description="Horizontal field of view in degrees",
                examples=[60],
            ),
        ] = None,
        palette: Annotated[str, Query(description="Colours of `color`")] = "Spectral_r",
    ) -> Response:
        """Returns disparity (large is near) of a relative model, or metres of a metric one."""
        chosen = model or server.settings.models[0]
        if chosen not in server.settings.models:
            known = ", ".join(server.settings.models)
            raise HTTPException(422, f"model: this server has {known}")
        try:
            check_palette(palette)
        except ValueError as error:
            raise HTTPException(422, f"palette: {error}") from None
        options = PredictOptions(chosen, size, fit, fov)
        answer = await server.answer(request, options, format, palette)
        return server.respond(answer, format)


def _add_status(app: FastAPI, server: Server) -> None:
    """Adds the routes that describe the server: readiness, models and metrics."""

    @app.get("/v1/models", summary="Models", dependencies=[Depends(server.check_token)])
    async def list_models() -> list[dict[str, Any]]:
        """Returns the models that `/v1/depth` takes, the default first."""
        return server.describe_models()

    @app.get("/healthz", summary="Liveness")
    async def health() -> dict[str, str]:
        """Answers while the server runs."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        summary="Readiness",
        responses={503: _describe_error("the model is being loaded")},
    )
    async def readiness() -> dict[str, str]:
        """Answers 200 when a worker has loaded its model, and 503 before."""
        if not server.pool.ready:
            raise HTTPException(503, server.pool.problem or "the model is being loaded")
        return {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def interface() -> Response:
        return Response(describe_interface(app.openapi()), media_type="text/html; charset=utf-8")

    @app.get("/metrics", include_in_schema=False, dependencies=[Depends(server.check_token)])
    async def metrics() -> Response:
        text = server.metrics.text(server.pool, server.admitted)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

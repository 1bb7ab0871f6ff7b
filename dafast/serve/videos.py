"""The routes of video jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from ..palettes import check_palette
from .settings import ServerSettings
from .video_jobs import VideoJob, VideoJobs, VideoOptions

Layout = Literal["depth", "color", "side", "overlay", "sbs"]
Stabilize = Literal["range", "flow", "off"]

_BODY = {
    "required": True,
    "description": "The bytes of a video file.",
    "content": {"video/*": {"schema": {"type": "string", "format": "binary"}}},
}
_NO_JOB = "no such job; results are kept for an hour"


def add_videos(app: FastAPI, server: Any) -> None:
    """Adds ``/v1/video``.

    Args:
        app: The application.
        server: The `dafast.serve.app.Server`; its `videos` holds the jobs.
    """
    settings: ServerSettings = server.settings
    token = [Depends(server.check_token)]
    _add_results(app, server, token)

    @app.post(
        "/v1/video",
        status_code=202,
        summary="Depth of a video, as a job",
        dependencies=token,
        responses={
            408: {"description": "the body did not arrive in time"},
            413: {"description": "the body is too large"},
            422: {"description": "a parameter is invalid"},
            503: {"description": "too many videos; try again after `Retry-After` seconds"},
        },
        openapi_extra={"requestBody": _BODY},
    )
    async def create_video(
        request: Request,
        model: Annotated[str | None, Query(description="As for `/v1/depth`")] = None,
        layout: Annotated[Layout, Query(description="What the pictures show")] = "color",
        stabilize: Annotated[Stabilize, Query(description="Against flicker")] = "range",
        palette: Annotated[str, Query(description="Colours")] = "Spectral_r",
    ) -> dict[str, Any]:
        """Starts a job. `GET /v1/video/ID` returns its progress."""
        chosen = model or settings.models[0]
        if chosen not in settings.models:
            raise HTTPException(422, f"model: this server has {', '.join(settings.models)}")
        try:
            check_palette(palette)
        except ValueError as error:
            raise HTTPException(422, f"palette: {error}") from None
        jobs: VideoJobs = server.videos
        if jobs.is_full:
            raise HTTPException(503, "too many videos", {"Retry-After": "10"})
        job = jobs.create(VideoOptions(chosen, layout, stabilize, palette))
        try:
            await _receive(request, job, settings)
        except BaseException:
            jobs.remove(job)
            raise
        jobs.start(job)
        return job.describe()


def _add_results(app: FastAPI, server: Any, token: list[Any]) -> None:
    """Adds the routes that report the progress of a job, send its result and remove it."""
    missing: dict[int | str, Any] = {404: {"description": _NO_JOB}}

    def find(name: str) -> VideoJob:
        job = server.videos.jobs.get(name)
        if job is None:
            raise HTTPException(404, _NO_JOB)
        return job

    @app.get("/v1/video/{name}", summary="Progress", dependencies=token, responses=missing)
    async def describe_video(name: str) -> dict[str, Any]:
        """Returns `status` (queued, running, done or failed), `frames`, `total` and `problem`."""
        return find(name).describe()

    @app.get(
        "/v1/video/{name}/result",
        summary="Result",
        dependencies=token,
        response_class=Response,
        responses={
            200: {"content": {"video/mp4": {}}, "description": "The video of the depth"},
            **missing,
            409: {"description": "the job is not done"},
        },
    )
    async def fetch_video(name: str) -> Response:
        """Returns the video of a job that is done."""
        job = find(name)
        if job.status != "done":
            raise HTTPException(409, f"the job is {job.status} {job.problem}".strip())
        return FileResponse(job.out, media_type="video/mp4", filename="depth.mp4")

    @app.delete(
        "/v1/video/{name}",
        status_code=204,
        summary="Remove",
        dependencies=token,
        response_class=Response,
        responses=missing,
    )
    async def remove_video(name: str) -> Response:
        """Ends a job and removes its files."""
        await asyncio.to_thread(server.videos.remove, find(name))
        return Response(status_code=204)


async def _receive(request: Request, job: VideoJob, settings: ServerSettings) -> None:
    """Writes the body to disk, within the limits of size and time."""
    size = 0
    try:
        async with asyncio.timeout(10 * settings.timeout):
            with job.source.open("wb") as file:
                async for part in request.stream():
                    size += len(part)
                    if size > settings.max_video_bytes:
                        limit = settings.max_video_bytes
                        raise HTTPException(413, f"the body has more than {limit} bytes")
                    await asyncio.to_thread(file.write, part)
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time") from None
    if not size:
        raise HTTPException(422, "the body is empty; send the bytes of a video")

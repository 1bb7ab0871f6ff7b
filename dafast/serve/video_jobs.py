"""Video jobs: one video is converted at a time, and the others wait.

Each video gets a new process, so a damaged video that crashes it fails only its own job.
"""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from .channel import Channel
from .processes import start_process
from .settings import ServerSettings

KEPT = 3600.0
"""Seconds for which the result of a job is kept."""

_EVERY = 8
"""Frames between two reports of progress."""


@dataclass(frozen=True)
class VideoOptions:
    """The options of a video, as of ``dafast video``.

    Attributes:
        model: Name of the model.
        layout: What the pictures show.
        stabilize: How the maps are stabilized.
        palette: Colours.
    """

    model: str
    layout: str = "color"
    stabilize: str = "range"
    palette: str = "Spectral_r"


class VideoJob:
    """A video that waits, is being converted, or is finished.

    Attributes:
        id: Its name, which cannot be guessed.
        status: ``"queued"``, ``"running"``, ``"done"`` or ``"failed"``.
        frames: Frames that are done.
        total: Frames of the video; None if its file does not say it.
        problem: Why it failed, or what of the video could not be read.
        out: The result.
    """

    def __init__(self, folder: Path, options: VideoOptions) -> None:
        self.id = secrets.token_urlsafe(12)
        self.options = options
        self.folder = folder / self.id
        self.folder.mkdir()
        self.source, self.out = self.folder / "source", self.folder / "depth.mp4"
        self.status, self.problem = "queued", ""
        self.frames, self.total = 0, None
        self.changed = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """The job as a dictionary for JSON."""
        about: dict[str, Any] = {"id": self.id, "status": self.status, "frames": self.frames}
        return {**about, "total": self.total, "problem": self.problem}

    def end(self, status: str, problem: str = "") -> None:
        """Records the outcome, and removes files that are no longer needed."""
        self.status, self.problem, self.changed = status, problem, time.monotonic()
        self.source.unlink(missing_ok=True)
        if status == "failed":
            self.out.unlink(missing_ok=True)


class VideoJobs:
    """The jobs of a server. At most ``settings.videos`` wait or run at a time."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="dafast-videos-"))
        self.jobs: dict[str, VideoJob] = {}
        self._waiting: deque[VideoJob] = deque()
        self._changed = Condition()
        self._closed = False
        self._process: Any = None
        self._current: VideoJob | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # of a server that is not shut down in order

    @property
    def is_full(self) -> bool:
        """Whether the queue is full."""
        unfinished = sum(job.status in ("queued", "running") for job in self.jobs.values())
        return unfinished >= self.settings.videos

    def create(self, options: VideoOptions) -> VideoJob:
        """Makes a job; `start` queues it when its source is complete."""
        self._expire()
        job = VideoJob(self.folder, options)
        self.jobs[job.id] = job
        return job

    def start(self, job: VideoJob) -> None:
        """Queues a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def remove(self, job: VideoJob) -> None:
        """Ends a job and removes its files."""
        with self._changed:
            self.jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)
            if job is self._current and self._process is not None:
                self._process.kill()
        shutil.rmtree(job.folder, ignore_errors=True)

    def _expire(self) -> None:
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.status in ("done", "failed") and now - job.changed > KEPT:
                self.remove(job)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._current = self._waiting.popleft()
                job.status = "running"
                arguments = (self.settings, job.source, job.out, job.options)
                self._process, ours = start_process(convert, *arguments, name="dafast-video")
            status, problem = self._follow(ours, job)
            self._process.join()
            with self._changed:
                self._current = self._process = None
            job.end(status, problem)
            if job.id not in self.jobs:  # it was removed meanwhile
                shutil.rmtree(job.folder, ignore_errors=True)

    def _follow(self, channel: Channel, job: VideoJob) -> tuple[str, str]:
        """Records the progress of a job; returns its outcome."""
        try:
            while True:
                message = channel.recv()
                if isinstance(message[0], str):
                    return message
                job.frames, job.total = message
        except (EOFError, OSError):
            return "failed", "the process that converted the video has ended"

    def close(self) -> None:
        """Ends the running job and removes all files."""
        atexit.unregister(self.close)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._process is not None:
                self._process.kill()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def convert(
    channel: Channel,
    settings: ServerSettings,
    source: Path,
    out: Path,
    options: VideoOptions,
) -> None:
    """Converts a video. Sends ``(frames, total)`` meanwhile, and the outcome at the end."""
    try:
        channel.send(_convert(channel, settings, source, out, options))
    except Exception as error:
        channel.send(("failed", str(error).replace(str(source), "the video")))


def _convert(
    channel: Channel,
    settings: ServerSettings,
    source: Path,
    out: Path,
    options: VideoOptions,
) -> tuple[str, str]:
    from ..models import DepthAnything
    from ..models.inference import InferenceOptions
    from ..models.prediction import unit_of
    from ..models.streaming import raw_results, stabilizer_for
    from ..video.conversion import Conversion, Outputs
    from ..video.reader import open_video
    from ..video.rendering import Renderer
    from ..video.source import Selection
    from ..video.stabilization import LOOKAHEAD

    selection = Selection()
    reader = open_video(source, selection, threads=1)
    try:
        info = reader.info
        if info.width * info.height > settings.max_pixels:
            return "failed", f"{info.width}x{info.height} is more than {settings.max_pixels} pixels"
        model = DepthAnything.from_pretrained(
            options.model, device=settings.device, dtype=settings.dtype
        )
        kind = "disparity" if model.config.quantity == "disparity" else "depth"
        conversion = Conversion(
            reader,
            selection,
            lambda frames, _: raw_results(model, frames, InferenceOptions()),
            stabilizer_for(
                model, None if options.stabilize == "range" else options.stabilize, LOOKAHEAD
            ),
            Outputs(out, renderer=Renderer(options.layout, options.palette)),
            {},
            {"kind": kind, "unit": unit_of(model.config)},
        )
        for done in conversion.run():
            if done % _EVERY == 0:
                channel.send((done, info.count))
        conversion.finish(complete=True)
        channel.send((conversion.done, info.count))
        return "done", "; ".join(conversion.problems)
    finally:
        reader.close()

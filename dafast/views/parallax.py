"""Videos of a camera that moves in front of one photo."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import whole_file
from ..geometry import check_count
from ..optional import MissingPackageError, why_no_module
from .stereo import check_divergence
from .warp import Camera, render_view

PATHS = ("circle", "dolly", "swing")
"""Paths of the camera; each ends where it begins, so that a video can be repeated."""

MAX_FPS = 1000
"""Frames per second; WebP counts milliseconds."""

SUFFIXES = (".mp4", ".webp")
"""Suffixes of the files that `save_video` writes."""


def camera_path(path: str, count: int, width: int, divergence: float = 2.5) -> list[Camera]:
    """The cameras of a video.

    Args:
        path: ``"circle"`` (right, down, left, up), ``"swing"`` (left and right) or ``"dolly"``
            (towards the scene and back).
        count: Number of frames.
        width: Width of the photo in pixels.
        divergence: How far the nearest and the farthest surface move relative to each other, in per
            cent of the width: over the whole path with circle and swing, at the left and right
            border with dolly.

    Raises:
        ValueError: If the path is unknown, count under 1, or divergence is not in 0..20.
    """
    check_count("count", count, 1, "a video has at least one frame")
    if path not in PATHS:
        raise ValueError(f"no path {path!r}; there are: {', '.join(PATHS)}")
    check_divergence(divergence)
    pixels, cameras = divergence / 200 * width, []
    for angle in (2 * math.pi * i / count for i in range(count)):
        if path == "dolly":
            cameras.append(Camera(forward=divergence / 100 * (1 - math.cos(angle))))
        else:
            down = pixels * math.cos(angle) if path == "circle" else 0.0
            cameras.append(Camera(right=pixels * math.sin(angle), down=down))
    return cameras


def parallax_frames(
    photo: np.ndarray,
    near: np.ndarray,
    cameras: list[Camera],
    *,
    convergence: float = 0.5,
    device: torch.device | str = "cpu",
) -> Iterator[np.ndarray]:
    """Renders a photo for each camera, one after the other.

    The border, where the cameras see more than the photo shows, is cropped: by the same width in
    all frames.

    Args:
        photo: (H, W, 3) uint8.
        near: Nearness (H, W), as `nearness` gives it.
        cameras: As `camera_path` gives them.
        convergence: The nearness that does not move.
        device: Where to compute.

    Yields:
        (H', W', 3) uint8.
    """
    height, width = near.shape
    farther = max(convergence, 1 - convergence)
    right = max(abs(camera.right) + abs(camera.forward) * width / 2 for camera in cameras)
    down = max(abs(camera.down) + abs(camera.forward) * height / 2 for camera in cameras)
    right = min(math.ceil(farther * right), (width - 1) // 2)
    down = min(math.ceil(farther * down), (height - 1) // 2)
    for camera in cameras:
        view = render_view(photo, near, camera, convergence=convergence, device=device)
        yield view[down : height - down, right : width - right]


def check_video(path: Path) -> None:
    """Raises an error if a video of this name cannot be written here."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: videos are written as {' or '.join(SUFFIXES)}, not as "
            f"{path.suffix or 'a file without a suffix'}"
        )
    if path.suffix.lower() == ".mp4" and (reason := why_no_module("av")):
        raise MissingPackageError(
            f"{path}: {reason}; install the extra dafast[video] (PyAV), or write .webp"
        )


def save_video(
    path: str | Path, frames: Iterable[np.ndarray], *, fps: int = 30, count: int | None = None
) -> None:
    """Writes frames as H.264 in MP4, or as an animated WebP that repeats.

    The file appears when it is complete.

    Args:
        path: A file name that ends in .mp4 or .webp.
        frames: Arrays (H, W, 3), uint8, all of one size, in a list or from an iterator. An MP4
            leaves out the last row and column of an odd size, which H.264 does not have.
        fps: Frames per second, 1 to 1000.
        count: Number of frames. WebP has all frames in memory at a time without it, and only a few
            with it; MP4 always has only a few.

    Raises:
        ValueError: If the suffix is another one, fps out of range, there is no frame, or there are
            fewer than count.
        MissingPackageError: If PyAV, which writes MP4, is not installed.
    """
    path = Path(path)
    check_video(path)
    check_count("fps", fps, 1, "a video has at least one frame per second")
    if fps > MAX_FPS:
        raise ValueError(f"fps={fps}: at most {MAX_FPS}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{path}: a video needs at least one frame")
    with whole_file(path) as file:
        if path.suffix.lower() == ".mp4":
            _write_mp4(file, first, frames, fps)
        else:
            _write_webp(file, first, frames, fps, count)


class _Rest(Image.Image):
    """The frames after the first as one picture with many frames, each made when Pillow seeks it.

    Pillow makes a list of all pictures that it appends.
    """

    def __init__(self, frames: Iterator[np.ndarray], count: int, size: tuple[int, int]):
        super().__init__()
        self._mode, self._size = "RGB", size
        self.n_frames = count
        self._frames = frames

    def seek(self, frame: int) -> None:
        pixels = next(self._frames, None)
        if pixels is None:
            raise ValueError(f"a video of {self.n_frames + 1} frames has only {frame + 1}")
        self.im = Image.fromarray(pixels).im


def _write_webp(
    file: Any, first: np.ndarray, frames: Iterator[np.ndarray], fps: int, count: int | None
) -> None:
    rest: list[Image.Image] = []
    if count is None:
        rest = [Image.fromarray(frame) for frame in frames]
    elif count > 1:
        rest = [_Rest(frames, count - 1, first.shape[1::-1])]
    Image.fromarray(first).save(
        file,
        format="WEBP",
        save_all=True,
        append_images=rest,
        duration=1000 / fps,  # Pillow rounds the time of each frame, not its duration
        loop=0,
        quality=80,
        method=2,
    )


def _write_mp4(file: Any, first: np.ndarray, frames: Iterator[np.ndarray], fps: int) -> None:
    import av

    height, width = (side // 2 * 2 for side in first.shape[:2])
    if not (height and width):
        size = "{1}x{0}".format(*first.shape)
        raise ValueError(
            f"an MP4 needs at least 2x2 pixels; the frames have {size} (a moving camera crops the "
            "border of the photo)"
        )
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18", "preset": "fast"}

        def encode(frame: np.ndarray) -> None:
            picture = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[:height, :width]), format="rgb24"
            )
            container.mux(stream.encode(picture))

        encode(first)
        for frame in frames:
            encode(frame)
        container.mux(stream.encode())

"""Readers of folders of numbered pictures, animated GIF and WebP files, and arrays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sized
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..files import explain
from ..images import PHOTO_SUFFIXES, ImageError, as_pixels, load_image
from ..pointcloud import as_bytes
from .source import (
    DEFAULT_RATE,
    Frame,
    Picker,
    Position,
    Selection,
    VideoError,
    VideoInfo,
    VideoReader,
)

_DEFAULT_MILLISECONDS = 100
"""Duration of a GIF's frame that gives none, as browsers show it."""


def natural_key(path: Path) -> tuple[Any, ...]:
    """A key that sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.stem)
    return (*((int(p), "") if p.isdigit() else (-1, p) for p in parts), (-1, path.name))


def rate_of(selection: Selection) -> Fraction:
    """Frames per second of a source without times."""
    return Fraction(selection.fps or DEFAULT_RATE).limit_denominator(1001)


class _Timed(VideoReader):
    """A reader that has times for each frame before its pixels."""

    def __init__(self, selection: Selection, by_rate: bool) -> None:
        super().__init__()
        # The rate of a source without times is not a limit.
        self.selection = dataclasses.replace(selection, fps=None) if by_rate else selection

    def _picker(self, after: Position | None) -> Picker:
        if after is None:
            return Picker(self.selection)
        return Picker(self.selection, (after.number, float(after.pts * self.info.time_base)))

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels in the size of the first frame."""
        from PIL import Image

        size = (self.info.width, self.info.height)
        if pixels.shape[1::-1] == size:
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _as_rgb(picture: Any, name: str) -> np.ndarray:
    pixels = as_pixels(picture, name)
    if pixels.dtype.itemsize == 1:
        return pixels.numpy()
    return as_bytes(pixels.permute(1, 2, 0).numpy())


class FolderReader(_Timed):
    """The pictures of a folder, sorted by the numbers in their names.

    Args:
        folder: The folder.
        selection: Its ``fps`` is the rate, 30 by default.

    Raises:
        VideoError: If the folder has no picture that can be read.
    """

    def __init__(self, folder: Path, selection: Selection) -> None:
        super().__init__(selection, by_rate=True)
        self.paths = sorted(
            (
                path
                for path in folder.iterdir()
                if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
            ),
            key=natural_key,
        )
        rate = rate_of(selection)
        count = self.selection.estimate(len(self.paths), float(rate))
        for path in self.paths:
            try:
                height, width = load_image(path).shape[:2]
                break
            except ImageError:
                continue
        else:
            raise VideoError(f"{folder}: a folder without pictures that can be read")
        shift = round(self.selection.start * rate)
        self.info = VideoInfo(str(folder), width, height, 1 / rate, rate, count, shift=shift)

    def frames(self, after: Position | None = None) -> Iterator[Frame]:
        """Yields the pictures; one that cannot be read is left out."""
        picker, first = self._picker(after), 0 if after is None else after.pts + 1
        for pts in range(first, len(self.paths)):
            seconds = float(pts * self.info.time_base)
            if picker.is_past(seconds):
                return
            if not picker.keeps(seconds):
                continue
            try:
                pixels = _as_rgb(self.paths[pts], str(self.paths[pts]))
            except ImageError as error:
                self.problems.append(str(error))
                continue
            yield Frame(self._fitted(pixels), picker.number, pts, 1)


class AnimationReader(_Timed):
    """An animated GIF, WebP or PNG.

    Args:
        path: The file.
        selection: The frames that are read.

    Raises:
        VideoError: If the file cannot be read.
    """

    def __init__(self, path: Path, selection: Selection) -> None:
        from PIL import Image

        super().__init__(selection, by_rate=False)
        try:
            self._image = Image.open(path)
            self._image.load()
        except Exception as error:  # Pillow raises errors of many types
            raise VideoError(f"{path}: cannot be read ({explain(error)})") from error
        total = getattr(self._image, "n_frames", 1)
        self._total = total
        milliseconds = sum(self._milliseconds_of(min(total, 16)))
        rate = Fraction(1000 * min(total, 16), milliseconds).limit_denominator(1001)
        base = Fraction(1, 1000)
        width, height = self._image.size
        count = selection.estimate(total, float(rate))
        shift = round(selection.start / base)
        self.info = VideoInfo(str(path), width, height, base, rate, count, shift=shift)

    def _milliseconds_of(self, count: int) -> Iterator[int]:
        for number in range(count):
            try:
                self._image.seek(number)
                yield self._milliseconds()
            except Exception:  # `frames` reports it
                yield _DEFAULT_MILLISECONDS

    def _milliseconds(self) -> int:
        self._image.load()  # a WebP has the duration of a frame only then
        return round(self._image.info.get("duration", 0)) or _DEFAULT_MILLISECONDS

    def frames(self, after: Position | None = None) -> Iterator[Frame]:
        """Yields the frames, composited over white."""
        picker, pts = Picker(self.selection), 0
        for number in range(self._total):
            try:
                self._image.seek(number)
                duration = self._milliseconds()
                seconds = float(pts * self.info.time_base)
                if picker.is_past(seconds):
                    return
                if picker.keeps(seconds) and (after is None or pts > after.pts):
                    # Pillow's own picture changes with the next frame.
                    pixels = _as_rgb(self._image.copy(), self.info.name)
                    yield Frame(self._fitted(pixels), picker.number, pts, duration)
                pts += duration
            except (OSError, ValueError, EOFError, SyntaxError) as error:
                self.problems.append(f"frame {number} of {self._total}: {explain(error)}")
                return

    def close(self) -> None:
        """Closes the file."""
        self._image.close()


class ArrayReader(_Timed):
    """Pictures from a program: arrays, tensors, PIL images or paths.

    Args:
        pictures: Any iterable of them.
        selection: Its ``fps`` is the rate, 30 by default.

    Raises:
        VideoError: If there is no picture.
    """

    def __init__(self, pictures: Iterable[Any], selection: Selection) -> None:
        super().__init__(selection, by_rate=True)
        total = len(pictures) if isinstance(pictures, Sized) else None
        self._pictures = iter(pictures)
        self._first = next(self._pictures, None)
        if self._first is None:
            raise VideoError("the video has no frame")
        height, width = _as_rgb(self._first, "frame 0").shape[:2]
        rate = rate_of(selection)
        shift = round(self.selection.start * rate)
        self.info = VideoInfo(
            "the frames",
            width,
            height,
            1 / rate,
            rate,
            self.selection.estimate(total, float(rate)),
            shift=shift,
            can_resume=False,
        )

    def frames(self, after: Position | None = None) -> Iterator[Frame]:
        """Yields the pictures."""
        picker = self._picker(None)
        for pts, picture in enumerate(self._all()):
            seconds = float(pts * self.info.time_base)
            if picker.is_past(seconds):
                return
            if picker.keeps(seconds):
                yield Frame(self._fitted(_as_rgb(picture, f"frame {pts}")), picker.number, pts, 1)

    def _all(self) -> Iterator[Any]:
        first, self._first = self._first, None
        if first is not None:
            yield first
        yield from self._pictures

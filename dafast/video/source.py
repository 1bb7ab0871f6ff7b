"""The interface of video readers: facts of the video, and frames with their times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

MPEG_RANGE, FULL_RANGE = 1, 2
"""Colour ranges as FFmpeg numbers them: 16..235, and 0..255; 0 is unspecified."""

RESTART = 1.0
"""Seconds by which time stamps go back where a recording was put behind another: those that follow
continue the earlier ones."""

DEFAULT_RATE = 30.0
"""Frames per second of sources without times, such as folders and arrays."""


def ffmpeg_name(path: Path) -> str:
    """The name of a file for FFmpeg, which reads the part before a colon as a protocol."""
    return f"file:{path}"


class VideoError(ValueError):
    """A video cannot be read or written; the message names it and the reason."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, upright.
        number: Number of the frame among those from the start on, from 0; frames that are left out
            count.
        pts: Time stamp in units of `VideoInfo.time_base`.
        duration: Time until the next frame in the same unit; 0 if it is unknown.
    """

    pixels: np.ndarray = field(repr=False)
    number: int
    pts: int
    duration: int = 0


@dataclass(frozen=True)
class VideoInfo:
    """Facts of a video, after rotation.

    Attributes:
        name: For messages.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        time_base: Seconds of one unit of the time stamps.
        rate: Mean number of frames per second.
        count: Expected number of frames; None if it is unknown.
        origin: Time stamp of the beginning of the video.
        shift: Time stamp that becomes 0 in the output; 0 keeps all time stamps.
        pixel_aspect: Width of a pixel divided by its height.
        color_range: `MPEG_RANGE`, `FULL_RANGE` or 0.
        colorspace: Number of FFmpeg's ``AVColorSpace``; 2 is unspecified.
        primaries: Number of FFmpeg's ``AVColorPrimaries``.
        transfer: Number of FFmpeg's ``AVColorTransferCharacteristic``.
        path: The file that has the sound and the subtitles; None if there is no such file.
        can_resume: Whether reading can go on at a frame in the middle.
    """

    name: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    count: int | None = None
    origin: int = 0
    shift: int = 0
    pixel_aspect: Fraction = Fraction(1)
    color_range: int = 0
    colorspace: int = 2
    primaries: int = 2
    transfer: int = 2
    path: Path | None = None
    can_resume: bool = True

    def seconds(self, pts: int) -> float:
        """The time of a frame in the output, in seconds."""
        return float((pts - self.shift) * self.time_base)


@dataclass(frozen=True)
class Position:
    """The last frame that was read: its `Frame.number` and its `Frame.pts`."""

    number: int
    pts: int


@dataclass(frozen=True)
class Selection:
    """The frames that are read.

    Attributes:
        every: Each frame whose number is a multiple of it.
        fps: Largest number of frames per second; None for all. It is the rate of sources without
            times.
        start: Seconds from the beginning of the video to the first frame.
        end: Seconds from the beginning of the video to the first frame that is left out; None for
            the end of the video.
    """

    every: int = 1
    fps: float | None = None
    start: float = 0.0
    end: float | None = None

    def check(self) -> None:
        """Raises a ValueError if a value is out of range."""
        if self.every < 1:
            raise ValueError(f"every={self.every}: a number of frames, at least 1")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps={self.fps}: frames per second, above 0 and at most 1000")
        if not 0 <= self.start < math.inf:
            raise ValueError(f"start={self.start}: seconds, 0 or more")
        if self.end is not None and not self.end > self.start:
            raise ValueError(f"end={self.end}: it must be later than the start, {self.start}")

    @property
    def is_all(self) -> bool:
        """Whether every frame is read."""
        return self == Selection()

    def estimate(self, count: int | None, rate: float) -> int | None:
        """The number of frames to expect of a source with this count and rate."""
        if count is None and self.end is None:
            return None
        total = math.inf if count is None else count / rate
        seconds = max(0.0, min(total, math.inf if self.end is None else self.end) - self.start)
        kept = rate / self.every
        return max(1, round(seconds * (kept if self.fps is None else min(kept, self.fps))))


class Picker:
    """Decides frame by frame what a `Selection` keeps.

    Args:
        selection: The rule.
        after: Number and time in seconds of the last frame that was kept by an earlier run.
    """

    def __init__(self, selection: Selection, after: tuple[int, float] | None = None) -> None:
        self.selection = selection
        self.number = -1 if after is None else after[0]
        self._slot = -1 if after is None else self._slot_of(after[1])

    def _slot_of(self, seconds: float) -> int:
        if self.selection.fps is None:
            return 0
        return math.floor((seconds - self.selection.start) * self.selection.fps + 1e-6)

    def is_past(self, seconds: float) -> bool:
        """Whether a frame is behind the end."""
        return self.selection.end is not None and seconds >= self.selection.end - 1e-9

    def keeps(self, seconds: float) -> bool:
        """Whether to keep the next frame, which has this time; counts it."""
        if seconds < self.selection.start - 1e-9:
            return False
        self.number += 1
        if self.number % self.selection.every:
            return False
        if self.selection.fps is None:
            return True
        slot = self._slot_of(seconds)
        if slot <= self._slot:
            return False
        self._slot = slot
        return True


class VideoReader:
    """The frames of a video, one after the other.

    Attributes:
        info: Facts of the video.
        problems: What was damaged, one text for each problem; complete when `frames` has ended.
        is_live: Whether it is a camera, whose frames come whether they are read or not.
    """

    info: VideoInfo
    is_live = False

    def __init__(self) -> None:
        self.problems: list[str] = []

    def frames(self, after: Position | None = None) -> Iterator[Frame]:
        """Yields the selected frames.

        Args:
            after: Where an earlier run ended; the first frame is the next one.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Closes the files."""

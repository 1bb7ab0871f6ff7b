"""Reads videos with PyAV: files, pipes and webcams."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import explain, file_kind
from ..optional import MissingPackageError, why_no_module
from ..picture_sources import is_pipe, is_web_url
from .arrays import Recycler
from .pictures import AnimationReader, ArrayReader, FolderReader
from .source import (
    DEFAULT_RATE,
    RESTART,
    Frame,
    Picker,
    Position,
    Selection,
    VideoError,
    VideoInfo,
    VideoReader,
    ffmpeg_name,
)

_BEFORE = 3.0
"""Seconds before a frame to seek to: the key frame may be stored after frames that precede it."""

_HIGH = 720
"""Lines from which a video without a colour space has that of high definition."""

_ANIMATIONS = ("a GIF image", "a PNG image", "a RIFF file (WebP image, audio or video)")


def open_video(
    source: Any,
    selection: Selection | None = None,
    *,
    threads: int = 0,
    spool: Path | None = None,
) -> VideoReader:
    """Opens a video.

    Args:
        source: The path of a video file, an animated GIF or WebP, or a folder of numbered pictures;
            the number of a webcam, as a whole number or its text; ``"-"`` for the standard input;
            an http or https URL; a file open for reading in binary mode; or any iterable of
            pictures, as `DepthAnything.infer` takes them.
        selection: The frames that are read; by default all.
        threads: Threads that decode; 0 is one for each processor.
        spool: A file that gets a copy of a pipe, from which its sound can be copied later.

    Raises:
        VideoError: If the source is missing, or is not a video, or has no frame.
        MissingPackageError: If PyAV is needed and not installed.
    """
    selection = selection or Selection()
    selection.check()
    if isinstance(source, bool | bytes) or source is None:
        raise VideoError(f"{source!r} is not a video; pass a path, a webcam's number or pictures")
    if isinstance(source, int):
        return _open_webcam(source, selection, threads)
    if not isinstance(source, str | Path):
        if callable(getattr(source, "read", None)):
            return PacketReader(source, _name_of(source), selection, threads)
        if isinstance(source, Iterable) and not isinstance(source, np.ndarray):
            return ArrayReader(source, selection)
        if isinstance(source, np.ndarray) and source.ndim == 4:
            return ArrayReader(source, selection)
        raise VideoError(
            f"{type(source).__name__} is not a video; pass a path, a webcam's number, or a list "
            "or an iterator of pictures"
        )
    path, text = Path(source), str(source)
    if text == "-":
        return _open_pipe(sys.stdin.buffer, "standard input", selection, threads, spool)
    if text.isdigit() and not path.exists():
        return _open_webcam(int(text), selection, threads)
    if is_web_url(text):
        return PacketReader(text, text, selection, threads)
    if path.is_dir():
        return FolderReader(path, selection)
    if is_pipe(path):
        return _open_pipe(path.open("rb"), text, selection, threads, spool)
    if not path.exists():
        raise VideoError(f"{text}: no such file")
    with path.open("rb") as file:
        kind = file_kind(file.read(512))
    if kind in _ANIMATIONS and path.suffix.lower() != ".avi":
        return AnimationReader(path, selection)
    return PacketReader(ffmpeg_name(path), text, selection, threads, path=path)


def _name_of(file: Any) -> str:
    name = getattr(file, "name", "")
    return name if isinstance(name, str) and name else "the open file"


def _open_pipe(
    file: BinaryIO, name: str, selection: Selection, threads: int, spool: Path | None
) -> VideoReader:
    pipe = _Spool(file, spool)
    return PacketReader(pipe, name, selection, threads, path=spool, can_resume=False)


def webcam_address(number: int, system: str) -> tuple[str, str]:
    """The name and the format of a webcam for FFmpeg on an operating system.

    Raises:
        VideoError: If webcams have no numbers there.
    """
    if system == "Linux":
        return f"/dev/video{number}", "video4linux2,v4l2"
    if system == "Darwin":
        return f"{number}:none", "avfoundation"
    raise VideoError(f"webcam {number}: webcams are read on Linux and macOS, not on {system}")


def _open_webcam(number: int, selection: Selection, threads: int) -> VideoReader:
    name, kind = webcam_address(number, platform.system())
    if kind.startswith("video4linux2") and not Path(name).exists():
        raise VideoError(f"webcam {number}: there is no {name}")
    options = {"framerate": "30"} if kind == "avfoundation" else {}
    return PacketReader(
        name, f"webcam {number}", selection, threads, kind=kind, options=options, live=True
    )


class _Spool:
    """A pipe, every byte of which is also written to a file."""

    def __init__(self, pipe: BinaryIO, path: Path | None) -> None:
        self._pipe, self._copy = pipe, None if path is None else path.open("wb")

    def read(self, size: int = -1) -> bytes:
        """Reads at most `size` bytes."""
        data = self._pipe.read(size)
        if self._copy is not None:
            self._copy.write(data)
            self._copy.flush()
        return data

    def close(self) -> None:
        """Closes the copy; the pipe stays open."""
        if self._copy is not None:
            self._copy.close()


def upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """A view of a frame, turned and mirrored as its display matrix says.

    Args:
        pixels: (H, W, ...).
        matrix: (2, 2): a stored position (x, y) is shown at (x, y) @ matrix, with y downwards; None
            changes nothing. Angles other than right ones change nothing.
    """
    if matrix is None:
        return pixels
    (a, b), (c, d) = np.sign(np.round(matrix)).astype(int)
    if a == d == 0 and b and c:
        pixels, a, d = np.swapaxes(pixels, 0, 1), c, b
    elif b or c or not (a and d):
        return pixels
    return pixels[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]


def _display_matrix(frame: Any) -> np.ndarray | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    values = np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]] / 65536
    return None if (values == (1, 0, 0, 1)).all() else values.reshape(2, 2)


class PacketReader(VideoReader):
    """A video that PyAV opens.

    Args:
        file: What PyAV opens: a name, or a file that is open for reading.
        name: For messages.
        selection: The frames that are read.
        threads: Threads that decode; 0 is one for each processor.
        path: The file again, for its sound.
        kind: FFmpeg's name of the format; by default the content decides.
        options: Options of the format.
        live: Whether it is a camera: time stamps begin at 0.
        can_resume: Whether it can be opened again.

    Raises:
        VideoError: If it cannot be read.
        MissingPackageError: If PyAV is not installed.
    """

    def __init__(
        self,
        file: Any,
        name: str,
        selection: Selection,
        threads: int = 0,
        *,
        path: Path | None = None,
        kind: str | None = None,
        options: dict[str, str] | None = None,
        live: bool = False,
        can_resume: bool = True,
    ) -> None:
        super().__init__()
        if reason := why_no_module("av"):
            raise MissingPackageError(f"{name}: {reason}; install the extra dafast[video] (PyAV)")
        self._file, self._name, self._selection, self._threads = file, name, selection, threads
        self.is_live = live
        self._opening: dict[str, Any] = {"format": kind, "options": options or {}}
        self._packets = self._decoded = 0
        self._reformatter: Any = None
        self._arrays = Recycler()
        self._open()
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate or Fraction(DEFAULT_RATE)
        self._step = max(1, round(1 / (rate * stream.time_base)))
        self._origin: int | None = stream.start_time
        self._last: int | None = None
        # The first frame has the rotation.
        self._raw = self._numbered()
        self._first = next(self._raw, None)
        if self._first is None:
            text = f" ({self.problems[0]})" if self.problems else ""
            raise VideoError(f"{name}: no frame of the video can be read{text}")
        first_pts, frame = self._first
        if self._origin is None or live:
            self._origin = first_pts
        self._matrix = _display_matrix(frame)
        self._size = (frame.width, frame.height)
        shape = upright(np.empty((frame.height, frame.width), np.uint8), self._matrix).shape
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        aspect = Fraction(aspect) if aspect else Fraction(1)
        turned = self._matrix is not None and abs(self._matrix[0, 1]) > abs(self._matrix[0, 0])
        shift = round(selection.start / stream.time_base)
        self.info = VideoInfo(
            name,
            shape[1],
            shape[0],
            stream.time_base,
            Fraction(rate),
            None if live else selection.estimate(self._expected(), float(rate)),
            self._origin,
            self._origin + shift if shift or live else 0,
            1 / aspect if turned else aspect,
            int(frame.color_range),
            int(frame.colorspace),
            int(frame.color_primaries),
            int(frame.color_trc),
            path,
            can_resume and not live and (path is not None or isinstance(file, str)),
        )

    def _open(self) -> None:
        import av

        try:
            self._container = av.open(self._file, **self._opening)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self._name}: {_why_unreadable(error)}") from error
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{self._name}: it has no video")
        self._stream = self._container.streams.video[0]
        if self._stream.codec_context is None:
            raise VideoError(f"{self._name}: PyAV has no decoder for its video")
        self._stream.codec_context.thread_count = self._threads
        if self._threads != 1:
            self._stream.thread_type = "AUTO"

    def _expected(self) -> int | None:
        """The number of frames by the header."""
        stream = self._stream
        if stream.frames:
            return stream.frames
        rate = stream.average_rate or stream.guessed_rate
        seconds = self._length()
        return round(seconds * rate) if seconds and rate else None

    def _length(self) -> float | None:
        """Seconds of the video by the header."""
        stream = self._stream
        if stream.duration:
            return float(stream.duration * stream.time_base)
        text = stream.metadata.get("DURATION", "")
        if text.count(":") == 2:
            hours, minutes, seconds = text.split(":")
            end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        elif self._container.duration and len(self._container.streams) == 1:
            end = self._container.duration / 1e6
        else:
            return None
        # These count from 0, where the video need not begin.
        return end - max(0.0, float((stream.start_time or 0) * stream.time_base))

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """Decoded frames with increasing time stamps."""
        moved = 0
        for frame in self._decode():
            if frame.pts is None:
                pts = (self._origin or 0) if self._last is None else self._last + self._step
            elif self._last is None or (pts := frame.pts + moved) > self._last:
                pts = frame.pts + moved
            elif (self._last - pts) * self._stream.time_base > RESTART:
                pts = self._last + self._step
                moved = pts - frame.pts
            else:
                pts = self._last + 1  # files of some cameras repeat a time stamp
            self._last = pts
            self._decoded += 1
            yield pts, frame

    def _decode(self) -> Iterator[Any]:
        import av

        damaged = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self.problems.append(f"reading stopped: {_reason(error)}")
                packet = None
            if packet is None:
                break
            self._packets += packet.dts is not None or packet.size > 0
            damaged += bool(packet.is_corrupt)
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                damaged += 1
                continue
            yield from frames
        if damaged:
            self.problems.append(f"{damaged} damaged part{'s' * (damaged > 1)}")

    def frames(self, after: Position | None = None) -> Iterator[Frame]:
        """Yields the selected frames; problems of the file are in `problems`."""
        assert self._origin is not None
        base, origin = self.info.time_base, self._origin
        decoded: Iterator[tuple[int, Any]]
        if after is None:
            picker = Picker(self._selection)
            start = self._selection.start
            if start > _BEFORE and self.info.can_resume:
                decoded = self._from(origin + round(start / base))
            else:
                decoded = self._all()
        else:
            picker = Picker(self._selection, (after.number, float((after.pts - origin) * base)))
            decoded = (item for item in self._from(after.pts) if item[0] > after.pts)
        for pts, frame in decoded:
            seconds = float((pts - origin) * base)
            if picker.is_past(seconds):
                return
            if picker.keeps(seconds):
                duration = int(frame.duration or 0)
                yield Frame(self._pixels(frame), picker.number, pts, duration)
        if after is None and self._selection.start == 0:
            self._check_complete()

    def _all(self) -> Iterator[tuple[int, Any]]:
        first, self._first = self._first, None
        if first is not None:
            yield first
        yield from self._raw

    def _from(self, pts: int) -> Iterator[tuple[int, Any]]:
        """Decoded frames from some seconds before a time stamp on."""
        import av

        self._first = self._last = None
        self._raw = self._numbered()
        before = pts - round(_BEFORE / self.info.time_base)
        if before > (self._origin or 0):
            try:
                self._container.seek(before, stream=self._stream, backward=True)
                first = next(self._raw, None)
                if first is not None and first[1].pts is not None and first[0] <= pts:
                    yield first
                    yield from self._raw
                    return
            except av.error.FFmpegError:
                pass
        # Decodes all that precedes the frame: slow, and always possible.
        self._container.close()
        self._open()
        self._last = None
        yield from self._numbered()

    def _pixels(self, frame: Any) -> np.ndarray:
        from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

        if self._reformatter is None:
            self._reformatter = VideoReformatter()
        width, height = self._size
        unknown = int(frame.colorspace) in (0, 2) and "rgb" not in frame.format.name
        space = Colorspace.ITU709 if unknown and height >= _HIGH else None
        full = int(frame.color_range) or None
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            src_colorspace=space,
            src_color_range=None if full is None else ColorRange(full),
        )
        plane = converted.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
        stored = rows[:, : 3 * width].reshape(height, width, 3)
        return self._arrays.copy(upright(stored, self._matrix))

    def _check_complete(self) -> None:
        """Notes frames that the header promises and the file lacks."""
        stream, missing = self._stream, 0
        if stream.frames:
            missing = stream.frames - self._packets
        elif (seconds := self._length()) and self._last is not None:
            last = float((self._last - (self._origin or 0)) * stream.time_base)
            rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            if seconds - last > 3 / rate:
                missing = round((seconds - last) * rate)
        if missing > 0:
            total = self._expected()
            self.problems.append(f"cut off: {self._decoded} of about {total} frames are there")

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        if isinstance(self._file, _Spool):
            self._file.close()


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or explain(error)


def _why_unreadable(error: BaseException) -> str:
    """The message of FFmpeg, with a remedy where one is known."""
    log = getattr(error, "log", None)
    text = log[2].strip() if log and len(log) > 2 else ""
    reason = _reason(error)
    if "moov atom not found" in text or reason == "End of file":
        return (
            f"cannot be read as a video ({text or reason}): it is cut off before its table of "
            "contents, or a pipe gives an MP4 whose table comes last"
        )
    return f"cannot be read as a video ({text or reason})"

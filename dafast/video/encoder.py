"""Encodes the pictures of a segment of a video with PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import MissingPackageError, why_no_module
from .rendering import Renderer
from .source import FULL_RANGE, MPEG_RANGE, VideoError, VideoInfo, ffmpeg_name

_ENCODERS = {"h264": "libx264", "hevc10": "libx265", "ffv1": "ffv1"}

CODECS = tuple(_ENCODERS)
"""H.264 with 8 bits; HEVC with 10 bits; FFV1, lossless, with 16 bits for gray."""

SUFFIXES = {
    "h264": (".mp4", ".mov", ".mkv"),
    "hevc10": (".mp4", ".mov", ".mkv"),
    "ffv1": (".mkv", ".mp4"),
}
"""Suffixes of the files that hold each codec."""

KEY_FRAMES = 60
"""Frames from one key frame to the next at most."""

_OPTIONS = {
    # Without B-frames each packet has the time of its frame, so that segments can be joined.
    # ultrafast with CABAC and deblocking: as fast, and files smaller by a third.
    "h264": {
        "preset": "ultrafast",
        "crf": "18",
        "bf": "0",
        # force-cfr: the rate in the stream is that of the frames; else players of .mkv show that of
        # the time base. The time stamps stay.
        "x264-params": "cabac=1:deblock=0,0:force-cfr=1",
    },
    "hevc10": {"preset": "fast", "crf": "14", "x265-params": "bframes=0:log-level=none"},
    "ffv1": {"level": "3", "slicecrc": "1"},
}

_NARROW = 64
"""Pixels: x265's CU tree writes past its memory where pictures are 34 to 48 pixels wide."""

_UNSPECIFIED = 2
_SMPTE170M, _BT709 = 6, 1


def check_output(path: Path, codec: str) -> None:
    """Checks that a video with this name and codec can be written.

    Raises:
        ValueError: If the codec is unknown, or does not fit the suffix.
        MissingPackageError: If PyAV is missing, or its FFmpeg lacks the encoder.
    """
    if codec not in CODECS:
        raise ValueError(f"no codec {codec!r}; there are: {', '.join(CODECS)}")
    suffixes = SUFFIXES[codec]
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{path}: {codec} is written as {' or '.join(suffixes)}, not as "
            f"{path.suffix or 'a file without a suffix'}"
        )
    if reason := why_no_module("av"):
        raise MissingPackageError(f"{path}: {reason}; install the extra dafast[video] (PyAV)")
    if not _has_encoder(_ENCODERS[codec]):
        raise MissingPackageError(
            f"{path}: the FFmpeg of this PyAV has no encoder {_ENCODERS[codec]}; install PyAV from "
            "its wheels (pip install --only-binary av av), or choose another --codec"
        )


def check_aspect(path: Path, codec: str, info: VideoInfo) -> None:
    """Checks that the pixel aspect of a source can be kept.

    Raises:
        VideoError: If not: PyAV cannot write it to a Matroska file, and FFV1 has no place for it.
    """
    if codec == "ffv1" and path.suffix.lower() == ".mkv" and info.pixel_aspect != 1:
        raise VideoError(
            f"{path}: ffv1 in .mkv cannot keep the pixel aspect {info.pixel_aspect} of "
            f"{info.name}; write .mp4"
        )


def _has_encoder(name: str) -> bool:
    import av

    try:
        av.codec.Codec(name, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError is one
        return False
    return True


class SegmentEncoder:
    """Writes a NUT file with some frames of a video.

    NUT keeps every time base, and takes every codec.

    Args:
        path: The file.
        info: Facts of the source.
        renderer: Makes the pictures.
        codec: One of `CODECS`.
        threads: Threads of the encoder; 0 leaves it to the encoder. The same number gives the same
            file.
    """

    def __init__(
        self, path: Path, info: VideoInfo, renderer: Renderer, codec: str, threads: int
    ) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.info, self.renderer, self.codec = info, renderer, codec
        self.format = _pixel_format(codec, renderer)
        width, height = renderer.size(info.width, info.height)
        if self.format.startswith("yuv420"):  # which has one colour for 2x2 pixels
            width, height = width + width % 2, height + height % 2
        self.size = (width, height)
        self.range, self.space = colors_of(info, renderer, codec)
        self.full = self.range == FULL_RANGE
        self._reformatter: Any = VideoReformatter()
        self._planes = np.empty((0, 0), np.uint8)
        self._container = av.open(ffmpeg_name(path), "w", format="nut")
        rate = Fraction(info.rate).limit_denominator(1001000)
        stream: Any = self._container.add_stream(_ENCODERS[codec], rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, self.format
        stream.time_base = stream.codec_context.time_base = info.time_base
        stream.options = dict(_OPTIONS[codec])
        if codec == "hevc10" and width < _NARROW:
            stream.options["x265-params"] += ":cutree=0"
        context = stream.codec_context
        context.gop_size = 1 if codec == "ffv1" else KEY_FRAMES
        context.thread_count = threads
        context.sample_aspect_ratio = info.pixel_aspect
        context.color_range, context.colorspace = self.range, self.space
        context.color_primaries, context.color_trc = info.primaries, info.transfer
        self._stream = stream

    def add(
        self, pixels: np.ndarray, disparity: np.ndarray, low: float, high: float, pts: int
    ) -> None:
        """Encodes a frame.

        Args:
            pixels: As for `Renderer.render`.
            disparity: As for `Renderer.render`.
            low: As for `Renderer.render`.
            high: As for `Renderer.render`.
            pts: Time stamp in units of the source's time base, above that of the last frame.
        """
        frame = self._frame(pixels, disparity, low, high)
        frame.pts, frame.time_base = pts, self.info.time_base
        frame.color_range, frame.colorspace = self.range, self.space
        self._mux(frame)

    def _mux(self, frame: Any = None) -> None:
        for packet in self._stream.encode(frame):
            packet.dts = packet.pts  # the order of the frames is that of their times
            self._container.mux(packet)

    def _frame(self, pixels: np.ndarray, disparity: np.ndarray, low: float, high: float) -> Any:
        import av
        from av.video.reformatter import ColorRange

        if self.renderer.is_gray:
            planes = self._gray_planes(disparity, low, high)
            return av.VideoFrame.from_ndarray(planes, format=self.format)
        picture = _padded(self.renderer.render(pixels, disparity, low, high), self.size)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        if self.format == "bgr0":
            return self._reformatter.reformat(frame, format="bgr0")
        return self._reformatter.reformat(
            frame,
            format=self.format,
            dst_colorspace=self.space,
            dst_color_range=ColorRange.JPEG if self.full else ColorRange.MPEG,
        )

    def _gray_planes(self, disparity: np.ndarray, low: float, high: float) -> np.ndarray:
        """Brightness, and below it colours of 0."""
        if self.format == "gray16le":
            return self.renderer.gray(disparity, low, high, 65535)
        ten = self.format == "yuv420p10le"
        if self.full:
            gray = self.renderer.gray(disparity, low, high, 1023 if ten else 255)
        else:
            gray = self.renderer.gray(disparity, low, high, 876 if ten else 219)
            gray += gray.dtype.type(64 if ten else 16)
        width, height = self.size
        if not self._planes.size:
            self._planes = np.full((height * 3 // 2, width), 512 if ten else 128, gray.dtype)
        self._planes[:height] = _padded(gray, self.size)
        return self._planes

    def close(self) -> None:
        """Finishes the file."""
        try:
            self._mux()
        finally:
            self._container.close()


def _pixel_format(codec: str, renderer: Renderer) -> str:
    if codec == "ffv1":
        return "gray16le" if renderer.is_gray else "bgr0"
    return "yuv420p10le" if codec == "hevc10" else "yuv420p"


def colors_of(info: VideoInfo, renderer: Renderer, codec: str) -> tuple[int, int]:
    """Numbers of the colour range and the colour space of the pictures.

    They are those of the source where it has them; lossless pictures have the full range.
    """
    full = codec == "ffv1" or info.color_range == FULL_RANGE
    if _pixel_format(codec, renderer) == "bgr0":
        return FULL_RANGE, 0
    known = info.colorspace not in (0, _UNSPECIFIED)
    space = info.colorspace if known else _BT709 if info.height >= 720 else _SMPTE170M
    return FULL_RANGE if full else MPEG_RANGE, space


def _padded(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture with its last column and row repeated, up to a size (width, height)."""
    height, width = picture.shape[:2]
    missing = [(0, size[1] - height), (0, size[0] - width), (0, 0)]
    if missing[0][1] == missing[1][1] == 0:
        return np.ascontiguousarray(picture)
    return np.pad(picture, missing[: picture.ndim], mode="edge")

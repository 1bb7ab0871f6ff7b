"""Small clips, made by PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dafast.video import reader

TICKS = 12800
"""Units of a second in the clips."""


def moving(count: int, size: tuple[int, int] = (64, 48), step: int = 2) -> list[np.ndarray]:
    """Frames of a camera that pans over blocks of one hue; ``size`` is (width, height)."""
    width, height = size
    coarse = np.random.default_rng(5).integers(20, 180, (height // 8 + 2, 40, 1))
    wide = (np.kron(coarse, np.ones((8, 8, 1), int)) + np.array([40, 20, 0])).astype(np.uint8)
    return [np.ascontiguousarray(wide[:height, step * i : step * i + width]) for i in range(count)]


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    pts: Sequence[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotation: int = 0,
    aspect: Fraction | None = None,
    full_range: bool = False,
    sound: str | None = None,
    subtitles: bool = False,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Writes frames at 25 per second, or at the given times in `TICKS`."""
    frames = list(frames)
    pts = [512 * i for i in range(len(frames))] if pts is None else pts
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        stream.options = dict(options or {})
        if codec == "libx264":
            stream.options = {"crf": "4", "g": "5", **stream.options}
        stream.codec_context.color_range = 2 if full_range else 1
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        other = None if sound is None else container.add_stream(sound, rate=16000, layout="mono")
        titles = container.add_mux_stream("subrip") if subtitles else None
        packets = []
        for frame, time in zip(frames, pts, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(
                format=pixels, dst_color_range="JPEG" if full_range else "MPEG"
            )
            picture.pts, picture.time_base = time, Fraction(1, TICKS)
            packets += stream.encode(picture)
        packets += stream.encode()
        if other is not None:
            packets += _tone(other, (pts[-1] + 512) / TICKS)
        if titles is not None:
            packet = av.Packet(b"hello")
            packet.pts = packet.dts = 100
            packet.duration, packet.time_base, packet.stream = 200, Fraction(1, 1000), titles
            packets.append(packet)
        container.mux(packets)
    return path


def _tone(stream: Any, seconds: float) -> list[av.Packet]:
    packets = []
    total = round(seconds * 16000)
    wave = (8000 * np.sin(np.arange(total) / 8)).astype(np.int16)
    for start in range(0, total, 1024):
        part = wave[None, start : start + 1024]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        packets += stream.encode(frame)
    return packets + stream.encode()


def replace_webcams(monkeypatch: Any, end: int | None = None) -> None:
    """Makes every webcam a moving test picture of FFmpeg, 64x48, whose clock began long before.

    Args:
        monkeypatch: pytest's.
        end: Frames; None has no end.
    """
    picture = "testsrc=size=64x48:rate=25,setpts=PTS+90000"
    name = picture if end is None else f"{picture},trim=end_frame={end}"
    monkeypatch.setattr(reader, "webcam_address", lambda number, system: (name, "lavfi"))


def decoded(path: Path) -> list[av.VideoFrame]:
    """All frames of a video."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def packets_of(path: Path, kind: str) -> list[tuple[float, bytes]]:
    """Times and contents of the packets of a file's first stream of a kind."""
    with av.open(str(path)) as container:
        (stream,) = (s for s in container.streams if s.type == kind)
        return [
            (round(float(p.pts * p.time_base), 3), bytes(p))
            for p in container.demux(stream)
            if p.pts is not None
        ]

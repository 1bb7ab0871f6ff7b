"""Joins encoded segments to one file, with the sound and the subtitles of the source."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import explain, whole_file
from .source import RESTART, VideoError, VideoInfo, ffmpeg_name

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}

_OWN = {"encoder", "major_brand", "minor_version", "compatible_brands", "duration"}
"""Metadata that describe the file, not its content."""


class Span(NamedTuple):
    """The part of the source that is copied, in seconds of the source.

    Attributes:
        start: What becomes 0; 0 copies everything before the end.
        end: End; None for the end of the source.
    """

    start: float
    end: float | None


def check_copies(source: Path, out: Path) -> None:
    """Checks that a file of the output's type can hold the source's sound and subtitles.

    Raises:
        VideoError: If it cannot; the message has the remedy.
    """
    import av

    with av.open(ffmpeg_name(source)) as container:
        for stream in _others(container):
            with av.open(io.BytesIO(), "w", format=_FORMATS[out.suffix.lower()]) as trial:
                try:
                    trial.add_stream_from_template(stream)
                    trial.start_encoding()
                except (av.error.FFmpegError, ValueError) as error:
                    what = "sound" if stream.type == "audio" else "subtitles"
                    other = "" if out.suffix.lower() == ".mkv" else "; write .mkv instead"
                    raise VideoError(
                        f"{source}: a {out.suffix} file cannot hold its {what} "
                        f"({stream.codec_context.name}){other}"
                    ) from error


def _others(container: Any) -> list[Any]:
    """The streams of sound and subtitles that can be copied."""
    return [
        stream
        for stream in (*container.streams.audio, *container.streams.subtitles)
        if stream.codec_context is not None
    ]


def join_segments(
    out: Path,
    segments: Sequence[Path],
    info: VideoInfo,
    span: Span,
    last_duration: int,
    copy_from: Path | None,
    colors: tuple[int, int],
) -> list[str]:
    """Writes a file whole.

    Args:
        out: The file; its suffix is one of those in `dafast.video.encoder.SUFFIXES`.
        segments: NUT files with one video each, in order.
        info: Facts of the source.
        span: Which part of the sound is copied.
        last_duration: Duration of the last frame in units of the time base.
        copy_from: The file with the sound and the subtitles; None without.
        colors: Numbers of the colour range and the colour space of the pictures.

    Returns:
        Problems of reading the sound, one text for each.

    Raises:
        VideoError: If the file cannot be written.
    """
    import av

    problems: list[str] = []
    source = None if copy_from is None else av.open(ffmpeg_name(copy_from))
    try:
        with whole_file(out) as file:
            # Without it a Matroska file has random numbers.
            same = {"fflags": "+bitexact"} if out.suffix.lower() == ".mkv" else {}
            with av.open(file, "w", format=_FORMATS[out.suffix.lower()], options=same) as container:
                with av.open(ffmpeg_name(segments[0])) as first:
                    video = container.add_stream_from_template(first.streams.video[0])
                video.time_base = info.time_base
                _note_display(video.codec_context, info, colors)
                copies = {} if source is None else _add_copies(container, source, span)
                queues = [_video_packets(segments, video, info, last_duration)]
                if source is not None and copies:
                    queues.append(_other_packets(source, copies, span, problems))
                for packet in _interleaved(queues):
                    container.mux_one(packet)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno and error.errno > 0:
            raise
        raise VideoError(f"{out}: cannot be written ({explain(error)})") from error
    finally:
        if source is not None:
            source.close()
    return problems


def _note_display(context: Any, info: VideoInfo, colors: tuple[int, int]) -> None:
    """Sets what NUT does not keep of codecs without it in their own stream."""
    context.sample_aspect_ratio = info.pixel_aspect
    context.color_range, context.colorspace = colors
    context.color_primaries, context.color_trc = info.primaries, info.transfer


def _add_copies(container: Any, source: Any, span: Span) -> dict[int, Any]:
    """Adds streams for the sound and the subtitles; returns them by number in the source."""
    copies = {}
    for stream in _others(source):
        copy = container.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        copy.metadata.update(_described(stream.metadata))
        copies[stream.index] = copy
    container.metadata.update(_described(source.metadata))
    if span.start == 0 and span.end is None:
        container.set_chapters(source.chapters())
    return copies


def _described(metadata: dict[str, str]) -> dict[str, str]:
    return {key: text for key, text in metadata.items() if key.lower() not in _OWN}


def _video_packets(
    segments: Sequence[Path], stream: Any, info: VideoInfo, last_duration: int
) -> Iterator[tuple[float, Any]]:
    import av

    waiting: Any = None
    for path in segments:
        with av.open(ffmpeg_name(path)) as segment:
            for packet in segment.demux(segment.streams.video[0]):
                if packet.pts is None:  # the packet at the end
                    continue
                packet.dts = packet.pts  # the demuxer leaves it out in some short segments
                if waiting is not None:
                    waiting.duration = packet.pts - waiting.pts
                    yield float(waiting.dts * waiting.time_base), waiting
                packet.stream = stream
                waiting = packet
    if waiting is not None:
        # NUT may have a finer time base than the source.
        waiting.duration = max(1, round(last_duration * info.time_base / waiting.time_base))
        yield float(waiting.dts * waiting.time_base), waiting


def _other_packets(
    source: Any, copies: dict[int, Any], span: Span, problems: list[str]
) -> Iterator[tuple[float, Any]]:
    import av

    packets = source.demux([source.streams[index] for index in copies])
    clocks = {index: _Clock() for index in copies}
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            problems.append(f"copying the sound stopped: {explain(error)}")
            return
        if packet is None:
            return
        if packet.dts is None or packet.pts is None:
            continue
        clocks[packet.stream.index].correct(packet)
        time = float(packet.pts * packet.time_base)
        if (span.start and time < span.start) or (span.end is not None and time >= span.end):
            continue
        if span.start:
            moved = round(span.start / packet.time_base)
            packet.pts, packet.dts = packet.pts - moved, packet.dts - moved
        packet.stream = copies[packet.stream.index]
        yield float(packet.dts * packet.time_base), packet


class _Clock:
    """Makes the time stamps of a stream's packets increase, as every container requires."""

    def __init__(self) -> None:
        self._moved, self._last, self._next = 0, -(1 << 62), 0

    def correct(self, packet: Any) -> None:
        """Changes the time stamps of the next packet if it is not later than the one before."""
        dts = packet.dts + self._moved
        if dts <= self._last:
            restarts = (self._last - dts) * packet.time_base > RESTART
            dts = self._next if restarts else self._last + 1
            if restarts:
                self._moved = dts - packet.dts
        pts = max(packet.pts + self._moved, dts)
        packet.pts, packet.dts = pts, dts
        self._last, self._next = dts, dts + max(1, packet.duration or 0)


def _interleaved(queues: Sequence[Iterator[tuple[float, Any]]]) -> Iterator[Any]:
    """Packets of several iterators by their times; an iterator's own order stays."""
    heads = [next(queue, None) for queue in queues]
    while any(head is not None for head in heads):
        index = min(
            (i for i, head in enumerate(heads) if head is not None),
            key=lambda i: heads[i][0],  # type: ignore[index]
        )
        yield heads[index][1]  # type: ignore[index]
        heads[index] = next(queues[index], None)

"""Converts a video to a video of its depth: decodes, predicts, stabilizes and encodes in parallel.

Each step runs in a thread, with bounded queues between them, so the memory does not depend on the
length of the video. The result is encoded in segments, which are joined at the end. The state after
each whole segment is on disk, and an interrupted conversion continues from it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import writing
from ..result import DepthResult
from .encoder import SegmentEncoder, colors_of
from .frame_result import FrameResult, frame_result
from .muxing import Span, join_segments
from .raw_values import RawValues
from .rendering import Renderer
from .restart import Restart, Restarts
from .source import Frame, Position, Selection, VideoError, VideoReader
from .stabilization import StabilizedFrame, Stabilizer
from .threads import TRIM, staged, trim_heap
from .workspace import Checkpoint, Workspace

SEGMENT = 120
"""Frames of a segment, at least."""

FRAME_FORMATS = {"png16": ".png", "exr": ".exr", "npz": ".npz"}
"""Formats of single frames, and their suffixes."""

_NO_PIXELS = np.empty((0, 0, 3), np.uint8)

Predict = Callable[[Iterator[np.ndarray], bytes], Generator["DepthResult | Restart", None, None]]
"""Gives a result without an image for each frame, in order.

A model whose maps depend on earlier frames puts marks between them. A conversion that continues at
a mark passes its state, and the frames of the results that follow it.
"""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a conversion.

    Attributes:
        video: The video, or None.
        codec: One of `dafast.video.encoder.CODECS`.
        renderer: Makes its pictures.
        encoder_threads: As for `SegmentEncoder`.
        frames: Name of one of `FRAME_FORMATS`, and the folder; None without.
        raw: An NPZ file with all maps, or None.
        depth_scale: Steps per metre of ``png16`` of metric models.
        segment: Frames of a segment, at least.
        batch: Frames whose maps can depend on each other in their last bits.
        reach: Results between two marks of the model at most; 0 for a model without marks.
        place: A path next to which the unfinished conversion is; by default the first output.
    """

    video: Path | None
    codec: str = "h264"
    renderer: Renderer = field(default_factory=Renderer)
    encoder_threads: int = 1
    frames: tuple[str, Path] | None = None
    raw: Path | None = None
    depth_scale: float = 1000.0
    segment: int = SEGMENT
    batch: int = 1
    reach: int = 0
    place: Path | None = None

    @property
    def main(self) -> Path:
        """The output next to which the unfinished conversion is."""
        path = self.place or self.video or self.raw or (self.frames and self.frames[1])
        if not path:
            raise ValueError("a conversion needs an output, or a place")
        return path


def _without_pixels(frame: Frame) -> Frame:
    return replace(frame, pixels=_NO_PIXELS)


class _Ready(NamedTuple):
    """A frame that can be written."""

    frame: Frame
    result: FrameResult
    disparity: np.ndarray


class Conversion:
    """One video to its depth.

    Args:
        reader: The video.
        selection: The frames that the reader selects.
        predict: The model.
        stabilizer: Takes disparity.
        outputs: What is written.
        settings: All that the result depends on; JSON can hold it.
        facts: What the maps are, for the file of raw values: ``kind``, ``unit`` and others.
        resume: Whether to go on where an earlier conversion ended.
        meter: A `dafast.video.flicker.FlickerMeter` that gets the maps before and after.

    Attributes:
        done: Frames that are written, with those of earlier runs.
        kept: Frames of earlier runs.
        problems: Damage of the source.
    """

    def __init__(
        self,
        reader: VideoReader,
        selection: Selection,
        predict: Predict,
        stabilizer: Stabilizer,
        outputs: Outputs,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        resume: bool = False,
        meter: Any = None,
    ) -> None:
        self.reader, self.selection, self.predict = reader, selection, predict
        self.stabilizer, self.outputs, self.meter = stabilizer, outputs, meter
        self.info, self.facts = reader.info, facts
        self.work = Workspace(outputs.main)
        self._segments = 0
        self._start: Checkpoint | None = None
        if resume and self.work.exists():
            self.work.check(settings)
            self._segments, self._start = self.work.load()
        else:
            self.work.begin(settings)
        self.done = self.kept = 0 if self._start is None else self._start.frames
        self.problems: list[str] = []
        self._last: Frame | None = None
        if self._start is not None:
            place = self._start.last
            self._last = Frame(_NO_PIXELS, place.number, place.pts, self._start.duration)
        self._partial = False
        self._shows_frames = meter is not None or outputs.renderer.shows_frame
        self._raw: RawValues | None = None
        if outputs.raw is not None:
            self._raw = RawValues(self.work.raw, (self.info.height, self.info.width), self.done)

    def run(self) -> Generator[int, None, None]:
        """Writes the frames; yields the number of finished frames after each of them."""
        steps = staged(self._write(), 1)
        with writing(self.outputs.main), contextlib.closing(steps):
            yield from steps

    def _ready(self) -> Iterator[_Ready | Checkpoint]:
        """Frames with their stabilized maps, and the state where a segment may end."""
        start, stabilizer = self._start, self.stabilizer
        repeated = known = given = 0
        state = b""
        if start is not None:
            stabilizer.restore(start.state)
            repeated, known, state = start.repeated, start.pending, start.model
            given = start.frames - repeated
        restarts = Restarts(given, state)
        read: deque[Frame] = deque()
        waiting: deque[tuple[Frame, DepthResult]] = deque()

        def pixels() -> Iterator[np.ndarray]:
            after = None if start is None else start.position
            with contextlib.closing(staged(self.reader.frames(after))) as frames:
                for frame in frames:
                    read.append(frame)
                    yield frame.pixels

        total, in_segment = self.done, 0
        written: deque[Frame] = deque(maxlen=max(self.outputs.batch, self.outputs.reach) + 1)
        if start is not None and start.position is not None:
            written.append(Frame(_NO_PIXELS, start.position.number, start.position.pts, 0))
        with contextlib.closing(staged(self.predict(pixels(), state))) as results:
            for result in results:
                if isinstance(result, Restart):
                    restarts.add(given, result)
                    continue
                given += 1
                frame = read.popleft()
                if repeated:
                    repeated -= 1
                    written.append(_without_pixels(frame))
                    continue
                waiting.append((frame if self._shows_frames else _without_pixels(frame), result))
                if known:
                    known -= 1
                    continue
                finished = stabilizer.push(frame.pixels, result.to_disparity().values)
                del frame, result  # a generator keeps its variables while it waits
                for steady in finished:
                    written.append(_without_pixels(waiting[0][0]))
                    yield self._made(*waiting.popleft(), steady)
                total, in_segment = total + len(finished), in_segment + len(finished)
                if in_segment >= self.outputs.segment:
                    in_segment = 0
                    mark = restarts.before(total) if self.outputs.reach else None
                    yield self._checkpoint(written, total, len(waiting), mark)
        for steady in stabilizer.flush():
            yield self._made(*waiting.popleft(), steady)

    def _checkpoint(
        self, written: deque[Frame], total: int, pending: int, mark: tuple[int, bytes] | None
    ) -> Checkpoint:
        """The state behind the last frame of a segment.

        Reading continues at the model's last mark, or at the beginning of a batch: maps can
        depend on the batch in their last bits.
        """
        given, model = mark or (total - total % self.outputs.batch, b"")
        repeated = total - given
        last = written[-1]
        before = written[-1 - repeated] if given else None
        position = None if before is None else Position(before.number, before.pts)
        place = Position(last.number, last.pts)
        state = self.stabilizer.state()
        return Checkpoint(position, repeated, total, pending, place, last.duration, state, model)

    def _made(self, frame: Frame, result: DepthResult, steady: StabilizedFrame) -> _Ready:
        if self.meter is not None:
            self.meter.add(frame.pixels, result.to_disparity().values, steady.values)
        return _Ready(frame, frame_result(result, steady, frame, self.info), steady.values)

    def _write(self) -> Iterator[int]:
        encoder: SegmentEncoder | None = None
        try:
            with contextlib.closing(staged(self._ready())) as items:
                for item in items:
                    if isinstance(item, Checkpoint):
                        if encoder is not None:
                            encoder.close()
                        if self._raw is not None:
                            self._raw.flush()
                        self.work.save(self._segments, item)
                        encoder, self._partial = None, False
                        self._segments += 1
                        continue
                    if encoder is None:
                        encoder = self._encoder()
                    self._add(encoder, item)
                    del item
                    if self.done % TRIM == 0:
                        trim_heap()
                    yield self.done
        finally:
            if encoder is not None:
                encoder.close()
            if self._raw is not None:
                self._raw.close()

    def _encoder(self) -> SegmentEncoder | None:
        path, outputs = self.work.segment(self._segments), self.outputs
        self._partial = True
        if outputs.video is None:
            path.touch()
            return None
        return SegmentEncoder(
            path, self.info, outputs.renderer, outputs.codec, outputs.encoder_threads
        )

    def _add(self, encoder: SegmentEncoder | None, item: _Ready) -> None:
        frame, result = item.frame, item.result
        low, high = result.display_range
        if encoder is not None:
            encoder.add(frame.pixels, item.disparity, low, high, frame.pts - self.info.shift)
        if self._raw is not None:
            self._raw.add(result.values, result.time)
        if self.outputs.frames is not None:
            kind, folder = self.outputs.frames
            path = folder / f"{self.done:06d}{FRAME_FORMATS[kind]}"
            shown = None if result.kind == "depth" else (low, high)
            facts = {"time": result.time, "frame": result.number}
            scale = self.outputs.depth_scale
            result.save(path, value_range=shown, depth_scale=scale, facts=facts)
        self._last = _without_pixels(frame)
        self.done += 1

    def finish(self, complete: bool = True) -> None:
        """Joins what is written so far.

        Args:
            complete: Whether nothing can follow; the unfinished conversion is then removed.

        Raises:
            VideoError: If there is no frame.
        """
        if not self.done:
            if complete:
                self.work.remove()
            raise VideoError(f"{self.info.name}: no frame is within the given start and end")
        self.problems = list(self.reader.problems)
        if self.outputs.video is not None:
            count = self._segments + self._partial
            segments = [self.work.segment(number) for number in range(count)]
            self.problems += join_segments(
                self.outputs.video,
                segments,
                self.info,
                self._span(complete),
                self._step(),
                self._copied(),
                colors_of(self.info, self.outputs.renderer, self.outputs.codec),
            )
        if self._raw is not None and self.outputs.raw is not None:
            self._raw.write(self.outputs.raw, self.facts["kind"], self.facts)
        if complete:
            self.work.remove()

    def _copied(self) -> Path | None:
        path = self.info.path
        return path if path is not None and path.exists() else None

    def _step(self) -> int:
        """Duration of the last frame in units of the time base."""
        own = 0 if self._last is None else self._last.duration
        return own or max(1, round(1 / (self.info.rate * self.info.time_base)))

    def _span(self, complete: bool) -> Span:
        """The part of the sound that belongs to the frames."""
        info, end = self.info, None
        if not complete and self._last is not None:
            end = float((self._last.pts + self._step()) * info.time_base)
        elif self.selection.end is not None:
            end = float(info.origin * info.time_base) + self.selection.end
        return Span(float(info.shift * info.time_base), end)

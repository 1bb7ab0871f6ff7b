"""Segments and sound joined to a file: all frames, their rate, and clocks that start again."""

from __future__ import annotations

import threading

import av
import numpy as np
import pytest

from dafast.video.encoder import SegmentEncoder
from dafast.video.muxing import Span, join_segments
from dafast.video.reader import open_video
from dafast.video.rendering import Renderer
from dafast.video.threads import Stage, Workers
from tests.video.clips import decoded, moving, packets_of, write_clip

COLORS = (1, 6)


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    return open_video(write_clip(tmp_path_factory.mktemp("source") / "in.mp4", moving(3))).info


def segment(path, info, rng, count):
    encoder = SegmentEncoder(path, info, Renderer(), "h264", 1)
    for i in range(count):
        map_ = rng.random((info.height, info.width), np.float32)
        encoder.add(np.empty((0, 0, 3), np.uint8), map_, 0, 1, 512 * i)
    encoder.close()
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_segments_of_every_length_keep_their_frames(tmp_path, info, rng, suffix):
    for count in (1, 6, 7, 12):  # FFmpeg gives those of 7 frames no decoding times
        part = segment(tmp_path / "part.nut", info, rng, count)
        out = tmp_path / f"out{suffix}"
        assert join_segments(out, [part], info, Span(0, None), 512, None, COLORS) == []
        times = [float(frame.pts * frame.time_base) for frame in decoded(out)]
        np.testing.assert_allclose(times, np.arange(count) / 25, atol=1e-6)


def test_matroska_has_the_rate_of_the_frames_and_no_random_numbers(tmp_path, info, rng):
    part = segment(tmp_path / "part.nut", info, rng, 12)
    outs = [tmp_path / "a.mkv", tmp_path / "b.mkv"]
    for out in outs:
        join_segments(out, [part], info, Span(0, None), 512, None, COLORS)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    with av.open(str(outs[0])) as container:
        assert container.streams.video[0].average_rate == 25


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_recording_behind_another_continues_its_times(tmp_path, rng, suffix):
    one = write_clip(tmp_path / "one.ts", moving(30), sound="aac")
    both = tmp_path / "both.ts"
    both.write_bytes(2 * one.read_bytes())
    reader = open_video(both)
    times = [frame.pts for frame in reader.frames()]
    assert len(times) == 60 and set(np.diff(times)) == {3600}
    out = tmp_path / f"out{suffix}"
    part = segment(tmp_path / "part.nut", reader.info, rng, 3)
    assert join_segments(out, [part], reader.info, Span(0, None), 512, both, COLORS) == []
    sound, once = packets_of(out, "audio"), packets_of(one, "audio")
    assert len(sound) == 2 * len(once)
    np.testing.assert_allclose(np.diff([time for time, _ in sound]), 0.064, atol=0.0011)


def test_matroska_that_does_not_begin_at_0_is_complete(tmp_path):
    pts = [512 * i for i in range(250, 262)]
    reader = open_video(write_clip(tmp_path / "late.mkv", moving(12), pts=pts))
    assert len(list(reader.frames())) == 12 and reader.problems == []
    assert reader.info.count == 12


def test_only_the_newest_item_of_a_fast_source_waits():
    made, go = threading.Event(), threading.Event()

    def items():
        yield from range(5)
        made.set()
        assert go.wait(60)
        yield 5

    stage = Stage(items(), newest=True)
    try:
        assert made.wait(60)
        found = iter(stage)
        assert next(found) == 4
        go.set()
        assert list(found) == [5]
    finally:
        stage.close()


def test_workers_keep_the_order_and_take_one_item_ahead():
    taken: list[int] = []

    def items():
        for i in range(9):
            taken.append(i)
            yield i

    workers = Workers(2)
    try:
        for i, result in enumerate(workers.map(lambda x: x * x, items())):
            assert result == i * i and len(taken) <= i + 3
    finally:
        workers.close()

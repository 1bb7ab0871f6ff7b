"""Readers of videos: every kind of source, times, selections, and damage."""

from __future__ import annotations

import os
import threading
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dafast.video.reader import open_video, upright, webcam_address
from dafast.video.source import Position, Selection, VideoError
from tests.video.clips import TICKS, moving, write_clip

UNEVEN = [0, 512, 700, 1500, 1501, 3000, 3300, 4000, 6000, 6100, 7000, 9000]


@pytest.fixture(scope="module")
def frames():
    return moving(12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, frames):
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", frames, pts=UNEVEN)


def read(source, selection=None, after=None):
    reader = open_video(source, selection, threads=1)
    found = list(reader.frames(after))
    reader.close()
    return reader, found


def close_to(found, expected):
    """The mean error in levels; the clips are compressed."""
    return np.abs(found.astype(float) - expected).mean() < 4


def test_frames_and_their_uneven_times(clip, frames):
    reader, found = read(clip)
    assert [frame.pts for frame in found] == UNEVEN
    assert reader.info.time_base == Fraction(1, TICKS)
    assert (reader.info.width, reader.info.height, reader.info.count) == (64, 48, 12)
    assert all(close_to(f.pixels, e) for f, e in zip(found, frames, strict=True))
    assert not reader.problems


@pytest.mark.parametrize("number", [0, 4, 10])
def test_reading_goes_on_behind_a_frame(clip, number):
    _, whole = read(clip)
    _, rest = read(clip, after=Position(number, whole[number].pts))
    assert [f.number for f in rest] == list(range(number + 1, 12))
    for a, b in zip(rest, whole[number + 1 :], strict=True):
        assert a.pts == b.pts
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_selections(clip):
    times = np.array(UNEVEN) / TICKS
    _, found = read(clip, Selection(every=3))
    assert [f.pts for f in found] == UNEVEN[::3]
    reader, found = read(clip, Selection(start=0.1, end=0.5))
    assert [f.pts for f in found] == [
        p for p, t in zip(UNEVEN, times, strict=True) if 0.1 <= t < 0.5
    ]
    assert reader.info.seconds(found[0].pts) == pytest.approx(times[3] - 0.1, abs=1e-4)
    _, found = read(clip, Selection(fps=5))
    slots = np.floor(np.array([f.pts for f in found]) / TICKS * 5)
    assert len(set(slots)) == len(slots) and set(slots) == set(np.floor(times * 5))


@pytest.mark.parametrize(
    "wrong", [dict(every=0), dict(fps=0.0), dict(start=-1.0), dict(start=2.0, end=1.0)]
)
def test_wrong_selections(clip, wrong):
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        open_video(clip, Selection(**wrong))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_videos_are_upright(tmp_path, frames, rotation):
    path = write_clip(tmp_path / "a.mp4", frames[:2], rotation=rotation, aspect=Fraction(4, 3))
    reader, found = read(path)
    expected = np.rot90(frames[0], rotation // 90)  # PyAV counts counterclockwise, as numpy does
    assert close_to(found[0].pixels, expected)
    assert (reader.info.height, reader.info.width) == expected.shape[:2]
    assert reader.info.pixel_aspect == (Fraction(4, 3) if rotation == 180 else Fraction(3, 4))


def test_mirrored_display_matrices(frames):
    picture = frames[0]
    np.testing.assert_array_equal(upright(picture, np.array([[-1, 0], [0, 1]])), picture[:, ::-1])
    np.testing.assert_array_equal(
        upright(picture, np.array([[0, 1], [1, 0]])), picture.swapaxes(0, 1)
    )


@pytest.mark.parametrize("full", [False, True])
def test_color_range_and_ten_bits(tmp_path, full):
    gray = np.repeat(np.linspace(0, 255, 64).round().astype(np.uint8)[None], 48, axis=0)
    frames = [np.stack([gray] * 3, axis=-1)] * 2
    path = write_clip(
        tmp_path / "a.mkv", frames, codec="libx265", pixels="yuv420p10le", full_range=full,
        options={"crf": "1", "x265-params": "log-level=none:bframes=0"},
    )  # fmt: skip
    reader, found = read(path)
    assert reader.info.color_range == (2 if full else 1)
    np.testing.assert_allclose(found[0].pixels.astype(int), frames[0], atol=4)


def test_folders_in_the_order_of_their_numbers(tmp_path, frames):
    for number in (1, 2, 10):
        Image.fromarray(frames[number]).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame3.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("x")
    reader, found = read(tmp_path, Selection(fps=10))
    assert [f.pts for f in found] == [0, 1, 3]  # the damaged one leaves a gap
    for frame, number in zip(found, (1, 2, 10), strict=True):
        np.testing.assert_array_equal(frame.pixels, frames[number])
    assert reader.info.rate == 10 and "frame3.png" in reader.problems[0]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations(tmp_path, frames, kind):
    pictures = [Image.fromarray(frame) for frame in frames[:4]]
    path = tmp_path / f"a.{kind}"
    extra = {"lossless": True} if kind == "webp" else {}
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=[40, 80, 120, 200], **extra
    )
    reader, found = read(path)
    assert [f.pts for f in found] == [0, 40, 120, 240]
    assert [f.duration for f in found] == [40, 80, 120, 200]
    assert all(close_to(f.pixels, e) for f, e in zip(found, frames, strict=False))
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    if kind == "gif":
        reader, found = read(cut)
        assert 0 < len(found) < 4 and reader.problems


def test_arrays_and_a_single_frame(frames):
    for source in (frames[:3], np.stack(frames[:3]), iter(frames[:3])):
        reader, found = read(source)
        assert [f.pts for f in found] == [0, 1, 2] and reader.info.rate == 30
        np.testing.assert_array_equal(found[2].pixels, frames[2])
    assert len(read(frames[:1])[1]) == 1


def test_pipes(tmp_path, clip, frames):
    fifo, spool = tmp_path / "fifo", tmp_path / "copy"
    os.mkfifo(fifo)
    path = write_clip(tmp_path / "a.mkv", frames)
    feeder = threading.Thread(target=lambda: fifo.write_bytes(path.read_bytes()))
    feeder.start()
    reader = open_video(fifo, spool=spool, threads=1)
    found = list(reader.frames())
    reader.close()
    feeder.join()
    assert len(found) == 12 and not reader.info.can_resume and reader.info.path == spool
    assert spool.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_truncated_files_give_what_is_there(tmp_path, rng, suffix):
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(12)]
    first = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    whole = write_clip(tmp_path / f"a{suffix}", noise, container_options=first)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
    reader, found = read(cut)
    assert 4 <= len(found) < 12
    assert any("cut off" in problem for problem in reader.problems)


def test_sources_that_are_no_videos(tmp_path, clip):
    (tmp_path / "empty").mkdir()
    text = tmp_path / "a.mp4"
    text.write_text("no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:-400])
    for source, message in (
        (tmp_path / "missing.mp4", "no such file"),
        (tmp_path / "empty", "without pictures"),
        (text, "cannot be read as a video"),
        (cut, "table of contents"),
        (None, "is not a video"),
        (3.5, "is not a video"),
        ([], "no frame"),
        (977, "webcam 977"),
    ):
        with pytest.raises(VideoError, match=message):
            open_video(source)


def test_webcams_have_their_systems_names():
    assert webcam_address(1, "Linux") == ("/dev/video1", "video4linux2,v4l2")
    assert webcam_address(0, "Darwin") == ("0:none", "avfoundation")
    with pytest.raises(VideoError, match="not on Windows"):
        webcam_address(0, "Windows")

"""Videos of a moving camera: their paths, frames and files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dafast.optional import MissingPackageError
from dafast.views import PATHS, Camera, camera_path, parallax_frames, render_view, save_video
from dafast.views import parallax as module


@pytest.mark.parametrize("path", PATHS)
def test_paths_are_closed_and_steady(path):
    cameras = np.array(camera_path(path, 240, 400, divergence=4))
    steps = np.abs(np.diff(np.vstack([cameras, cameras[:1]]), axis=0)).max(0)
    assert (steps[:2] <= 2 * np.pi / 240 * 8 + 1e-9).all() and steps[2] < 1e-2
    right, down, forward = np.abs(cameras).max(0)
    assert right == pytest.approx(0 if path == "dolly" else 8)
    assert down == pytest.approx(8 if path == "circle" else 0)
    assert forward == pytest.approx(0.08 if path == "dolly" else 0)


def test_a_dolly_magnifies_the_near_plane(rng):
    """A plane at nearness 1 grows by 1 / (1 - forward) around the middle of the photo."""
    photo = np.zeros((41, 81, 3), np.uint8)
    photo[20, 40 + 18] = 255
    near = np.ones((41, 81), np.float32)
    view = render_view(photo, near, Camera(forward=0.1), convergence=0)
    assert view[20, 60].min() == 255  # 18 / 0.9 = 20


def test_frames_have_one_size_and_no_border(rng):
    photo = rng.integers(0, 256, (60, 90, 3), np.uint8)
    near = np.zeros((60, 90), np.float32)
    near[20:40, 30:60] = 1
    cameras = camera_path("circle", 4, 90, divergence=5)
    frames = list(parallax_frames(photo, near, cameras))
    assert [frame.shape for frame in frames] == [(56, 86, 3)] * 4
    # Straight down by 2.25 pixels: the wall moves by +1.125, half of the way.
    whole = render_view(photo, near, cameras[0])
    np.testing.assert_array_equal(frames[0], whole[2:-2, 2:-2])


def moving_square(count, height=48, width=64):
    for i in range(count):
        frame = np.full((height, width, 3), 40, np.uint8)
        frame[10:30, 5 + 4 * i : 25 + 4 * i] = (200, 120, 60)
        yield frame


@pytest.mark.parametrize("count", [None, 5])
def test_webp_has_all_frames(count, tmp_path):
    save_video(tmp_path / "x.webp", moving_square(5), fps=20, count=count)
    with Image.open(tmp_path / "x.webp") as file:
        assert file.n_frames == 5 and file.info["loop"] == 0 and file.size == (64, 48)
        for i, wanted in enumerate(moving_square(5)):
            file.seek(i)
            shown = np.asarray(file.convert("RGB"), float)
            assert np.abs(shown - wanted).mean() < 4
        file.load()
        assert file.info["duration"] == 50


def test_webp_keeps_few_frames_and_the_whole_time(tmp_path, monkeypatch):
    """30 frames per second are 33.3 ms, and not 33, per frame."""
    encoded, waiting = [], []
    getim = Image.Image.getim

    def counted(image):
        encoded.append(image.size)
        return getim(image)

    def frames():
        for i, frame in enumerate(moving_square(30, 32, 144)):
            waiting.append(i - len(encoded))
            yield frame

    monkeypatch.setattr(Image.Image, "getim", counted)
    save_video(tmp_path / "x.webp", frames(), fps=30, count=30)
    assert len(waiting) == 30 and max(waiting) <= 1
    total = 0
    with Image.open(tmp_path / "x.webp") as file:
        for i in range(file.n_frames):
            file.seek(i)
            file.load()
            total += file.info["duration"]
    assert total == 1000


def test_fewer_frames_than_said(tmp_path):
    with pytest.raises(ValueError, match="of 5 frames has only 3"):
        save_video(tmp_path / "x.webp", moving_square(3), count=5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_mp4_is_read_back(tmp_path, size):
    av = pytest.importorskip("av")
    save_video(tmp_path / "x.mp4", list(moving_square(5, *size)), fps=20)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (48, 64) and stream.average_rate == 20
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5
    for frame, wanted in zip(frames, moving_square(5, *size), strict=True):
        assert np.abs(frame.astype(float) - wanted[:48, :64]).mean() < 4


def test_a_missing_pyav_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "why_no_module", lambda *_: "av is not installed")
    with pytest.raises(MissingPackageError, match=r"dafast\[video\].*\.webp"):
        save_video(tmp_path / "x.mp4", moving_square(2))
    assert not list(tmp_path.iterdir())


def test_bad_values_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.mp4 or \.webp"):
        save_video(tmp_path / "x.gif", moving_square(2))
    with pytest.raises(ValueError, match="at least one frame"):
        save_video(tmp_path / "x.webp", iter(()))
    for fps in (0, 1001):
        with pytest.raises(ValueError, match=f"fps={fps}"):
            save_video(tmp_path / "x.webp", moving_square(2), fps=fps)
    with pytest.raises(ValueError, match="count=0"):
        camera_path("swing", 0, 90)
    with pytest.raises(ValueError, match="edge=-1"):
        render_view(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), Camera(1.0), edge=-1)
    with pytest.raises(ValueError, match="circle, dolly, swing"):
        camera_path("spiral", 4, 90)

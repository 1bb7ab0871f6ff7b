"""`infer_video` and `stream`: windows, alignment, bounded reading, results."""

import itertools
import math

import numpy as np
import pytest
import torch

from dafast import DepthAnything
from dafast.models.clips import Windows, scale_and_shift
from dafast.ops import preprocess
from tests.tiny import tiny

CONFIG = tiny(
    features=16, out_channels=(8, 8, 64, 128), image_size=42, temporal_frames=32, fit="video",
    output="relu", output_align_corners=True,
)  # fmt: skip
SIZE = (30, 40)  # of the frames; (42, 56) of the network
SINGLE = dict(lookahead=0, stabilize="off")  # frame by frame, as predicted


@pytest.fixture(scope="module")
def video_model(run_seed, randomise, calibrate) -> DepthAnything:
    model = DepthAnything(CONFIG).eval()
    randomise(model, run_seed)
    x = torch.randn(1, 3, 42, 42, generator=torch.Generator().manual_seed(run_seed))
    calibrate(lambda: model(x), model.depth_head.scratch.output_conv2[2], 1.0, 0.5)
    return model


@pytest.fixture
def frames(seed) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(56)]


def network_input(frames: list[np.ndarray]) -> torch.Tensor:
    return torch.cat(
        [preprocess(torch.from_numpy(frame), size=42, fit="official")[0] for frame in frames]
    )


def published(model: DepthAnything, frames: list[np.ndarray], metric: bool) -> np.ndarray:
    """The published script, whole video in memory: pad, predict windows, align, blend, cut."""
    count = len(frames)
    padding = (22 - count % 22) % 22 + 10
    x = network_input([*frames, *[frames[-1]] * padding])
    keys = [0, 12, *range(24, 32)]
    windows, last = [], None
    for start in range(0, count, 22):
        window = x[start : start + 32].clone()
        if last is not None:
            window[:10] = last[keys]
        with torch.no_grad():
            maps = model(window[None])[0]
        maps = torch.nn.functional.interpolate(
            maps[:, None], size=SIZE, mode="bilinear", align_corners=True
        )
        windows.append(list(maps[:, 0].double().numpy()))
        last = window
    out = list(windows[0])
    reference = [out[0], out[12]]
    for window in windows[1:]:
        scale, shift = 1.0, 0.0
        if not metric:
            a = np.stack(window[:2]).ravel()
            matrix = np.stack([a, np.ones_like(a)], 1)
            (scale, shift), *_ = np.linalg.lstsq(matrix, np.stack(reference).ravel(), rcond=None)
        aligned = [np.maximum(scale * each + shift, 0) for each in window]
        for i in range(8):
            out[i - 8] = (1 - i / 7) * out[i - 8] + i / 7 * aligned[2 + i]
        out += aligned[10:]
        reference[1] = aligned[12]
    return np.stack(out[:count])


@pytest.mark.parametrize("count", [1, 22, 25, 26, 33, 56])
def test_windows_equal_the_published_script(count, video_model, frames):
    expected = published(video_model, frames[:count], metric=False)
    results = list(video_model.infer_video(iter(frames[:count])))
    assert len(results) == count
    got = np.stack([result.values for result in results])
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    for i, (frame, result) in enumerate(zip(frames, results, strict=False)):
        assert np.array_equal(result.image, frame) and result.name == f"frame {i}"
        assert (result.kind, result.unit, result.camera_source) == ("disparity", "", "assumed")


@pytest.mark.slow
def test_a_metric_model_is_only_blended(video_model, frames, monkeypatch):
    config = tiny(**{**CONFIG.__dict__, "kind": "metric"})
    monkeypatch.setattr(video_model, "config", config)
    expected = published(video_model, frames[:47], metric=True)
    results = list(video_model.infer_video(frames[:47], fov=60, keep_image=False))
    got = np.stack([result.values for result in results])
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (results[0].kind, results[0].unit, results[0].camera_source) == ("depth", "m", "fov")
    assert results[0].image is None


def test_windows_of_other_lengths():
    assert Windows(32).keys == [0, 12, *range(24, 32)]
    assert (Windows(32).blended, Windows(32).step, Windows(32).gap) == (8, 22, 41)
    for frames in range(8, 70):
        windows = Windows(frames)
        assert windows.keys == sorted(set(windows.keys)) and windows.blended >= 2
        assert windows.keys[1] < frames - windows.blended and windows.step >= 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 8, 9, 13, 20])
def test_short_windows_take_every_frame_once(count, run_seed, randomise, frames):
    """With one image in all frames, every window predicts the same; so does the stream."""
    model = DepthAnything(tiny(**{**CONFIG.__dict__, "temporal_frames": 8})).eval()
    randomise(model, run_seed)
    for module in model.depth_head.motion_modules:  # places do not matter then
        for attention in module.temporal_transformer.transformer_blocks[0].attention_blocks:
            torch.nn.init.zeros_(attention.to_out[0].weight)
    model.depth_head.scratch.output_conv2[2].bias.data += 5
    values = [r.values for r in model.infer_video([frames[0]] * count)]
    values += [r.values for r in model.stream([frames[0]] * count, **SINGLE)]
    assert len(values) == 2 * count
    bound = 1e-3 * np.abs(values[0]).max()
    assert max(np.abs(each - values[0]).max() for each in values) <= bound


def test_reading_and_memory_are_bounded(video_model, frames):
    """An endless video: a result after one window, and no more frames than it needs."""
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield frames[i % 50]

    results = video_model.infer_video(endless())
    assert not read
    next(results)
    assert len(read) == 32
    for _ in range(23):
        next(results)
    assert len(read) == 32
    next(results)
    assert len(read) == 54
    read.clear()
    for number, _ in enumerate(itertools.islice(video_model.stream(endless(), **SINGLE), 5), 1):
        assert len(read) == number


def test_stream_yields_results(video_model, frames):
    results = list(video_model.stream(frames[:3], fit="official", **SINGLE))
    with torch.no_grad():
        alone = video_model(network_input(frames[:1]))
    alone = torch.nn.functional.interpolate(
        alone[None], size=SIZE, mode="bilinear", align_corners=True
    )[0, 0].numpy()
    assert np.abs(results[0].values - alone).max() <= 1e-4 * alone.max()
    assert [result.number for result in results] == [0, 1, 2]
    # A call does not remember the one before.
    again = list(video_model.stream(frames[:3], **SINGLE))
    assert all(np.array_equal(a.values, b.values) for a, b in zip(results, again, strict=True))


def test_wrong_frames_and_options(video_model, frames, notices):
    with pytest.raises(ValueError, match="frame 1 has 40x20 pixels, the first one 40x30"):
        list(video_model.infer_video([frames[0], frames[1][:20]]))
    with pytest.raises(ValueError, match="no flip"):
        video_model.infer_video(frames, flip=True)
    with pytest.raises(ValueError, match="pass one of them"):
        video_model.stream(frames, fov=60, intrinsics=(1, 1, 0, 0))
    with pytest.raises(ValueError, match="frame 1"):
        list(video_model.stream([frames[0], np.zeros((2, 2, 7))]))
    assert list(video_model.infer_video([])) == []
    broken = DepthAnything(CONFIG).eval()
    broken.pretrained.cls_token.data.fill_(math.nan)
    list(broken.stream(frames[:3], **SINGLE))
    assert sum("frame 0 is not finite" in message for message in notices.messages) == 1


def test_scale_and_shift(seed):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(5, 1, (2, 6, 7)).astype(np.float32))
    scale, shift = scale_and_shift(x, 3 * x - 2)
    assert scale == pytest.approx(3, rel=1e-4) and shift == pytest.approx(-2, abs=1e-3)
    assert scale_and_shift(torch.full((2, 3), 4.0), torch.rand(2, 3)) == (1.0, 0.0)

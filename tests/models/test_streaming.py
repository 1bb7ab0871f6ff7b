"""`DepthAnything.stream`: the results of single photos, one after the other, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading

import numpy as np
import pytest
import torch

from dafast import DepthAnything
from dafast.models import streaming
from dafast.models.inference import InferenceOptions
from dafast.models.streaming import predict_frames, raw_results
from dafast.video.source import VideoError
from tests.tiny import tiny
from tests.video.clips import moving, replace_webcams, write_clip


@pytest.fixture(scope="module")
def frames():
    return moving(19, (49, 37))


@pytest.fixture
def model(run_seed, randomise):
    model = DepthAnything(tiny()).eval()
    randomise(model, run_seed)
    with torch.no_grad():
        model.depth_head.scratch.output_conv2[2].bias.add_(3)
    return model


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("ahead", [False, True])
def test_maps_are_those_of_single_photos(model, frames, ahead, three_threads):
    found = list(raw_results(model, iter(frames), InferenceOptions(), ahead=ahead))
    expected = model.infer(frames)
    assert len(found) == len(frames)
    for result, values in zip(found, expected, strict=True):
        np.testing.assert_allclose(result.values, values, rtol=1e-4, atol=1e-4 * values.max())
    assert torch.get_num_threads() == 3


def test_batches_are_powers_of_two(frames):
    for size, sizes in ((1, {1}), (3, {2}), (5, {4}), (100, {8}), (0, {1})):
        batches = list(streaming._batches(iter(frames), lambda _, n=size: n))
        assert {len(batch) for batch in batches[:-1]} == sizes
        assert list(itertools.chain.from_iterable(batches)) == frames


def test_without_lookahead_each_result_is_there_at_once(model, frames):
    read = []

    def source():
        for number, frame in enumerate(frames[:6]):
            read.append(number)
            yield frame

    for number, result in enumerate(model.stream(source(), lookahead=0)):
        assert result.number == number and read == list(range(number + 1))
        np.testing.assert_array_equal(result.image, frames[number])


@pytest.mark.parametrize(("ahead", "waiting"), [(False, 0), (True, 1)])
def test_a_gpu_reads_on_only_with_lookahead(model, frames, monkeypatch, ahead, waiting):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(streaming, "_launch", lambda predictor, batch, uploads: lambda: batch)
    monkeypatch.setattr(streaming, "_size_on_gpu", lambda predictor, frame: 1)
    read = []
    source = (read.append(number) or number for number in range(4))
    given = streaming._on_gpu(model, source, InferenceOptions(), ahead)
    for number, found in enumerate(given):
        assert found == number and len(read) == min(number + 1 + waiting, 4)


def test_an_endless_source_is_read_no_further_than_needed(model, frames):
    read, before = [], threading.active_count()

    def endless():
        for frame in itertools.cycle(frames):
            read.append(1)
            yield frame

    stream = model.stream(endless(), keep_image=False)
    for _ in range(30):
        assert next(stream).image is None
    assert len(read) < 30 + 100
    stream.close()
    assert threading.active_count() <= before


@pytest.mark.parametrize("lookahead", [0, 3])
def test_a_webcam_gives_its_newest_frames_at_once(model, monkeypatch, lookahead):
    """Without lookahead the frames that a camera made in the meantime are left out."""
    replace_webcams(monkeypatch, end=20)
    numbers = [result.number for result in model.stream(0, lookahead=lookahead)]
    if lookahead:
        assert numbers == list(range(20))
    else:
        assert numbers == sorted(set(numbers)) and numbers[-1] == 19


@pytest.mark.slow
def test_stabilization_is_the_default_of_relative_models_only(run_seed, randomise, frames):
    for changes in ({}, dict(kind="metric", max_depth=10.0), dict(kind="depth", output="exp")):
        model = DepthAnything(tiny(**changes)).eval()
        randomise(model, run_seed)
        with torch.no_grad():
            model.depth_head.scratch.output_conv2[2].bias.add_(1)
        raw = model.infer_metric(frames) if model.config.is_metric else model.infer(frames)
        off = list(model.stream(frames, stabilize="off"))
        kept = list(model.stream(frames))
        for result, values in zip(off, raw, strict=True):
            np.testing.assert_allclose(result.values, values, rtol=1e-4, atol=1e-5)
        same = [np.array_equal(a.values, b.values) for a, b in zip(off, kept, strict=True)]
        rescales = streaming.stabilizer_for(model, None, 8).rescale
        assert rescales is not model.config.is_metric and (rescales or all(same))
        assert streaming.stabilizer_for(model, "range", 8).rescale
        assert [r.kind for r in kept] == ["depth" if changes else "disparity"] * len(frames)
        assert all(r.display_range[0] <= r.display_range[1] for r in kept)
        assert [r.number for r in kept] == list(range(len(frames)))


def test_files_with_times_and_selection(model, frames, tmp_path):
    path = write_clip(tmp_path / "a.mkv", frames, codec="ffv1", pixels="bgr0")
    results = list(model.stream(path, every=4, start=0.08, stabilize="off"))
    assert [r.time for r in results] == pytest.approx([0, 0.16, 0.32, 0.48, 0.64], abs=2e-3)
    assert [r.number for r in results] == [0, 4, 8, 12, 16]
    np.testing.assert_array_equal(results[1].image, frames[6])
    assert results[0].name == str(path) and "disparity" in repr(results[0])


def test_a_camera_gives_metres(run_seed, randomise, frames):
    config = tiny(kind="metric", output="exp", focal_length=300.0)
    model = DepthAnything(config).eval()
    randomise(model, run_seed)
    with pytest.raises(ValueError, match="needs the camera's focal length"):
        model.stream(frames)
    result = next(model.stream(frames, fov=60, lookahead=0))
    expected = model.predict(frames[0], fov=60)
    np.testing.assert_allclose(result.values, expected.values, rtol=1e-5)
    assert result.unit == "m" and result.intrinsics == expected.intrinsics


def test_errors_come_at_the_call(model, frames, tmp_path):
    for source, options, error, message in (
        (frames, dict(stabilize="yes"), ValueError, "no stabilization"),
        (frames, dict(lookahead=-1), ValueError, "lookahead"),
        (frames, dict(size=0), ValueError, "size"),
        (frames, dict(flip=True), ValueError, "flip"),
        (frames, dict(fov=60, intrinsics=(1, 1, 0, 0)), ValueError, "pass one of them"),
        (frames, dict(every=0), ValueError, "every"),
        ([], {}, VideoError, "no frame"),
        (tmp_path / "missing.mp4", {}, VideoError, "no such file"),
    ):
        with pytest.raises(error, match=message):
            model.stream(source, **options)


def test_an_error_of_the_source_reaches_the_program(model, frames):
    def broken():
        yield from frames[:3]
        raise OSError("the camera is gone")

    seen, before = [], threading.active_count()

    def read_all():
        seen.extend(result.number for result in model.stream(broken(), lookahead=0))

    with pytest.raises(OSError, match="the camera is gone"):
        read_all()
    assert seen == [0, 1, 2]
    assert threading.active_count() <= before


def test_maps_that_are_not_finite_warn_once(frames, notices):
    model = DepthAnything(tiny()).eval()
    model.pretrained.cls_token.data.fill_(float("nan"))
    assert len(list(model.stream(frames[:3], stabilize="off"))) == 3
    assert sum("frame 0 is not finite" in message for message in notices.messages) == 1


def test_frames_may_be_of_another_size_in_the_middle(model, frames):
    results = list(model.stream([frames[0], frames[1][:20], frames[2]], stabilize="off"))
    assert {r.values.shape for r in results} == {(37, 49)}


def test_predict_frames_checks_options(model, frames):
    with pytest.raises(ValueError, match="max_tokens"):
        predict_frames(model, frames, InferenceOptions(max_tokens=0))


class FakeStream:
    """A stream of a GPU, whose work is done at once."""

    order: list[str]

    def wait_stream(self, other):
        self.order.append("wait for the upload")


def test_on_a_gpu_batches_are_uploaded_computed_and_copied_back(model, frames, monkeypatch):
    """By fakes, on the CPU: the copies and the order in which they are waited for."""
    order = FakeStream.order = []
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: None)
    monkeypatch.setattr(
        streaming, "start_copy", lambda x: (x.clone(), lambda: order.append("wait for a map"))
    )
    monkeypatch.setattr(streaming, "batch_tokens", lambda model: 15)  # of two frames
    expected = model.infer(frames[:5], size=28)
    with monkeypatch.context() as patch:
        patch.setattr(DepthAnything, "device", torch.device("cuda"))
        given = predict_frames(model, iter(frames[:5]), InferenceOptions(size=28))
    for found, values in zip(given, expected, strict=True):
        np.testing.assert_allclose(found.values, values, rtol=1e-4, atol=1e-4 * values.max())
    upload, wait = "wait for the upload", "wait for a map"
    assert order == [upload, upload, wait, wait, upload, wait, wait, wait]


def test_calibrated_maps_and_given_cameras(model, frames):
    intrinsics = (50.0, 50.0, 24.0, 18.0)
    plain = next(model.stream(frames[:1], stabilize="off", intrinsics=intrinsics))
    model.config = dataclasses.replace(model.config, calibration=(2.0, 0.5))
    other = next(model.stream(frames[:1], stabilize="off", intrinsics=intrinsics))
    np.testing.assert_allclose(other.values, 2 * plain.values + 0.5, rtol=1e-5)
    assert tuple(other.intrinsics) == intrinsics

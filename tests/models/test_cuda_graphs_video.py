"""Videos through CUDA graphs, by the fake of `tests/models/fake_graphs.py`."""

import contextlib
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dafast.cli import main
from dafast.models import streaming
from dafast.models.inference import InferenceOptions
from tests.models.fake_graphs import FIVE, FakeMachinery, in_place, make, replaced_data
from tests.tiny import tiny
from tests.video.clips import moving, write_clip

SIZES = ((42, 28), (28, 42))  # (width, height)
OPTIONS = InferenceOptions(size=28)
TEMPORAL = tiny(
    features=16, out_channels=(8, 8, 16, 16), temporal_frames=8, fit="video", output="relu",
    output_align_corners=True,
)  # fmt: skip


@pytest.fixture
def model(made, seed):
    model = make(FIVE)
    with torch.no_grad():
        model.depth_head.scratch.output_conv2[2].bias.add_(3)  # no map is 0
    return model


@pytest.fixture
def late_copies(monkeypatch):
    """What a GPU's stream of frames uses of `torch.cuda`; maps are copied when waited for."""

    def start_copy(x):
        host = torch.full_like(x, float("nan"))
        return host, lambda: host.copy_(x)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(streaming, "start_copy", start_copy)


def maps(results):
    return [result.values.copy() for result in results]


@pytest.mark.parametrize("place", ["cpu", "gpu"])
def test_a_video_captures_each_size_once(place, model, made, late_copies):
    """27 frames are three batches of 8 and one of 3; a size is captured at its second batch."""
    predict = streaming._on_gpu if place == "gpu" else streaming._on_cpu
    plain = copy.deepcopy(model).optimize(cuda_graphs=False)
    model.optimize()
    counts = []
    for size in (*SIZES, *SIZES):
        frames = moving(27, size)
        found = maps(predict(model, frames, OPTIONS, True))
        counts.append((made[0].captures, made[0].replays))
        wanted = maps(predict(plain, frames, OPTIONS, True))
        assert len(found) == len(frames) and np.ptp(found[0]) > 0
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(found[0], found[-1])
    # The second time the batches of 8 have a graph, and those of 3 are captured.
    assert counts == [(1, 2), (2, 4), (3, 8), (4, 12)]
    assert len(made) == 1


def test_dafast_video_uses_graphs_unasked(model, made, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    clip = write_clip(tmp_path / "in.mp4", moving(27, SIZES[0]))

    def convert(name):
        out = tmp_path / name
        command = ["video", str(clip), "--raw", str(out), "--model", str(tmp_path / "model")]
        assert main([*command, "--device", "cpu", "--dtype", "float32", "--size", "28"]) == 0
        with np.load(out) as file:
            return {key: file[key] for key in file}

    found = convert("graphs.npz")
    assert [(each.captures, each.replays) for each in made] == [(1, 2)]
    monkeypatch.setattr(FakeMachinery, "why_not", lambda self: "the modules serve this run")
    wanted = convert("modules.npz")
    assert [(each.captures, each.replays) for each in made] == [(1, 2), (0, 0)]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.fixture
def temporal(made, seed):
    model = make(TEMPORAL)
    with torch.no_grad():
        model.depth_head.scratch.output_conv2[2].bias.add_(3)
    model.optimize()  # both then have the same layout of weights, on which rounding depends
    return model, copy.deepcopy(model).optimize(cuda_graphs=False)


def predict(model, frames, streaming):
    options = {"lookahead": 0, "stabilize": "off"} if streaming else {}
    run = model.stream if streaming else model.infer_video
    return maps(run(iter(frames), size=28, **options))


@pytest.mark.parametrize(
    ("streaming", "count", "expected"),
    [
        # 8 frames, then 4 and 4 new ones, and the last frame repeated: 3 batches, 4 windows.
        (False, 16, [(2, 4), (4, 8), (5, 15)]),
        # The modules decode the first frame, which sees no other.
        (True, 8, [(2, 13), (4, 26), (4, 41)]),
    ],
)
def test_temporal_modules_capture_each_size_once(streaming, count, expected, temporal, made):
    """The encoder and the decoder have a graph each; that of 8 frames is of the third video."""
    model, plain = temporal
    counts = []
    for size in (*SIZES, SIZES[0]):
        frames = moving(count, size)
        found = predict(model, frames, streaming)
        counts.append((made[0].captures, made[0].replays))
        assert len(found) == len(frames) and np.ptp(found[0]) > 0
        for a, b in zip(found, predict(plain, frames, streaming), strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(found[0], found[-1])
    assert counts == expected
    assert len(made) == 1


@pytest.mark.parametrize(
    ("streaming", "count", "change"),
    [(False, 16, in_place), (False, 16, replaced_data), (True, 8, in_place)],
)
def test_temporal_modules_see_changed_weights(streaming, count, change, temporal, made):
    """The weights change within the video, after the decoder was captured."""
    frames = moving(count, SIZES[0])

    def changing(model):
        for number, frame in enumerate(frames):
            if number == count - 3:
                change(model)
            yield frame

    found, wanted = (predict(model, changing(model), streaming) for model in temporal)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(each.replays for each in made)
    assert len(made) == 1 + (change is replaced_data)


def test_temporal_modules_with_an_encoder_in_fp8(temporal, made):
    frames = moving(16, SIZES[0])
    exact = predict(temporal[1], frames, False)
    found, wanted = (predict(each.optimize(fp8="emulate"), frames, False) for each in temporal)
    for a, b, c in zip(found, wanted, exact, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    assert [(each.captures, each.replays) for each in made] == [(0, 0), (2, 4)]


def test_temporal_modules_serve_what_graphs_do_not(temporal, made):
    model, plain = temporal
    x = torch.randn(2, 3, 28, 28)
    encode, decode = model.parts()  # with gradients
    assert decode(encode(x), 2, 2, 2, None).requires_grad
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        encode, decode = model.parts()
        wanted_encode, wanted_decode = plain.parts()
        for _ in range(3):
            got = decode(encode(x), 2, 2, 2, None)
            assert torch.equal(got, wanted_decode(wanted_encode(x), 2, 2, 2, None))
    assert (made[0].captures, made[0].replays) == (0, 0)

"""Training on clips: data, the temporal loss, a run that learns, wrong settings."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dafast.config import PRESETS
from dafast.data.clips import ClipSet
from dafast.data.shards import ShardError
from dafast.losses import TemporalGradientMatchingLoss
from dafast.models.depth_anything import DepthAnything
from dafast.synthetic import Clip
from dafast.synthetic.clip_files import write_clip
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.config_files import load_toml
from dafast.training.loop import train
from dafast.training.tasks import check_config, task_of, video
from tests.notices import Notices
from tests.tolerances import TOLERANCES
from tests.training import tiny
from tests.training.runs import ONE, metrics

PRESETS["tiny-video"] = dataclasses.replace(
    tiny.TINY, name="tiny-video", temporal_frames=8, output="relu"
)
SIDES = (56, 70)


def write(root: Path, name: str, frames: int, rng: np.random.Generator) -> None:
    """A clip whose disparity is its brightness, which drifts; the camera does not move."""
    height, width = SIDES
    ramp = np.linspace(0.2, 1, width)[None, None] * np.linspace(0.5, 1, height)[None, :, None]
    disparity = ramp + 0.02 * rng.random((frames, height, width))
    grey = np.clip(200 * disparity, 0, 255).astype(np.uint8)
    depth = (1 / disparity).astype(np.float32)
    depth[:, :3, :3] = np.inf  # sky
    flow = np.zeros((frames - 1, height, width, 2), np.float32)
    write_clip(
        root / name,
        Clip(
            name, np.repeat(grey[..., None], 3, -1), depth, flow, np.ones(flow.shape[:3], bool),
            np.zeros(depth.shape, bool), np.tile(np.eye(4), (frames, 1, 1)), 60.0, 60.0, 35.0,
            28.0, 0, "room", "still",
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, run_seed: int) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"), np.random.default_rng(run_seed))


def write_clips(root: Path, rng: np.random.Generator) -> Path:
    for i in range(3):
        write(root, f"clip-{i:06d}", 9 + i, rng)
    return root


def config_of(clips: Path, out: Path, **changes: Any) -> TrainConfig:
    base = load_toml("video-nano")
    settings: dict[str, Any] = dict(
        model=dataclasses.replace(base.model, preset="tiny-video", init="", freeze_encoder=False),
        data=dataclasses.replace(
            base.data, path=str(clips), eval_path=str(clips), eval_samples=1, workers=0,
            shapes=((42, 42),),
        ),
        video=dataclasses.replace(base.video, frames=8),
        optim=dataclasses.replace(base.optim, warmup_steps=0, encoder_lr=1e-3, decoder_lr=2e-3),
        out=str(out), steps=2, precision="float32", ema=0.0, batch_size=2,
    )  # fmt: skip
    return dataclasses.replace(base, **{**settings, **changes})


def published_loss(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """Temporal gradient matching of clips (B, T, H, W), one difference after the other."""
    total, count = 0.0, 0
    for p, t, m in zip(prediction, target, mask, strict=True):
        a00, a01, a11 = (m * p * p).sum(), (m * p).sum(), m.sum()
        b0, b1 = (m * p * t).sum(), (m * t).sum()
        det = a00 * a11 - a01 * a01
        s, b = 0.0, 0.0
        if det != 0:
            s, b = (a11 * b0 - a01 * b1) / (det + 1e-6), (a00 * b1 - a01 * b0) / (det + 1e-6)
        fitted = s * p + b
        for k in range(1, len(p)):
            valid = t[k][m[k]]
            limit = 0.05 * (valid.max() - valid.min()) if valid.size else 0
            counted = m[k] & m[k - 1] & (np.abs(t[k] - t[k - 1]) < limit)
            total += np.abs((fitted[k] - fitted[k - 1]) - (t[k] - t[k - 1]))[counted].sum()
            count += counted.sum()
    return float(total / max(count, 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "whole", "empty frame"])
def test_temporal_loss_is_the_published_one(kind: str, fixed_rng: np.random.Generator) -> None:
    """The inputs are fixed: of some draws a step of gradcheck crosses a kink."""
    target = fixed_rng.random((2, 1, 6, 7)) + 0.05 * fixed_rng.random((2, 5, 6, 7))
    prediction = 3 * target + 0.2 * fixed_rng.random(target.shape)
    mask = fixed_rng.random(target.shape) > 0.3 if kind == "masked" else np.ones(target.shape, bool)
    if kind == "empty frame":
        mask[0, 2] = False
    loss = TemporalGradientMatchingLoss()
    p, t, m = (torch.from_numpy(x) for x in (prediction, target, mask))
    p.requires_grad_()
    value = loss(p, t, None if kind == "whole" else m)
    # The published formula adds 1e-6 to a determinant, here of some 1e4.
    assert value.item() == pytest.approx(published_loss(prediction, target, mask), rel=1e-7)
    assert torch.autograd.gradcheck(lambda x: loss(x, t, m), p)
    # Scale and shift of the prediction do not matter.
    assert loss(5 * p + 2, t, m).item() == pytest.approx(value.item(), rel=1e-7)


def test_temporal_loss_without_pixels_is_zero() -> None:
    p = torch.rand(1, 3, 4, 4, requires_grad=True)
    loss = TemporalGradientMatchingLoss()
    nothing = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    for prediction, mask in ((p, nothing), (p, ~nothing), (p * 0 + 1, ~nothing)):
        value = loss(prediction, torch.ones(1, 3, 4, 4), mask)
        value.backward()
        assert value.item() == 0 and p.grad is not None and not p.grad.any()
    broken = torch.where(torch.arange(16).view(4, 4) < 2, torch.nan, torch.rand(1, 3, 4, 4))
    (value,) = (loss(p, broken, ~broken.isnan()),)
    value.backward()
    assert value.isfinite() and p.grad.isfinite().all()
    half = loss(p.detach().bfloat16(), torch.rand(1, 3, 4, 4))
    assert half.dtype == torch.float32


def test_frames_of_a_clip_are_augmented_alike(clips: Path, tmp_path: Path) -> None:
    augment = dataclasses.replace(load_toml("video-nano").augment, crop="resized", flip=0.5)
    config = config_of(clips, tmp_path, augment=augment)
    _, data = video.TASK.data(config, ONE)
    seen = set()
    for position in range(12):
        request = video.Request(position % 3, position, (42, 42))
        items = data[request]
        assert len(items) == 8 and len({item.key for item in items}) == 1
        mirrored = {item.disparity[-1, 0] > item.disparity[-1, -1] for item in items}
        assert len(mirrored) == 1  # all frames, or none
        # The place and the size of the crop: neighbours differ only by the noise of the clip.
        for one, other in itertools.pairwise(items):
            inside = (one.disparity > 0) & (other.disparity > 0)
            assert np.abs(one.disparity - other.disparity)[inside].max() < 0.05
            assert np.array_equal(one.colours, other.colours)
        again = data[request]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(items, again, strict=True))
        seen.add(items[0].image.tobytes())
    assert len(seen) > 6
    batch = data.collate([data[request], data[request]])
    assert batch.image.shape == (16, 3, 42, 42) and len(batch.keys) == 2


@pytest.mark.slow
def test_a_run_learns_and_is_evaluated(tmp_path: Path, fixed_rng: np.random.Generator) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed (extra dafast[flow])")
    clips = write_clips(tmp_path / "clips", fixed_rng)
    config = config_of(clips, tmp_path / "run", steps=16)
    check_config(config)
    assert task_of(config) is video.TASK
    train(config, ONE)
    *steps, last = metrics(tmp_path / "run")
    losses = [step["loss"] for step in steps if "loss" in step]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3]), losses
    assert all({"labeled", "labeled_gradient", "temporal"} <= set(step) for step in steps)
    assert {"eval/loss", "eval/abs_rel", "eval/tae", "eval/flicker"} <= set(last)
    model = DepthAnything.from_pretrained(tmp_path / "run/export", device="cpu", dtype="float32")
    assert model.config.temporal_frames == 8 and model.config.image_size == 42
    for module in model.depth_head.motion_modules:
        assert module.temporal_transformer.proj_out.weight.any()


def test_a_model_of_pictures_is_a_start(clips: Path, tmp_path: Path) -> None:
    start = DepthAnything(tiny.TINY)
    start.save_pretrained(tmp_path / "start")
    section = dataclasses.replace(
        load_toml("video-nano").model, preset="tiny-video", init=str(tmp_path / "start")
    )
    config = config_of(clips, tmp_path / "run", model=section)
    model = video.TASK.model(config, None, torch.device("cpu"))  # type: ignore[arg-type]
    assert model.config.name == "tiny-video" and model.config.temporal_frames == 8
    assert not any(p.requires_grad for p in model.pretrained.parameters())
    x = torch.randn(1, 3, 3, 42, 42)
    bound = TOLERANCES[torch.float32].model
    with torch.no_grad():
        assert (model(x)[0] - start.eval()(x[0])).abs().max() <= bound


def test_unreadable_clips_are_replaced(clips: Path, tmp_path: Path, notices: Notices) -> None:
    rng = np.random.default_rng(0)
    for i, frames in enumerate((8, 4, 8)):
        write(tmp_path, f"clip-{i}", frames, rng)
    (tmp_path / "clip-2" / "000003.png").write_bytes(b"no picture")
    found = ClipSet(tmp_path, 8, max_bad_fraction=0.7)
    sample = found.draw(1, rng)
    assert sample.key == "clip-0" and len(sample.skipped) == 2
    assert "clip-1: it has 4 frames; 8 are needed" in sample.skipped[0]
    assert "clip-1: it has 4 frames" in notices.text
    with pytest.raises(ShardError, match="1 of 3 samples cannot be read"):
        ClipSet(tmp_path, 8).draw(1, rng)
    with pytest.raises(ShardError, match=r"data.path: no clips in .*dafast synth --clip 8"):
        ClipSet(tmp_path / "nothing", 8)
    assert ClipSet(clips, 8).read(0).disparity.max() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model=dict(preset="tiny")), "tiny has no temporal modules; vda-nano"),
        (dict(model=dict(preset="vda-metric-vits")), "is metric"),
        (dict(video=dict(frames=9)), "video.frames must be from 2 to 8"),
        (dict(video=dict(frames=1)), "video.frames must be from 2 to 8"),
        (dict(video=dict(temporal=-1)), "video.temporal must not be negative"),
        (dict(unlabeled=dict(path="x")), "excludes unlabeled.path"),
        (dict(metric=dict(max_depth=10.0)), "excludes unlabeled.path and metric.max_depth"),
    ],
)
def test_wrong_settings(
    changes: dict[str, dict[str, Any]], message: str, clips: Path, tmp_path: Path
) -> None:
    config = config_of(clips, tmp_path)
    sections = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in changes.items()
    }
    with pytest.raises(ConfigError, match=message):
        check_config(dataclasses.replace(config, **sections))

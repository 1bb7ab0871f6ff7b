"""Scores of videos: TAE, flicker with known flow, the reader and `dafast eval --data clips=`."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from dafast.cli import main
from dafast.evaluation.clips import score_clips
from dafast.evaluation.readers import READERS
from dafast.evaluation.temporal import known_flow_flicker, temporal_alignment_error
from dafast.optional import MissingPackageError
from dafast.synthetic import Clip
from dafast.synthetic.clip_files import write_clip
from tests.cli.helpers import save_model
from tests.tiny import TINY
from tests.video.scenes import filmed, scene


def turned(rng, size=0.03):
    """A small random rotation."""
    q, r = np.linalg.qr(np.eye(3) + rng.normal(0, size, (3, 3)))
    return q * np.sign(np.diag(r))


def poses(rng, count):
    made = np.tile(np.eye(4), (count, 1, 1))
    for pose in made:
        pose[:3, :3], pose[:3, 3] = turned(rng), rng.normal(0, 0.2, 3)
    return made


def slow_tae(depth, poses, camera, mask):
    """TAE pixel by pixel."""
    fx, fy, cx, cy = camera
    n, height, width = depth.shape
    errors = []
    for a, b in [(k, k + 1) for k in range(n - 1)] + [(k + 1, k) for k in range(n - 1)]:
        seen = {}
        for row in range(height):
            for column in range(width):
                z = float(depth[a, row, column])
                local = [(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z, 1]
                x, y, z, _ = np.linalg.inv(poses[b]) @ (poses[a] @ local)
                if z != 0:
                    place = round(y / z * fy + cy - 0.5), round(x / z * fx + cx - 0.5)
                    seen[place] = z
        found = [
            abs(depth[b][place] - z) / depth[b][place]
            for place, z in seen.items()
            if 0 <= place[0] < height and 0 <= place[1] < width
            and z > 0 and depth[b][place] > 0 and mask[b][place]
        ]  # fmt: skip
        errors.append(np.mean(found) if found else 0.0)
    return 100 * np.mean(errors)


def test_tae_is_its_definition(rng):
    depth = rng.uniform(1, 5, (3, 9, 11))
    depth[rng.random(depth.shape) < 0.1] = 0
    mask = rng.random(depth.shape) < 0.8
    camera = (10.0, 9.0, 5.2, 4.9)
    where = poses(rng, 3)
    expected = slow_tae(depth, where, camera, mask)
    assert temporal_alignment_error(depth, where, camera, mask) == pytest.approx(expected)
    everything = np.ones_like(mask)
    found = temporal_alignment_error(depth, where, camera)
    assert found == pytest.approx(slow_tae(depth, where, camera, everything))


def test_tae_of_a_wall(rng):
    """A camera before a wall: no error where it moves sideways, the change where depth is wrong."""
    depth = np.full((4, 12, 16), 3.0)
    where = np.tile(np.eye(4), (4, 1, 1))
    where[:, 0, 3] = rng.uniform(-0.5, 0.5, 4)
    camera = (16.0, 16.0, 8.0, 6.0)
    assert temporal_alignment_error(depth, where, camera) == pytest.approx(0, abs=1e-9)
    depth[1::2] *= 1.1
    expected = 100 * (0.1 + 0.1 / 1.1) / 2
    assert temporal_alignment_error(depth, where, camera) == pytest.approx(expected)
    assert np.isnan(temporal_alignment_error(depth[:1], where[:1], camera))
    with pytest.raises(ValueError, match="must fit; got"):
        temporal_alignment_error(depth, where[:2], camera)
    with pytest.raises(ValueError, match="must fit; got"):
        temporal_alignment_error(depth, where, camera, np.ones((4, 12, 15), bool))


def pan(rng, name="pan", count=6):
    """A clip of a flat picture that moves by 2 pixels a frame before a still camera."""
    picture, disparity = scene(rng, 40, 90)
    starts = [2 * k for k in range(count)]
    frames = np.stack([filmed(rng, picture[:, x : x + 60]) for x in starts])
    depth = np.stack([1 / disparity[:, x : x + 60] for x in starts])
    flow = np.zeros((count - 1, 40, 60, 2), np.float32)
    flow[..., 0] = -2
    visible = np.ones((count - 1, 40, 60), bool)
    visible[:, :, :2] = False
    where = np.tile(np.eye(4), (count, 1, 1))
    return Clip(
        name, frames, depth, flow, visible, np.zeros(depth.shape, bool), where,
        60.0, 60.0, 30.0, 20.0, seed=0, kind="room", motion="pan",
    )  # fmt: skip


def test_flicker_with_known_flow(rng):
    clip = pan(rng)
    disparity = 1 / clip.depth
    assert known_flow_flicker(disparity, clip.flow, clip.visible) < 1e-4
    low, high = np.percentile(disparity, (2, 98), axis=(1, 2))
    step = np.arange(6)[:, None, None] % 2 * 0.05 * np.mean(high - low)
    found = known_flow_flicker(disparity + step, clip.flow, clip.visible)
    assert found == pytest.approx(5, rel=1e-3)
    scaled = known_flow_flicker(7 * (disparity + step) - 3, clip.flow, clip.visible)
    assert scaled == pytest.approx(found, rel=1e-3)
    assert np.isnan(known_flow_flicker(disparity, clip.flow, 0 * clip.visible > 0))


class Shaking:
    """A perfect model, but for a random scale and shift in each frame."""

    def __init__(self, config, clip, rng):
        self.config, self.clip, self.device = config, clip, torch.device("cpu")
        self.scales = np.exp(rng.normal(0, 0.15, len(clip.frames)))
        self.known = {frame.tobytes(): k for k, frame in enumerate(clip.frames)}

    def infer(self, images, **_):
        import torch

        chosen = [self.known[image.tobytes()] for image in images]
        maps = [self.scales[k] / self.clip.depth[k] + self.scales[k] - 1 for k in chosen]
        return [torch.from_numpy(values.astype(np.float32)) for values in maps]


def test_stabilization_restores_a_perfect_model(rng, tmp_path):
    clip = pan(rng)
    write_clip(tmp_path / "clip-000000", clip)
    results = score_clips(Shaking(TINY, clip, rng), READERS["clips"](tmp_path), "clips")
    off, moved, flow = results
    assert [r.predictor for r in results] == ["tiny", "tiny, range", "tiny, flow"]
    assert {r.count for r in results} == {6} and {r.data for r in results} == {"clips"}
    assert flow.metrics["abs_rel"] < 0.3 * off.metrics["abs_rel"]
    assert flow.metrics["flicker"] < 0.2 * off.metrics["flicker"]
    assert moved.metrics["flicker"] < off.metrics["flicker"]


def test_command_prints_the_scores_of_videos(rng, tmp_path, capsys, monkeypatch):
    for k in range(2):
        write_clip(tmp_path / f"clip-00000{k}", pan(rng, count=3))
    samples = READERS["clips"](tmp_path)
    assert len(samples) == 6 and samples[4].name == "clip-000001/000001"
    model = save_model(tmp_path / "model", TINY)
    command = ["eval", "--model", model, "--data", f"clips={tmp_path}"]
    assert main([*command, "--json", str(tmp_path / "scores.json")]) == 0
    table = capsys.readouterr().out
    assert "tae" in table and "flicker" in table and "tiny, flow" in table
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert [row["predictor"] for row in rows] == ["tiny", "tiny, range", "tiny, flow"]
    assert all(np.isfinite([row["tae"], row["flicker"], row["abs_rel"]]).all() for row in rows)
    (tmp_path / "clip-000000" / "truth.json").write_text("{}")
    assert main(command) == 1
    assert "is damaged: render the clip again" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"dafast\[flow\]"):
        score_clips(None, samples, "clips")

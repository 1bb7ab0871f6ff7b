"""Clips of synthetic scenes: exact depth, poses and flow; files; the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="embreex is not installed (extra dafast[synth])")
pytest.importorskip("skimage", reason="scikit-image is not installed (extra dafast[synth])")

from dafast.cli import main
from dafast.synthetic import Clip, clip_folders, read_clip, render_clip, write_clips
from dafast.synthetic.clip_files import write_clip

SIZE = (48, 36)
FRAMES = 3


def rendered(seed: int, motion: str, kind: str) -> Clip:
    return render_clip(seed, FRAMES, size=SIZE, kind=kind, motion=motion)


@pytest.fixture(scope="module")
def clip(run_seed: int) -> Clip:
    """A clip with a moving object and a moving camera, if the scene has a suitable object."""
    for seed in range(run_seed, run_seed + 3):
        made = rendered(seed, "handheld", "random")
        if made.moving.any():
            return made
    return made


def points(clip: Clip, frame: int) -> np.ndarray:
    """World coordinates of a frame's pixels, (H, W, 3)."""
    rows, columns = np.indices(clip.depth.shape[1:])
    z = clip.depth[frame].astype(np.float64)
    local = np.stack(
        [(columns + 0.5 - clip.cx) / clip.fx * z, (rows + 0.5 - clip.cy) / clip.fy * z, z], -1
    )
    pose = clip.poses[frame]
    return local @ pose[:3, :3].T + pose[:3, 3]


@pytest.mark.slow
def test_flow_is_the_projection_of_the_depth(clip):
    """For things that do not move: the pixel of the flow shows the same point in the next frame."""
    rows, columns = np.indices(clip.depth.shape[1:])
    for k in range(FRAMES - 1):
        still = np.isfinite(clip.depth[k]) & ~clip.moving[k]
        pose = clip.poses[k + 1]
        local = (points(clip, k) - pose[:3, 3]) @ pose[:3, :3]
        with np.errstate(invalid="ignore"):
            x = local[..., 0] / local[..., 2] * clip.fx + clip.cx - 0.5 - columns
            y = local[..., 1] / local[..., 2] * clip.fy + clip.cy - 0.5 - rows
        expected = np.stack([x, y], -1)[still]
        np.testing.assert_allclose(clip.flow[k][still], expected, atol=2e-3)


@pytest.mark.slow
def test_visible_points_are_on_the_surface_of_the_next_frame(clip):
    """At the pixel of the flow the next depth is that of the point, except across edges."""
    rows, columns = np.indices(clip.depth.shape[1:])
    for k in range(FRAMES - 1):
        seen = clip.visible[k] & np.isfinite(clip.depth[k])
        x = np.rint(columns + clip.flow[k][..., 0])[seen].astype(int)
        y = np.rint(rows + clip.flow[k][..., 1])[seen].astype(int)
        assert x.min() >= 0 and y.min() >= 0 and x.max() < SIZE[0] and y.max() < SIZE[1]
        pose = clip.poses[k + 1]
        z = ((points(clip, k) - pose[:3, 3]) @ pose[:3, :3])[..., 2][seen]
        ratio = clip.depth[k + 1][y, x] / z
        assert np.median(np.abs(ratio - 1)) < 0.05
        assert clip.visible[k].mean() > 0.5


def test_a_still_camera_sees_only_the_object_move(run_seed):
    made = rendered(run_seed % 1000, "still", "tabletop")
    assert np.ptp(made.poses, axis=0).max() == 0
    rest = ~made.moving.any(0)
    assert np.ptp(made.depth[:, rest & np.isfinite(made.depth[0])], axis=0).max() == 0
    assert np.abs(made.flow[:, rest]).max() < 1e-3
    moved = made.moving[:-1] & made.visible
    if moved.any():
        assert np.abs(made.flow[moved]).max() > 0.01


@pytest.mark.slow
def test_the_same_arguments_give_the_same_clip(clip):
    again = render_clip(clip.seed, FRAMES, size=SIZE, kind="random", motion="handheld")
    other = render_clip(clip.seed + 1, 1, size=SIZE)
    for field in dataclasses.fields(Clip):
        np.testing.assert_array_equal(getattr(clip, field.name), getattr(again, field.name))
    assert other.frames.shape == (1, 36, 48, 3) and other.flow.shape == (0, 36, 48, 2)
    assert not np.array_equal(other.depth[0], clip.depth[0])


def test_files_round_trip(clip, tmp_path):
    write_clip(tmp_path / "clip-000000", clip)
    assert clip_folders(tmp_path) == clip_folders(tmp_path / "clip-000000")
    whole = read_clip(tmp_path / "clip-000000")
    for field in dataclasses.fields(Clip):
        if field.name != "name":
            np.testing.assert_array_equal(getattr(whole, field.name), getattr(clip, field.name))
    part = read_clip(tmp_path / "clip-000000", frames=slice(1, 3))
    np.testing.assert_array_equal(part.frames, clip.frames[1:])
    np.testing.assert_array_equal(part.flow, clip.flow[1:])
    np.testing.assert_array_equal(part.moving, clip.moving[1:])
    np.testing.assert_array_equal(part.poses, clip.poses[1:])
    bare = read_clip(tmp_path / "clip-000000", flow=False)
    assert len(bare.flow) == len(bare.moving) == len(bare.visible) == 0
    np.testing.assert_array_equal(bare.depth, clip.depth)


def test_damaged_clips_are_named(clip, tmp_path):
    folder = tmp_path / "clip-000000"
    write_clip(folder, clip)
    for wrong in (slice(5, 9), slice(0, 3, 2)):
        with pytest.raises(ValueError, match="selects no successive frames of 3"):
            read_clip(folder, frames=wrong)
    np.save(folder / "flow.npy", clip.flow[:1])
    with pytest.raises(ValueError, match=r"clip-000000 is not a clip.*do not fit depth.npy"):
        read_clip(folder)
    np.save(folder / "depth.npy", clip.depth[:2])
    with pytest.raises(ValueError, match=r"depth.npy has the shape \(2, 36, 48\)"):
        read_clip(folder)
    (folder / "000001.png").unlink()
    np.save(folder / "depth.npy", clip.depth)
    with pytest.raises(FileNotFoundError, match=r"000001\.png"):
        read_clip(folder)
    (folder / "truth.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a clip"):
        read_clip(folder)


@pytest.mark.slow
def test_command_writes_clips_and_resumes(tmp_path, capsys, run_seed):
    seed = run_seed % 10_000
    command = ["synth", "--clip", "2", "--scenes", "2", "--size", "24", "16", "--seed", str(seed)]
    command += ["--motions", "still", "dolly", "--workers", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    folders = clip_folders(tmp_path)
    assert [folder.name for folder in folders] == ["clip-000000", "clip-000001"]
    found = [read_clip(folder) for folder in folders]
    assert [clip.seed for clip in found] == [seed, seed + 1]
    assert {clip.motion for clip in found} == {"still", "dolly"}
    kept = (folders[1] / "depth.npy").stat().st_mtime_ns
    (folders[0] / "truth.json").unlink()  # as if the run had been interrupted
    assert main(command) == 0
    assert (folders[1] / "depth.npy").stat().st_mtime_ns == kept
    np.testing.assert_array_equal(read_clip(folders[0]).depth, found[0].depth)
    capsys.readouterr()
    assert main([*command, "--seed", str(seed + 5)]) == 1
    assert "clips there were made with seed" in capsys.readouterr().err
    (tmp_path / "clips.json").write_text("no")
    assert main(command) == 1
    assert "clips.json cannot be read" in capsys.readouterr().err
    for more, message in (
        (["--shard-size", "7"], "--shard-size is for shards"),
        (["--worlds", str(tmp_path)], "leave out --worlds"),
        (["--motions", "fly"], "unknown motion fly; there are: still, pan"),
    ):
        assert main([*command, "--out", str(tmp_path / "new"), *more]) != 0
        assert message in capsys.readouterr().err
    assert main(["synth", "--scenes", "1", "--motions", "pan", "--out", str(tmp_path)]) != 0
    assert "--motions needs --clip" in capsys.readouterr().err


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        render_clip(0, 0)
    with pytest.raises(ValueError, match="unknown motion 'fly'"):
        render_clip(0, 1, motion="fly")
    with pytest.raises(ValueError, match="unknown kind"):
        render_clip(0, 1, kind="moon")
    with pytest.raises(ValueError, match="held-out"):
        write_clips(tmp_path, 3, 1, seed=2**31 - 2)
    with pytest.raises(ValueError, match="clips >= 1"):
        write_clips(tmp_path, 1, 0)
    (tmp_path / "clip-000000").mkdir()
    (Path(tmp_path) / "clip-000000" / "truth.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"holds clips without clips\.json"):
        write_clips(tmp_path, 1, 1)

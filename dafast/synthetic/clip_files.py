"""Clips with exact depth, poses and optical flow on disk: written and read.

A folder of clips has ``clips.json`` (what the set was rendered with) and a folder for each clip,
``clip-000000`` and so on::

    000000.png ...   the frames, RGB
    depth.npy        float32 (N, H, W): metres along the optical axis; inf for sky
    flow.npy         float32 (N - 1, H, W, 2): x and y in pixels; pixel (row, column) of frame k is
                     at (row + y, column + x) of frame k + 1; NaN if it is behind that camera
    masks.npz        visible, bool (N - 1, H, W): whether frame k + 1 shows the point of the pixel;
                     moving, bool (N, H, W): pixels of objects that move
    truth.json       seed, kind, motion; fx, fy, cx, cy in pixels, with pixel centres at
                     (column + 0.5, row + 0.5); poses (N, 4, 4): camera to world, metres, the
                     camera's axes are right, down, forward

``truth.json`` is written last: a folder with it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dafast.files import explain, whole_files

TRUTH = "truth.json"
"""The file of a clip that is written last."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a scene with exact depth, poses and optical flow.

    Attributes:
        name: of the clip in its set.
        frames: uint8 (N, H, W, 3), RGB.
        depth: float32 (N, H, W), metres along the optical axis; inf for sky.
        flow: float32 (N - 1, H, W, 2), pixels (x, y) from each frame to the next; NaN behind its
            camera.
        visible: bool (N - 1, H, W): whether the next frame shows the point of a pixel.
        moving: bool (N, H, W): pixels of objects that move.
        poses: float64 (N, 4, 4), camera to world, metres; axes right, down, forward.
        fx, fy, cx, cy: intrinsics in pixels; pixel centres are at (column + 0.5, row + 0.5).
        seed: the seed of the scene.
        kind: the kind of scene, one of ``KINDS``.
        motion: how the camera moves, one of ``MOTIONS``.
    """

    name: str
    frames: NDArray[np.uint8]
    depth: NDArray[np.float32]
    flow: NDArray[np.float32]
    visible: NDArray[np.bool_]
    moving: NDArray[np.bool_]
    poses: NDArray[np.float64]
    fx: float
    fy: float
    cx: float
    cy: float
    seed: int
    kind: str
    motion: str


def write_clip(folder: str | Path, clip: Clip) -> None:
    """Writes a clip's folder; the module's description has its layout.

    Raises:
        OSError: the folder cannot be written.
    """
    facts = {k: getattr(clip, k) for k in ("seed", "kind", "motion", "fx", "fy", "cx", "cy")}
    facts["poses"] = clip.poses.tolist()
    with whole_files(folder) as temporary:
        for k, frame in enumerate(clip.frames):
            Image.fromarray(frame).save(temporary / f"{k:06d}.png", compress_level=1)
        np.save(temporary / "depth.npy", clip.depth)
        np.save(temporary / "flow.npy", clip.flow)
        np.savez_compressed(temporary / "masks.npz", visible=clip.visible, moving=clip.moving)
        (temporary / TRUTH).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def clip_folders(root: str | Path) -> list[Path]:
    """The folders of the complete clips of a set, in order; ``root`` itself if it is a clip."""
    root = Path(root)
    if (root / TRUTH).is_file():
        return [root]
    return sorted(path.parent for path in root.glob(f"*/{TRUTH}"))


def read_clip(folder: str | Path, *, frames: slice | None = None, flow: bool = True) -> Clip:
    """Reads a clip.

    Args:
        folder: The clip's folder.
        frames: Which of its frames to read, with step 1; by default all.
        flow: Whether to read flow and masks; without them these arrays have no frames.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, does not fit the others, or ``frames`` selects none.
    """
    folder = Path(folder)
    try:
        facts: dict[str, Any] = json.loads((folder / TRUTH).read_text(encoding="utf-8"))
        poses = np.array(facts.pop("poses"), np.float64)
        chosen = range(*(frames or slice(None)).indices(len(poses)))
        if not chosen or chosen.step != 1:
            raise ValueError(f"{frames} selects no successive frames of {len(poses)}")
        depth = np.load(folder / "depth.npy", mmap_mode="r", allow_pickle=False)
        if len(depth) != len(poses) or depth.ndim != 3:
            raise ValueError(f"depth.npy has the shape {depth.shape}, not ({len(poses)}, H, W)")
        part = slice(chosen.start, chosen.stop)
        pictures = np.stack([_frame(folder / f"{k:06d}.png") for k in chosen])
        if pictures.shape[1:3] != depth.shape[1:]:
            raise ValueError(f"the frames {pictures.shape} do not fit depth.npy {depth.shape}")
        steps = slice(chosen.start, chosen.stop - 1) if flow else slice(0, 0)
        motion, visible, moving = _motion(folder, depth.shape, steps, part if flow else steps)
        return Clip(
            folder.name, pictures, np.array(depth[part]), motion, visible, moving, poses[part],
            **facts,
        )  # fmt: skip
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{folder} is not a clip of dafast synth: {explain(error)}") from error


def _frame(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _motion(
    folder: Path, shape: Sequence[int], steps: slice, frames: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Flow, visible and moving of a part of a clip whose depth has this shape."""
    n, h, w = shape
    if steps.stop <= steps.start and frames.stop <= frames.start:
        empty = np.empty((0, h, w), bool)
        return np.empty((0, h, w, 2), np.float32), empty, empty
    flow = np.load(folder / "flow.npy", mmap_mode="r", allow_pickle=False)
    with np.load(folder / "masks.npz", allow_pickle=False) as masks:
        visible, moving = masks["visible"], masks["moving"]
    shapes = flow.shape, visible.shape, moving.shape
    if shapes != ((n - 1, h, w, 2), (n - 1, h, w), (n, h, w)):
        raise ValueError(f"flow and masks {shapes} do not fit depth.npy {tuple(shape)}")
    return np.array(flow[steps]), visible[steps], moving[frames]

"""Virtual KITTI 2: the plain variation ("clone") of all scenes, the left camera.

Sources: the README of Virtual KITTI 1.3.1 (16-bit PNG; depth along the optical axis in centimetres;
the sky has the largest value, the far plane at 655.35 m). The page of version 2 could not be read.
The readers of https://github.com/LiheYoung/Depth-Anything (metric_depth/zoedepth/data/vkitti2.py at
2495a75) and Depth-Anything-V2 (metric_depth/dataset/vkitti2.py at 2cbc36a) take its files as
centimetres too, and nothing beyond the cap, 80 m. The former makes the cut of `kitti_kb` and draws
its test list at random, 8% of the frames, without a seed: that list cannot be reproduced.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import missing, read_png16, read_stored_image

MAX_DEPTH = 80.0
SKY = 65535

LAYOUT = """\
  PATH/Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg          of vkitti_2.0.3_rgb.tar
  PATH/Scene01/clone/frames/depth/Camera_0/depth_00000.png      of vkitti_2.0.3_depth.tar
"""


def vkitti2(root: Path) -> Samples:
    """All frames of the left camera in the plain variation.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder has another layout.
    """
    truths = sorted(root.glob("Scene*/clone/frames/depth/Camera_0/depth_*.png"))
    if not truths:
        raise missing(root, "no Scene*/clone/frames/depth/Camera_0/depth_*.png", LAYOUT)
    entries = []
    for truth in truths:
        frames, number = truth.parents[2], truth.stem.removeprefix("depth_")
        image = frames / "rgb" / "Camera_0" / f"rgb_{number}.jpg"
        if not image.is_file():
            raise missing(root, f"no {image.relative_to(root)}", LAYOUT)
        entries.append((f"{frames.parents[1].name}/{number}", image, truth))
    return Samples(entries, _load)


def _load(entry: tuple[str, Path, Path]) -> EvaluationSample:
    name, image, truth = entry
    stored = read_png16(truth)
    depth = np.where(stored == SKY, np.inf, stored / 100).astype(np.float32)
    return EvaluationSample(name, read_stored_image(image), depth, MAX_DEPTH, sharp=True)

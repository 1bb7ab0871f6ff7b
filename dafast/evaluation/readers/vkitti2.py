"""Virtual KITTI 2: the plain variation ("clone") of all scenes, the left camera.

Source: the data set's page (16-bit PNG in centimetres; the sky is at 655.35 m, the largest value).
Published tables use lists of their own, which are not known to us. The cap, 80 m, is KITTI's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import missing, read_image, read_png16

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
        DataMissingError: If the folder is laid out otherwise.
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
    return EvaluationSample(name, read_image(image), depth, MAX_DEPTH, sharp=True)

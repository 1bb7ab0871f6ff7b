"""ETH3D, the high-resolution multi-view training scenes.

Source: eth3d.net's documentation: each depth map is a dump of 4-byte floats (little-endian) in
rows, of the size of the original (distorted) JPEG photo and with the same name, ".JPG" included;
infinity where no depth is known.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import missing, read_stored_image, warn_of_count

IMAGES = 454

LAYOUT = """\
  PATH/courtyard/images/dslr_images/DSC_0286.JPG                 of multi_view_training_dslr_jpg.7z
  PATH/courtyard/ground_truth_depth/dslr_images/DSC_0286.JPG     of courtyard_dslr_depth.7z
"""


def eth3d(root: Path) -> Samples:
    """All photos of the training scenes that have ground truth.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder has another layout.
    """
    truths = sorted(root.glob("*/ground_truth_depth/dslr_images/*.JPG"))
    if not truths:
        raise missing(root, "no */ground_truth_depth/dslr_images/*.JPG", LAYOUT)
    entries = []
    for truth in truths:
        scene = truth.parents[2]
        image = scene / "images" / "dslr_images" / truth.name
        if not image.is_file():
            raise missing(root, f"no {image.relative_to(root)}", LAYOUT)
        entries.append((f"{scene.name}/{truth.stem}", image, truth))
    warn_of_count("eth3d", len(entries), IMAGES)
    return Samples(entries, _load)


def _load(entry: tuple[str, Path, Path]) -> EvaluationSample:
    name, path, truth = entry
    image = read_stored_image(path)
    depth = np.fromfile(truth, "<f4")
    if depth.size != image.shape[0] * image.shape[1]:
        raise ValueError(
            f"{truth}: holds {depth.size} floats, and {path} has {image.shape[1]}x{image.shape[0]} "
            "pixels; the depth maps belong to the original photos (dslr_jpg), not the undistorted"
        )
    depth = depth.reshape(image.shape[:2]).astype(np.float32)
    return EvaluationSample(name, image, depth, math.inf)

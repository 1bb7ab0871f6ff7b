"""KITTI, Eigen's test split with improved ground truth.

Sources: the depth benchmark's development kit (readme.txt: 16-bit PNG, depth in metres is the
value / 256, 0 is unknown); Eigen et al., NIPS 2014 (the split of 697 images); Uhrig et al., 3DV
2017 (improved ground truth, which 652 of them have); Garg et al., ECCV 2016 (the crop). The cut of
352 x 1216 and Garg's crop within it: metric_depth/zoedepth/data/data_mono.py of
https://github.com/LiheYoung/Depth-Anything at 2495a75 and zoedepth/utils/misc.py of
https://github.com/isl-org/ZoeDepth at 0b3df3b.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dafast.data.readers.kitti import image_file, parse_split, truth_file

from ..samples import EvaluationSample, Samples
from ._files import first_file, missing, read_png16, read_stored_image, warn_of_count

MAX_DEPTH = 80.0
IMAGES = 652
SPLITS = ("eigen_test_files.txt", "test_files.txt", "eigen_test_files_with_gt.txt",
          "kitti_eigen_test_files_with_gt.txt")  # fmt: skip

LAYOUT = """\
  PATH/eigen_test_files.txt    the split, which is not shipped: test_files.txt of monodepth2's
                               splits/eigen_benchmark (lines "DATE/DRIVE 69 l"), or BTS's
                               eigen_test_files_with_gt.txt (lines "DATE/DRIVE/image_02/data/
                               0000000069.png ..."); these names are found too
  PATH/[raw/]2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png      (or .jpg)
  PATH/[depth/][train/|val/]2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/
       0000000069.png          of data_depth_annotated.zip
"""


def garg_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """Garg's crop (top, bottom, left, right) in pixels, of an image of any size."""
    top, bottom = int(0.40810811 * height), int(0.99189189 * height)
    return top, bottom, int(0.03594771 * width), int(0.96405229 * width)


def benchmark_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """The 352 x 1216 pixels (top, bottom, left, right) that KITTI's depth benchmark shows."""
    left = (width - 1216) // 2
    return height - 352, height, left, left + 1216


def kitti(root: Path) -> Samples:
    """KITTI's Eigen test split: the frames of the split that have improved ground truth.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder has another layout.
        ValueError: If the split cannot be read.
    """
    return Samples(_entries(root), _load)


def kitti_kb(root: Path) -> Samples:
    """The same frames cut to `benchmark_crop` before the network sees them, Garg's crop within.

    ZoeDepth and Depth Anything's metric models were trained and measured in this way; in a whole
    picture they would see everything at another scale. BTS (utils/eval_with_pngs.py) makes the same
    cut and puts the prediction back into the whole picture, whose Garg's crop begins 13 rows
    higher.

    Args:
        root: As for `kitti`.

    Raises:
        DataMissingError: As for `kitti`.
        ValueError: As for `kitti`.
    """
    return Samples(_entries(root), _load_cropped)


def _entries(root: Path) -> list[tuple[str, Path, Path]]:
    split = first_file(root / name for name in SPLITS)
    if split is None:
        raise missing(root, "no split file", LAYOUT)
    entries = []
    for frame in parse_split(split):
        truth = truth_file(root, frame)
        if truth is None:
            continue  # 45 frames of Eigen's 697 have none
        image = image_file(root, frame)
        if image is None:
            raise missing(root, f"no image {frame.image}.png", LAYOUT)
        entries.append((f"{frame.drive}_{frame.camera}_{frame.number:010d}", image, truth))
    if not entries:
        raise missing(root, f"no ground truth of the frames in {split.name}", LAYOUT)
    warn_of_count("kitti", len(entries), IMAGES)
    return entries


def _load(entry: tuple[str, Path, Path]) -> EvaluationSample:
    name, image, truth = entry
    depth = read_png16(truth).astype(np.float32) / 256
    return EvaluationSample(
        name, read_stored_image(image), depth, MAX_DEPTH, garg_crop(*depth.shape)
    )


def _load_cropped(entry: tuple[str, Path, Path]) -> EvaluationSample:
    sample = _load(entry)
    height, width = sample.depth.shape
    if height < 352 or width < 1216:
        raise ValueError(f"{sample.name}: {height} x {width} pixels; 352 x 1216 are cut out")
    top, bottom, left, right = benchmark_crop(height, width)
    image, depth = (x[top:bottom, left:right] for x in (sample.image, sample.depth))
    return replace(sample, image=image, depth=depth, crop=garg_crop(*depth.shape))

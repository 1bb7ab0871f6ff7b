"""KITTI, Eigen's test split with improved ground truth.

Sources: the depth benchmark's development kit (readme.txt: 16-bit PNG, depth in metres is the
value / 256, 0 is unknown); Eigen et al., NIPS 2014 (the split of 697 images); Uhrig et al., 3DV
2017 (improved ground truth, which 652 of them have); Garg et al., ECCV 2016 (the crop).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import first_file, missing, read_image, read_png16, warn_of_count

MAX_DEPTH = 80.0
IMAGES = 652
SPLITS = ("eigen_test_files.txt", "test_files.txt", "kitti_eigen_test_files_with_gt.txt")

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


def parse_split(path: Path) -> list[tuple[str, str, str, int]]:
    """Reads a split in either published form.

    Returns:
        Date, drive, camera folder and frame of each line.

    Raises:
        ValueError: If a line is of neither form.
    """
    frames = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        parts = words[0].strip("/").split("/")
        try:
            if len(parts) == 5:  # date/drive/camera/data/frame.png, truth, focal length
                date, drive, camera, _, file = parts
                frames.append((date, drive, camera, int(Path(file).stem)))
            else:  # date/drive, frame, side
                date, drive = parts
                side = words[2] if len(words) > 2 else "l"
                camera = {"l": "image_02", "r": "image_03"}[side]
                frames.append((date, drive, camera, int(words[1])))
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f'{path}, line {number}: {line!r} is neither "DATE/DRIVE FRAME l|r" nor '
                '"DATE/DRIVE/CAMERA/data/FRAME.png ..."'
            ) from error
    return frames


def kitti(root: Path) -> Samples:
    """KITTI's Eigen test split: the frames of the split that have improved ground truth.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder is laid out otherwise.
        ValueError: If the split cannot be read.
    """
    split = first_file(root / name for name in SPLITS)
    if split is None:
        raise missing(root, "no split file", LAYOUT)
    entries = []
    for date, drive, camera, frame in parse_split(split):
        truth = first_file(
            root / base / part / drive / f"proj_depth/groundtruth/{camera}/{frame:010d}.png"
            for base in ("", "depth", "data_depth_annotated")
            for part in ("val", "train", "")
        )
        if truth is None:
            continue  # 45 frames of Eigen's 697 have none
        stem = f"{date}/{drive}/{camera}/data/{frame:010d}"
        image = first_file(
            root / base / (stem + suffix) for base in ("", "raw") for suffix in (".png", ".jpg")
        )
        if image is None:
            raise missing(root, f"no image {stem}.png", LAYOUT)
        entries.append((f"{drive}_{camera}_{frame:010d}", image, truth))
    if not entries:
        raise missing(root, f"no ground truth of the frames in {split.name}", LAYOUT)
    warn_of_count("kitti", len(entries), IMAGES)
    return Samples(entries, _load)


def _load(entry: tuple[str, Path, Path]) -> EvaluationSample:
    name, image, truth = entry
    depth = read_png16(truth).astype(np.float32) / 256
    return EvaluationSample(name, read_image(image), depth, MAX_DEPTH, garg_crop(*depth.shape))

"""KITTI with improved ground truth, a training split on which outdoor metric models are tuned.

The reader takes the pictures of the raw data and the accumulated lidar depth of Uhrig et al. (3DV
2017), 16-bit PNG: metres are the value / 256, 0 is unknown, as in the development kit's readme.txt.
The training frames are those of Eigen's split (NIPS 2014), in a list that is not shipped: either
published form is read. Frames of the list without ground truth are left out.

Source of the list's second form, and of the cut: https://github.com/LiheYoung/Depth-Anything,
metric_depth/train_test_inputs/kitti_eigen_train_files_with_gt.txt and
metric_depth/zoedepth/data/data_mono.py, both at 2495a75.

Pictures are taken whole. Published trainings cut them to 352 x 1216 first; here training and
`infer` scale the same picture by the same factor instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dafast.data.maps import invert_depth, read_map
from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError

SPLITS = (
    "eigen_train_files.txt",
    "train_files.txt",
    "eigen_train_files_with_gt.txt",
    "kitti_eigen_train_files_with_gt.txt",
)


class RawFrame(NamedTuple):
    """One picture of the raw data.

    Attributes:
        date: Folder of the day.
        drive: Folder of the drive.
        camera: `image_02` or `image_03`.
        number: Of the frame in the drive.
    """

    date: str
    drive: str
    camera: str
    number: int

    @property
    def image(self) -> str:
        """Its picture below the raw data, without the suffix."""
        return f"{self.date}/{self.drive}/{self.camera}/data/{self.number:010d}"

    @property
    def truth(self) -> str:
        """Its ground truth below `train` or `val`."""
        return f"{self.drive}/proj_depth/groundtruth/{self.camera}/{self.number:010d}.png"


def parse_split(path: Path) -> list[RawFrame]:
    """Reads a split in either published form.

    Raises:
        ValueError: If a line is of neither form.
    """
    frames = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        parts = words[0].strip("/").split("/")
        try:
            if len(parts) == 5:  # date/drive/camera/data/frame.png, truth, focal length
                date, drive, camera, _, file = parts
                frames.append(RawFrame(date, drive, camera, int(Path(file).stem)))
            else:  # date/drive, frame, side
                date, drive = parts
                side = words[2] if len(words) > 2 else "l"
                camera = {"l": "image_02", "r": "image_03"}[side]
                frames.append(RawFrame(date, drive, camera, int(words[1])))
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f'{path}, line {number}: {line!r} is neither "DATE/DRIVE FRAME l|r" nor '
                '"DATE/DRIVE/CAMERA/data/FRAME.png ..."'
            ) from error
    return frames


def truth_file(root: Path, frame: RawFrame) -> Path | None:
    """The improved ground truth of a frame, from any known folder; None if it is missing."""
    bases = ("", "depth", "data_depth_annotated")
    places = [root / base / part for base in bases for part in ("val", "train", "")]
    return next((p / frame.truth for p in places if (p / frame.truth).is_file()), None)


def image_file(root: Path, frame: RawFrame) -> Path | None:
    """The picture of a frame, from any known folder; None if it is missing."""
    files = [root / base / (frame.image + end) for base in ("", "raw") for end in (".png", ".jpg")]
    return next((file for file in files if file.is_file()), None)


def _find(root: Path) -> Iterator[Example]:
    split = next((root / name for name in SPLITS if (root / name).is_file()), None)
    if split is None:
        return
    try:
        frames = parse_split(split)
    except ValueError as error:
        raise SourceError(str(error)) from error
    for frame in frames:
        truth = truth_file(root, frame)
        if truth is not None:
            yield Example(image_file(root, frame) or root / f"{frame.image}.png", truth)


def _read(example: Example, min_depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    depth = read_map(example.label) / 256
    return invert_depth(depth, depth > 0, min_depth=min_depth)


READER = Reader(
    name="kitti",
    units="depth in metres, 16-bit times 256",
    disparity_unit="1/metre",
    invalid="0",
    license="CC BY-NC-SA 3.0",
    published="23,158 (the list of BTS)",
    counts=((23_158, 23_158),),
    layout="""
eigen_train_files.txt           the split: train_files.txt of monodepth2 ("DATE/DRIVE 69 l"), or
                                eigen_train_files_with_gt.txt of BTS; these names are found too
[raw/]2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png      (or .jpg)
[depth/][train/|val/]2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png
""",
    find=_find,
    read=_read,
)

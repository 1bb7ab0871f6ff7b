"""NYU Depth V2, frames of the raw training scenes, on which indoor metric models are tuned.

The reader takes the form that BTS prepared from the raw data with the set's own toolbox (pictures
and depth synchronised and aligned), and that later works train on: a folder for each scene with
`rgb_00045.jpg` and `sync_depth_00045.png`, 16-bit, in millimetres. 0 is unknown, and so is 10 m:
the toolbox clips farther depth to that, and published trainings leave it out. If the list that they
use (24,231 pairs) is in the folder, only its frames are read, otherwise all. The pictures keep the
border that undistorting them left blank; BTS crops it, here it has no depth.

The raw data itself (PGM and PPM, to be projected by the toolbox) is not read; the labeled set
(`nyu_depth_v2_labeled.mat`) is for evaluation, `dafast eval --data nyuv2=FOLDER`.

Sources: https://github.com/cleinc/bts, utils/sync_project_frames_multi_threads.m at d1ed7ca (which
writes these files: names, metres times 1000) and pytorch/bts_dataloader.py at 29d6a32 (which reads
them); `depth_rel2depth_abs.m` of the set's toolbox (the cut at 10 m); the list and its reader in
https://github.com/LiheYoung/Depth-Anything, metric_depth at 2495a75.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.maps import invert_depth, read_map
from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError

_FARTHEST = 10.0  # metres; the toolbox cuts farther depth to this
SPLITS = ("nyudepthv2_train_files_with_gt.txt", "nyudepthv2_train_files.txt")


def _find(root: Path) -> Iterator[Example]:
    split = next((root / name for name in SPLITS if (root / name).is_file()), None)
    if split is None:
        for image in root.rglob("rgb_*.jpg"):
            yield Example(image, image.with_name(f"sync_depth_{image.stem[4:]}.png"))
        return
    bases = [root / base for base in ("", "sync")]
    for number, line in enumerate(split.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise SourceError(f'{split}, line {number}: {line!r} is not "IMAGE DEPTH FOCAL"')
        picture, label = (word.lstrip("/") for word in words[:2])
        base = next((b for b in bases if (b / picture).is_file()), None)
        if base is not None:
            yield Example(base / picture, base / label)


def _read(example: Example, min_depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    depth = read_map(example.label) / 1000
    return invert_depth(depth, depth < _FARTHEST, min_depth=min_depth)


READER = Reader(
    name="nyuv2",
    units="depth in millimetres, 16-bit",
    disparity_unit="1/metre",
    invalid="0; also 10 m and more, to which the toolbox cuts",
    license="not found stated",
    published="24,231 (the list of BTS)",
    counts=((24_231, 24_231),),
    layout="""
[sync/]kitchen_0028b/rgb_00045.jpg
                    /sync_depth_00045.png
nyudepthv2_train_files_with_gt.txt      optional: "/kitchen_0028b/rgb_00045.jpg
                                        /kitchen_0028b/sync_depth_00045.png 518.8579"
""",
    find=_find,
    read=_read,
)

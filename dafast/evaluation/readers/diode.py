"""DIODE's validation set, indoors and outdoors.

Source: the devkit's README and diode.py: X.png, X_depth.npy (float32, metres, H x W x 1) and
X_depth_mask.npy (1 where the sensor returned). The cap, 350 m, is the scanner's range.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import missing, read_npy, read_stored_image, warn_of_count

MAX_DEPTH = 350.0
IMAGES = {"indoors": 325, "outdoor": 446}

LAYOUT = """\
  PATH/[val/]indoors/scene_00019/scan_00183/00019_00183_indoors_000_010.png
                                            00019_00183_indoors_000_010_depth.npy
                                            00019_00183_indoors_000_010_depth_mask.npy
  PATH/[val/]outdoor/...
"""


def diode(root: Path, parts: tuple[str, ...] = ("indoors", "outdoor")) -> Samples:
    """The validation set, or a part of it.

    Args:
        root: Folder as in `LAYOUT`.
        parts: "indoors", "outdoor" or both.

    Raises:
        DataMissingError: If the folder has another layout.
    """
    base = root / "val" if (root / "val").is_dir() else root
    truths = []
    for part in parts:
        found = sorted((base / part).glob("scene_*/scan_*/*_depth.npy"))
        if not found:
            raise missing(root, f"no {part}/scene_*/scan_*/*_depth.npy", LAYOUT)
        warn_of_count(f"diode, {part}", len(found), IMAGES[part])
        truths += found
    for truth in truths:
        for path in _files(truth):
            if not path.is_file():
                raise missing(root, f"no {path.relative_to(root)}", LAYOUT)
    return Samples(truths, _load)


diode_indoors = partial(diode, parts=("indoors",))
diode_outdoor = partial(diode, parts=("outdoor",))


def _files(truth: Path) -> tuple[Path, Path]:
    """The photo and the mask of a depth map."""
    stem = truth.name.removesuffix("_depth.npy")
    return truth.with_name(f"{stem}.png"), truth.with_name(f"{stem}_depth_mask.npy")


def _load(truth: Path) -> EvaluationSample:
    image, mask = _files(truth)
    depth = np.where(read_npy(mask) != 0, read_npy(truth), np.nan).astype(np.float32)
    return EvaluationSample(image.stem, read_stored_image(image), depth, MAX_DEPTH)

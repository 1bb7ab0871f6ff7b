"""SUN RGB-D's 5050 test images.

Source: SUNRGBDtoolbox: a 16-bit PNG in depth_bfx holds millimetres, turned left by three bits
(read3dPoints.m); values beyond 8 m are not trusted there; ``alltest`` of allsplit.mat is the split,
with folders of its authors' machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...files import explain
from ...optional import why_no_module
from ..samples import DataMissingError, EvaluationSample, Samples
from ._files import missing, read_png16, read_stored_image, warn_of_count

MAX_DEPTH = 8.0
IMAGES = 5050
SPLIT = "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"

LAYOUT = f"""\
  PATH/SUNRGBD/kv1/NYUdata/NYU0001/image/NYU0001.jpg            of SUNRGBD.zip
  PATH/SUNRGBD/kv1/NYUdata/NYU0001/depth_bfx/NYU0001.png
  PATH/{SPLIT}              of SUNRGBDtoolbox.zip
"""


def sunrgbd(root: Path) -> Samples:
    """The test images.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If a file or a package is missing.
    """
    if why := why_no_module("scipy.io"):
        raise DataMissingError(f"sunrgbd needs scipy: pip install 'dafast[eval]' ({why})")
    from scipy.io import loadmat

    split = root / SPLIT
    if not split.is_file():
        raise missing(root, f"no {SPLIT}", LAYOUT)
    try:
        folders = [str(cell.item()) for cell in loadmat(split)["alltest"].ravel()]
        names = [folder.rstrip("/").split("SUNRGBD/", 1)[1] for folder in folders]
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{split}: has no alltest as the toolbox does ({explain(error)})"
        ) from error
    entries = []
    for name in names:
        paths = []
        for kind, suffix in (("image", "jpg"), ("depth_bfx", "png")):
            found = sorted((root / "SUNRGBD" / name / kind).glob(f"*.{suffix}"))
            if not found:
                raise missing(root, f"no SUNRGBD/{name}/{kind}/*.{suffix}", LAYOUT)
            paths.append(found[0])
        entries.append((name, *paths))
    warn_of_count("sunrgbd", len(entries), IMAGES)
    return Samples(entries, _load)


def _load(entry: tuple[str, Path, Path]) -> EvaluationSample:
    name, image, truth = entry
    stored = read_png16(truth)
    depth = ((stored >> 3) | (stored << 13)).astype(np.float32) / 1000
    return EvaluationSample(name, read_stored_image(image), depth, MAX_DEPTH)

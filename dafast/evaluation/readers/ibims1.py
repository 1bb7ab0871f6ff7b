"""iBims-1, 100 images.

Source: the evaluation script of its authors: each .mat file holds a struct ``data`` with ``rgb``,
``depth`` in metres, ``mask_invalid`` (0 where depth is not known) and ``mask_transp`` (0 where
something is transparent). The cap, 10 m, is that of ZoeDepth's tables; the set has depths to 50 m.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...files import explain
from ...optional import why_no_module
from ..samples import DataMissingError, EvaluationSample, Samples
from ._files import missing, warn_of_count

MAX_DEPTH = 10.0
IMAGES = 100

LAYOUT = """\
  PATH/[ibims1_core_mat/]corridor_01.mat      of ibims1_core_mat.zip
"""


def ibims1(root: Path) -> Samples:
    """All images.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If a file or a package is missing.
    """
    if why := why_no_module("scipy.io"):
        raise DataMissingError(f"ibims1 needs scipy: pip install 'dafast[eval]' ({why})")
    files = sorted([*root.glob("*.mat"), *root.glob("ibims1_core_mat/*.mat")])
    if not files:
        raise missing(root, "no .mat files", LAYOUT)
    warn_of_count("ibims1", len(files), IMAGES)
    return Samples(files, _load)


def _load(file: Path) -> EvaluationSample:
    from scipy.io import loadmat

    try:
        data = loadmat(file)["data"][0, 0]
        image, depth = data["rgb"], data["depth"].astype(np.float32)
        valid = (data["mask_invalid"] != 0) & (data["mask_transp"] != 0)
    except (KeyError, IndexError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{file}: is not a file of iBims-1 ({explain(error)})") from error
    return EvaluationSample(file.stem, image, np.where(valid, depth, np.nan), MAX_DEPTH)

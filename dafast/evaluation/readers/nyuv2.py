"""NYU Depth V2, the labeled set's 654 test images.

Sources: the data set's page (nyu_depth_v2_labeled.mat, a MATLAB 7.3 file, which is HDF5:
``images`` H x W x 3 x N, ``rawDepths`` and ``depths`` H x W x N in metres, the latter with holes
filled in; HDF5 shows MATLAB's axes in reverse); splits.mat (``testNdxs``, counted from 1); Eigen
et al., NIPS 2014 (the crop). The truth is ``rawDepths``, as BTS prepares the test set.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ...files import explain
from ...optional import why_no_module
from ..samples import DataMissingError, EvaluationSample, Samples
from ._files import missing, warn_of_count

MAX_DEPTH = 10.0
IMAGES = 654
CROP = (45, 471, 41, 601)

LAYOUT = """\
  PATH/nyu_depth_v2_labeled.mat
  PATH/splits.mat                its trainNdxs and testNdxs: the official split
"""


def nyuv2(root: Path) -> Samples:
    """The labeled test images of NYUv2.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If a file or a package is missing.
        ValueError: If a file is not what it should be.
    """
    if why := why_no_module("h5py", "scipy.io"):
        raise DataMissingError(f"nyuv2 needs h5py and scipy: pip install 'dafast[eval]' ({why})")
    import h5py
    from scipy.io import loadmat

    file, splits = root / "nyu_depth_v2_labeled.mat", root / "splits.mat"
    for path in (file, splits):
        if not path.is_file():
            raise missing(root, f"no {path.name}", LAYOUT)
    try:
        numbers = loadmat(splits)["testNdxs"].ravel().astype(int).tolist()
    except (KeyError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{splits}: has no testNdxs as the official split does") from error
    try:
        with h5py.File(file) as data:
            count, shape = data["rawDepths"].shape[0], data["images"].shape
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{file}: is not the labeled set, a MATLAB 7.3 file ({explain(error)})"
        ) from error
    if len(shape) != 4 or shape[1] != 3 or not all(1 <= n <= count for n in numbers):
        raise ValueError(f"{file}: {count} depth maps and images {shape} do not fit {splits}")
    warn_of_count("nyuv2", len(numbers), IMAGES)
    return Samples(numbers, partial(_load, file))


def _load(file: Path, number: int) -> EvaluationSample:
    import h5py

    with h5py.File(file) as data:
        image = np.ascontiguousarray(data["images"][number - 1].T)
        depth = np.ascontiguousarray(data["rawDepths"][number - 1].T).astype(np.float32)
    return EvaluationSample(f"{number:04d}", image, depth, MAX_DEPTH, CROP)

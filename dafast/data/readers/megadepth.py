"""MegaDepth (v1): internet photographs, with depth from structure from motion and stereo.

A label is an HDF5 file with one array, `depth`, in the scene's own unit; 0 is unknown. Part of the
files hold ordinal labels (classes of near and far) under the same name; they have negative values
and give no disparity: their pictures are left out as pictures without labels.

Source: https://github.com/zhengqili/MegaDepth (README.md; issue 1, in which the author says that
dense and ordinal maps are stored under one name) and, for folders and negative values, the
preparation of https://github.com/ubc-vision/COTR (prepare_data.md). The data set's own README on
its project page could not be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.maps import invert_depth
from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError, Unlabeled
from dafast.files import explain


def _find(root: Path) -> Iterator[Example]:
    for folder in root.rglob("depths"):
        images = {path.stem: path for path in (folder.parent / "imgs").glob("*.*")}
        for label in folder.glob("*.h5"):
            # One that is missing is named when it cannot be read.
            missing = folder.parent / "imgs" / f"{label.stem}.jpg"
            yield Example(images.get(label.stem, missing), label)


def _read(example: Example, min_depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    import h5py

    try:
        with h5py.File(example.label, "r") as file:
            if not isinstance(file.get("depth"), h5py.Dataset):
                raise SourceError(f"{example.label.name}: no array 'depth', only {sorted(file)}")
            depth = np.asarray(file["depth"])
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise SourceError(f"{example.label.name}: {explain(error)}") from error
    if depth.ndim != 2 or depth.dtype.kind not in "iuf":
        raise SourceError(f"{example.label.name}: depth of the shape {depth.shape}, {depth.dtype}")
    if depth.size and np.nanmin(depth) < 0:
        raise Unlabeled("ordinal labels, no depth")
    return invert_depth(depth, np.isfinite(depth), min_depth=min_depth)


READER = Reader(
    name="megadepth",
    units="depth in a unit of the scene's own",
    disparity_unit="relative",
    invalid="0; files with negative values (ordinal labels) as a whole",
    license="not found stated; the photographs belong to their authors",
    published="128K (Depth Anything, Table 1)",
    counts=((128_000, 128_999),),
    layout="""
SCENE/dense0/imgs/NAME.jpg
            /depths/NAME.h5
""",
    find=_find,
    read=_read,
    requires="h5py",
)

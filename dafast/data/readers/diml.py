"""DIML/CVL RGB-D: rooms seen by a Kinect v2, streets seen by stereo cameras.

Depth is a 16-bit PNG in millimetres, 0 is unknown. Outdoors it comes with a confidence map of
8 bits; a pixel is valid where that exceeds 0.9 of 255. Both forms of the set are read: the whole,
and a sample with folders of its own (it has each picture as HR and as LR: name one of the two).

Sources: the set's page, https://github.com/dimlrgbd/dimlrgbd.github.io, index.html at 040c967
(counts; outdoor depth is made from disparity), _includes/sampledata.html at 97c5df0 (units, bits,
a confidence map for each picture) and rawdata.html at da8f4f2 (place, date, folder, frame). It
gives neither the folders within an archive nor a threshold, and its report (arXiv 2110.11590) could
not be read. Those follow independent readers: the sample as in the DIML loaders of
https://github.com/LiheYoung/Depth-Anything (metric_depth/zoedepth/data at 2495a75), the whole set
and the threshold as in nndepth's DIMLDataset.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.maps import invert_depth, read_map
from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError

_CONFIDENCE = 0.9 * 255

# Folder and ending of the pictures, of the depth, of the confidence. The ending of `up_png` differs
# within the set.
_FORMS = (
    ("col", "_c.png", "up_png", "_*.png", "", ""),
    ("left", "_left.png", "depth", "_depth.png", "conf", "_conf.png"),
    ("color", "_c.png", "depth_filled", "_depth_filled.png", "", ""),
    ("outleft", ".png", "depthmap", ".png", "confidencemap", ".png"),
)


def _labels(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def _find(root: Path) -> Iterator[Example]:
    listed = functools.cache(_labels)
    for images, ending, depths, depth_ending, masks, mask_ending in _FORMS:
        for image in root.rglob(f"{images}/*{ending}"):
            stem, folder = image.name.removesuffix(ending), image.parent.parent
            mask = folder / masks / f"{stem}{mask_ending}" if masks else None
            label = f"{stem}{depth_ending}"
            if "*" in label:  # the first that begins so, if there is one
                names = listed(folder / depths)
                place = bisect.bisect_left(names, f"{stem}_")
                if names[place : place + 1] and names[place].startswith(f"{stem}_"):
                    label = names[place]
            yield Example(image, folder / depths / label, mask)


def _read(example: Example, min_depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    depth = read_map(example.label)
    known = np.ones(depth.shape, bool)
    if example.mask is not None:
        known = read_map(example.mask) > _CONFIDENCE
        if known.shape != depth.shape:
            raise SourceError(f"the confidence map is {known.shape}, the depth {depth.shape}")
    return invert_depth(depth / 1000.0, known, min_depth=min_depth)


READER = Reader(
    name="diml",
    units="depth in millimetres, 16-bit",
    disparity_unit="1/metre",
    invalid="0; outdoors also a confidence of at most 0.9",
    license="custom",
    published="501,796 indoors and 206,322 outdoors (its page), 927K (Depth Anything, Table 1)",
    counts=((927_000, 927_999), (708_118, 708_118), (501_796, 501_796), (206_322, 206_322)),
    layout="""
indoor/SCENE/DATE/BATCH/col/NAME_c.png
                       /up_png/NAME_*.png
outdoor/SEQUENCE/BATCH/left/NAME_left.png
                      /depth/NAME_depth.png
                      /conf/NAME_conf.png
or, the sample, SCENE/color/NAME_c.png
                     /depth_filled/NAME_depth_filled.png
                outleft/NAME.png, depthmap/NAME.png, confidencemap/NAME.png
""",
    find=_find,
    read=_read,
)

"""TartanAir (V1): renderings of flights through 18 environments, with exact depth.

The reader takes the left camera's picture (8-bit PNG) and depth (.npy, metres along the optical
axis). "In the Unreal Engine, the environment usually has a sky sphere at a large distance. So the
infinite distant object such as the sky has a large depth value (e.g. 10000) instead of an infinite
number": its disparity is then as good as 0, a valid label, and nothing is masked.

Source: README.md and data_type.md of https://github.com/castacks/tartanair_tools. The latter calls
the array 16-bit; other readers find float32. Both types are read.
TartanAir V2 stores its depth in another way and is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.maps import invert_depth, read_stored
from dafast.data.readers._reader import Example, Reader


def _find(root: Path) -> Iterator[Example]:
    for image in root.rglob("image_left/*_left.png"):
        folder = image.parent.parent / "depth_left"
        yield Example(image, folder / f"{image.stem}_depth.npy")


def _read(example: Example, min_depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    depth = read_stored(example.label)
    return invert_depth(depth, np.ones(depth.shape, bool), min_depth=min_depth)


READER = Reader(
    name="tartanair",
    units="depth in metres",
    disparity_unit="1/metre",
    invalid="none; NaN and depth that is not positive are taken as invalid",
    license="CC BY 4.0",
    published="306K (Depth Anything, Table 1)",
    counts=((306_000, 306_999),),
    layout="""
ENVIRONMENT/(ENVIRONMENT/)Easy|Hard/P000/image_left/000000_left.png
                                        /depth_left/000000_left_depth.npy
""",
    find=_find,
    read=_read,
)

"""HRWSI: stereo photographs from the web, with disparity from optical flow and masks.

The reader takes the training part; `val` is left out. A label is an 8-bit gray PNG: disparity up to
scale and shift, large = near. The mask's nonzero pixels are valid.

Sources: the author's answers at https://github.com/KexianHust/Structure-Guided-Ranking-Loss: issue
17 (the label is the horizontal part of the optical flow, taken as disparity), issue 5 (the mask is
the check of the flow forward and backward, and the loss counts where it is set), README.md at
4321034 (the license). They do not describe the folders: these, the names, formats and counts follow
independent readers (pldepth/data/dao/hr_wsi.py of https://github.com/julilien/PLDepth at a64e1eb).
No copy of the set was available for a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.decode import open_picture
from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError


def _find(root: Path) -> Iterator[Example]:
    for image in root.rglob("imgs/*.jpg"):
        if "val" in image.relative_to(root).parts:
            continue
        name, folder = f"{image.stem}.png", image.parent.parent
        yield Example(image, folder / "gts" / name, folder / "valid_masks" / name)


def _gray(path: Path) -> np.ndarray:
    with open_picture(path) as picture:
        if picture.mode not in ("L", "1"):
            raise SourceError(f"{path.name}: of mode {picture.mode}; an 8-bit gray PNG is expected")
        return np.asarray(picture)


def _read(example: Example) -> tuple[np.ndarray, np.ndarray]:
    assert example.mask is not None
    return _gray(example.label).astype(np.float64), _gray(example.mask) != 0


READER = Reader(
    name="hrwsi",
    units="disparity up to scale and shift, 8-bit",
    disparity_unit="relative",
    invalid="0 in the valid mask",
    license="research only",
    published="20,378 for training, 400 for validation",
    counts=((20_378, 20_378),),
    layout="""
train/imgs/NAME.jpg
     /gts/NAME.png
     /valid_masks/NAME.png
""",
    find=_find,
    read=_read,
)

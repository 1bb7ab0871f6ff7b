"""IRS: rendered homes, offices, restaurants and stores, with exact disparity.

The reader takes the left picture `l_NNNNN.png` and its disparity `d_NNNNN.exr`, an OpenEXR file of
one channel, in pixels. The meaning of disparity 0 is not documented; it is read as unknown.

Source: README.md, lists/*.list, dataloader/IRSLoader.py and dataloader/scripts/EXRloader.py of
https://github.com/HKBU-HPML/IRS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError
from dafast.files import explain


def _find(root: Path) -> Iterator[Example]:
    for image in root.rglob("l_*.png"):
        yield Example(image, image.with_name(f"d_{image.stem[2:]}.exr"))


def read_exr(path: Path) -> np.ndarray:
    """The only channel of an OpenEXR file as (H, W) float64.

    Raises:
        SourceError: If it is damaged, not an OpenEXR file, or has several channels.
    """
    import OpenEXR

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(c.pixels) for name, c in file.channels().items()}
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise SourceError(f"{path.name}: {explain(error)}") from error
    if len(channels) != 1:
        raise SourceError(f"{path.name}: the channels {sorted(channels)}; one is expected")
    return next(iter(channels.values())).astype(np.float64)


def _read(example: Example) -> tuple[np.ndarray, np.ndarray]:
    disparity = read_exr(example.label)
    return disparity, disparity > 0


READER = Reader(
    name="irs",
    units="disparity in pixels",
    disparity_unit="relative",
    invalid="none; NaN, infinite and disparity that is not positive are taken as invalid",
    license="custom",
    published="103,316",
    counts=((103_316, 103_316),),
    layout="""
Home|Office|Restaurant|Store/SCENE/l_00001.png
                                  /d_00001.exr
""",
    find=_find,
    read=_read,
    requires="OpenEXR",
)

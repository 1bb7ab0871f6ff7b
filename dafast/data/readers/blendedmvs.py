"""BlendedMVS, and BlendedMVG that includes it: photographs blended with renderings of their scene.

It takes `blended_images/NNNNNNNN.jpg` (not the `_masked` ones) and its rendered depth, a PFM file
in the scene's own unit. Pixels that the scene's mesh does not cover are 0. "The rendered depth
map and blended images might be empty": that picture is left out as one without labels.

Source: README.md of https://github.com/YoYo000/BlendedMVS, which refers to MVSNet for the formats;
PFM: https://www.pauldebevec.com/Research/HDR/PFM. The 0 is not in the README: it is what readers
of the set mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dafast.data.maps import invert_depth
from dafast.data.readers._reader import Example, Reader
from dafast.data.sources import SourceError

_HEADER = re.compile(rb"Pf\s+(\d+)\s+(\d+)\s+(\S+)\s")


def read_pfm(path: Path) -> np.ndarray:
    """A gray PFM file as (H, W) float32, top row first (the file has the bottom row first).

    Raises:
        SourceError: If it is not a gray PFM, or its size differs from its header.
    """
    data = path.read_bytes()
    header = _HEADER.match(data[:100])
    if header is None:
        raise SourceError(f"{path.name}: not a gray PFM file (Pf, width, height, scale)")
    width, height = int(header[1]), int(header[2])
    if len(data) - header.end() != 4 * width * height:
        raise SourceError(
            f"{path.name}: {len(data) - header.end()} bytes of {4 * width * height} for "
            f"{height} x {width} pixels"
        )
    try:
        order = "<" if float(header[3]) < 0 else ">"  # the sign is the byte order, the rest unused
    except ValueError:
        raise SourceError(f"{path.name}: the scale {header[3]!r} is no number") from None
    values = np.frombuffer(data, f"{order}f4", offset=header.end())
    return values.reshape(height, width)[::-1].astype(np.float32)


def _find(root: Path) -> Iterator[Example]:
    for image in root.rglob("blended_images/*.jpg"):
        if not image.stem.endswith("_masked"):
            folder = image.parent.parent / "rendered_depth_maps"
            yield Example(image, folder / f"{image.stem}.pfm")


def _read(example: Example, min_depth: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    depth = read_pfm(example.label)
    return invert_depth(depth, np.isfinite(depth), min_depth=min_depth)


READER = Reader(
    name="blendedmvs",
    units="depth in a unit of the scene's own",
    disparity_unit="relative",
    invalid="0 where there is no mesh; also NaN, infinite and negative depth",
    license="CC BY 4.0",
    published="17K (BlendedMVS) or over 110K (BlendedMVG; Depth Anything has 115K)",
    counts=((17_000, 17_999), (110_000, 119_999)),
    layout="""
PROJECT/blended_images/00000000.jpg
       /rendered_depth_maps/00000000.pfm
""",
    find=_find,
    read=_read,
)

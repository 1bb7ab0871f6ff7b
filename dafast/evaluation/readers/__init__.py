"""Readers of data sets with true depth, one file for each; `READERS` has them by name.

A reader takes the data set's folder and returns its `Samples`. It refuses a folder with another
layout and shows the expected one. Samples are read on access.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..samples import Samples
from .clips import clips
from .ddad import ddad
from .diode import diode, diode_indoors, diode_outdoor
from .eth3d import eth3d
from .hypersim import hypersim
from .ibims1 import ibims1
from .kitti import kitti, kitti_kb
from .listed import listed
from .nyuv2 import nyuv2
from .sintel import sintel
from .sunrgbd import sunrgbd
from .vkitti2 import vkitti2

READERS: dict[str, Callable[[Path], Samples]] = {
    "kitti": kitti,
    "kitti_kb": kitti_kb,
    "nyuv2": nyuv2,
    "list": listed,
    "sintel": sintel,
    "eth3d": eth3d,
    "diode": diode,
    "diode_indoors": diode_indoors,
    "diode_outdoor": diode_outdoor,
    "ddad": ddad,
    "sunrgbd": sunrgbd,
    "ibims1": ibims1,
    "hypersim": hypersim,
    "vkitti2": vkitti2,
    "clips": clips,
}
"""The readers by the name that ``--data NAME=PATH`` takes."""

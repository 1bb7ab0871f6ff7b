"""Files of maps, points and meshes: one module for each format.

Each has a function that writes a file whole, and `read_facts`: the facts in a file that dafast
wrote, or None for any other file and one that is cut off. Facts are a dictionary that JSON can
hold. They say what the values mean (``kind``, ``unit``, the range, the camera), and for results
of `dafast run` what they were made from. NPY and PFM files have no place for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import exr, glb, npz, ply, png, sidecar, tiff

READERS: dict[str, Callable[[Path], dict[str, Any] | None]] = {
    ".png": png.read_facts,
    ".exr": exr.read_facts,
    ".npz": npz.read_facts,
    ".tiff": tiff.read_facts,
    ".ply": ply.read_facts,
    ".glb": glb.read_facts,
    ".json": sidecar.read_facts,
}
"""By suffix in lower case, the function that reads facts."""


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a file of any format, or None if dafast did not write it."""
    reader = READERS.get(path.suffix.lower())
    try:
        facts = None if reader is None else reader(path)
    except Exception:  # damaged, not readable, or of another program
        return None
    return facts if isinstance(facts, dict) else None

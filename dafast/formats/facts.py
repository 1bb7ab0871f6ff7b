"""Reads the facts in a file of any format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import exr, glb, jpeg, npz, ply, png, sidecar, tiff

READERS: dict[str, Callable[[Path], dict[str, Any] | None]] = {
    ".png": png.read_facts,
    ".jpg": jpeg.read_facts,
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

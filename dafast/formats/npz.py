"""NumPy: NPZ with everything of a result, NPY with the map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file
from ._text import TAG, from_text, to_text


def write_npy(path: Path, values: np.ndarray) -> None:
    """Writes an array."""
    with whole_file(path) as file:
        np.save(file, values, allow_pickle=False)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays, not compressed, and the facts as JSON under the name ``dafast``."""
    with whole_file(path) as file:
        np.savez(file, allow_pickle=False, **{TAG: np.array(to_text(facts))}, **arrays)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in an NPZ."""
    with np.load(path, allow_pickle=False) as opened:  # needs the end of the file
        return from_text(str(opened[TAG])) if TAG in opened else None

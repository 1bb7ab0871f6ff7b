"""JSON: the facts of a NPY or PFM file in a file next to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_file
from ._text import TAG, from_text, to_text


def write_sidecar(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes the facts."""
    write_file(path, f'{{"{TAG}": {to_text(facts)}}}\n')


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a file of `write_sidecar`."""
    found = from_text(path.read_text(encoding="utf-8"))
    return None if found is None else found.get(TAG)

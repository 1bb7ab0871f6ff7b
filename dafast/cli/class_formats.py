"""The files that `dafast run` writes of a segmentation model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..formats import npz, png, sidecar
from ..pointcloud import as_bytes
from ..result import strips
from .outputs import Format


@dataclass(frozen=True)
class MadeClasses:
    """The classes of one photo, ready to be written.

    Attributes:
        classes: (H, W) uint8, indices of names.
        names: The names of all classes.
        image: The photo, (H, W, 3), uint8, or float32 in 0..1; None where no result shows it.
        facts: Further facts of the files.
        noted: Always empty.
    """

    classes: np.ndarray
    names: tuple[str, ...]
    image: np.ndarray | None
    facts: dict[str, Any]
    noted: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def facts_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The facts that a file records: the classes and the settings."""
        low, high = int(self.classes.min()), int(self.classes.max())
        facts = {"kind": "classes", "classes": list(self.names), "min": low, "max": high}
        return {**facts, **settings, **self.facts}


def class_colors(count: int) -> np.ndarray:
    """Colours that differ for up to 256 classes, as in the Pascal VOC data: (count, 3) uint8."""
    colors = np.zeros((count, 3), np.uint8)
    numbers = np.arange(count)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((numbers >> channel & 1) << (7 - bit)).astype(np.uint8)
        numbers = numbers >> 3
    return colors


def _save_classes(path: Path, made: MadeClasses, settings: dict[str, Any]) -> None:
    """Writes the indices, with a palette that shows them in colours."""
    image = Image.fromarray(made.classes).convert("P")
    image.putpalette(class_colors(256).tobytes())
    png.write_png(path, image, made.facts_of(settings))


def _save_overlay(path: Path, made: MadeClasses, settings: dict[str, Any]) -> None:
    """Writes the mean of the photo and the colours of its classes."""
    photo, colors = made.image, class_colors(256)
    assert photo is not None  # the format shows it

    def mixed() -> Iterator[tuple[slice, np.ndarray]]:
        for rows in strips(len(made.classes)):
            shown = as_bytes(photo[rows]).astype(np.uint16) + colors[made.classes[rows]]
            yield rows, (shown // 2).astype(np.uint8)

    png.write_pixels(path, (*made.classes.shape, 3), mixed(), made.facts_of(settings))


def _save_array(path: Path, made: MadeClasses, settings: dict[str, Any]) -> None:
    npz.write_npy(path, made.classes)


def _save_facts(path: Path, made: MadeClasses, settings: dict[str, Any]) -> None:
    sidecar.write_sidecar(path, made.facts_of(settings))


FORMATS = {
    "classes": Format("_classes.png", _save_classes),
    "overlay": Format("_overlay.png", _save_overlay, shows_photo=True),
    "npy": Format(".npy", _save_array, holds_facts=False),
    "facts": Format(".json", _save_facts),
}
"""The formats by the name that ``--formats`` takes; ``facts`` accompanies npy."""

DEFAULT = ("classes", "overlay")

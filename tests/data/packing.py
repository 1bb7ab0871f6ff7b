"""Pictures to pack, and the command that packs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dafast.cli import main


def picture(path: Path, rng: np.random.Generator, size=(40, 60), **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = rng.integers(0, 256, (size[0] // 10, size[1] // 10, 1), np.uint8)
    pixels = blocks.repeat(10, 0).repeat(10, 1).repeat(3, 2)  # gray, which JPEG keeps
    Image.fromarray(pixels).save(path, **options)
    return pixels


def make_photos(folder: Path, rng: np.random.Generator) -> Path:
    """Five JPEGs, a PNG in a subfolder, and two files that are not packed."""
    for i in range(5):
        picture(folder / f"{i}.jpg", rng, quality=90)
    picture(folder / "below" / "b.png", rng, (60, 40))
    picture(folder / ".hidden" / "c.png", rng)
    (folder / "notes.txt").write_text("no picture")
    return folder


def pack(source: Path, out: Path, *extra: str) -> int:
    return main(["data", "pack", str(source), "--out", str(out), *extra])

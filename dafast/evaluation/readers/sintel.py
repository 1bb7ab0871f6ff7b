"""MPI Sintel's training scenes with depth.

Source: the depth package's devkit (sintel_io.py): a .dpt file is the float32 202021.25, width and
height as int32, then float32 depth in rows, all little-endian. The final pass is read. Depth is in
Blender's units, called metres.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..samples import EvaluationSample, Samples
from ._files import missing, read_stored_image, warn_of_count

MAX_DEPTH = 70.0
IMAGES = 1064
TAG = 202021.25

LAYOUT = """\
  PATH/training/final/alley_1/frame_0001.png     of MPI-Sintel-training_images.zip
  PATH/training/depth/alley_1/frame_0001.dpt     of MPI-Sintel-depth-training-20150305.zip
"""


def read_dpt(path: Path) -> np.ndarray:
    """Depth of a .dpt file, float32 (H, W).

    Raises:
        ValueError: If the file is not one.
    """
    data = path.read_bytes()
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != TAG:
        raise ValueError(f"{path}: is not a .dpt file (it does not begin with {TAG})")
    width, height = np.frombuffer(data, "<i4", 2, offset=4).tolist()
    if min(width, height) < 1 or len(data) != 12 + 4 * width * height:
        raise ValueError(f"{path}: {width}x{height} does not fit its {len(data)} bytes")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width).astype(np.float32)


def sintel(root: Path) -> Samples:
    """The final pass of all training scenes.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder has another layout.
    """
    base = root / "training"
    truths = sorted(base.glob("depth/*/frame_*.dpt"))
    if not truths:
        raise missing(root, "no training/depth/*/frame_*.dpt", LAYOUT)
    entries = []
    for truth in truths:
        image = base / "final" / truth.parent.name / f"{truth.stem}.png"
        if not image.is_file():
            raise missing(root, f"no {image.relative_to(root)}", LAYOUT)
        entries.append((image, truth))
    warn_of_count("sintel", len(entries), IMAGES)
    return Samples(entries, _load)


def _load(entry: tuple[Path, Path]) -> EvaluationSample:
    image, truth = entry
    name = f"{truth.parent.name}/{truth.stem}"
    return EvaluationSample(name, read_stored_image(image), read_dpt(truth), MAX_DEPTH, sharp=True)

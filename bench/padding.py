"""Measures how each padding changes a prediction: `python bench/padding.py [PHOTO ...]`.

A photo is resized so that the network needs no padding, and predicted. Then each kind of padding
replaces its outermost pixels, 1 to 13 on a side as `fit="pad"` may add them, and the photo is
predicted again. The figure is the mean absolute change of the disparity over the other pixels, in
units of the map's mean absolute deviation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import dafast
from dafast.images import load_image
from dafast.ops import pad, plan_geometry, preprocess
from dafast.ops.pad import PADDINGS


def disturbance(
    model: dafast.DepthAnything, x: torch.Tensor, padding: tuple[int, int, int, int], mode: str
) -> tuple[float, float]:
    """Change of the prediction when the border of ``x`` (1, 3, H, W) becomes padding.

    Returns:
        Over all pixels that are not padding, and over those within 14 pixels of it.
    """
    left, right, top, bottom = padding
    height, width = x.shape[-2:]
    inner = (slice(top, height - bottom), slice(left, width - right))
    with torch.inference_mode():
        before = model(x)[0][inner]
        after = model(pad(x[(..., *inner)], padding, mode=mode))[0][inner]
    spread = (before - before.median()).abs().mean().clamp_min(1e-6)
    change = (after - before).abs() / spread
    near = torch.zeros_like(change, dtype=torch.bool)
    if left + right:
        near[:, :14], near[:, -14:] = True, True
    if top + bottom:
        near[:14], near[-14:] = True, True
    return change.mean().item(), change[near].mean().item()


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Command line; returns the mean disturbance of each padding, everywhere and near it."""
    parser = argparse.ArgumentParser(description=__doc__)
    photos = Path(__file__).resolve().parent.parent / "examples" / "photos"
    parser.add_argument("photos", nargs="*", type=Path, default=sorted(photos.glob("*.jpg")))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    model = dafast.DepthAnything.from_pretrained(options.model, dtype="float32")
    rng = np.random.default_rng(options.seed)
    size = model.config.image_size // 14 * 14
    found: dict[str, list[tuple[float, float]]] = {mode: [] for mode in PADDINGS}
    for path in options.photos:
        image = torch.from_numpy(load_image(path).copy())
        rows, columns = (n // 14 * 14 for n in plan_geometry(*image.shape[:2], size=size).resized)
        image = image.permute(2, 0, 1)[None].float() / 255
        image = torch.nn.functional.interpolate(
            image, (rows, columns), mode="bilinear", antialias=True
        )
        x, _ = preprocess(image[0], size=min(rows, columns))
        for extra in rng.integers(1, 14, 4):
            split = (int(extra) // 2, int(extra) - int(extra) // 2)
            for padding in ((*split, 0, 0), (0, 0, *split)):
                for mode in PADDINGS:
                    found[mode].append(disturbance(model, x.to(model.device), padding, mode))
    means = {mode: tuple(np.mean(values, axis=0).tolist()) for mode, values in found.items()}
    print(f"{options.model}, {len(options.photos)} photos: change over mean absolute deviation")
    for mode, (everywhere, near) in sorted(means.items(), key=lambda item: item[1]):
        print(f"{mode:>10}  everywhere {everywhere:.4f}  within 14 px of the padding {near:.4f}")
    return means


if __name__ == "__main__":
    main()

"""Predicts the depth of photos and saves one color picture for each.

python examples/predict.py examples/photos/*.jpg --out depth
"""

import argparse
from pathlib import Path

from PIL import Image

import dafast
from dafast.palettes import colorize

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photos", nargs="+", type=Path)
parser.add_argument("--out", type=Path, default=Path("depth"))
parser.add_argument("--model", default="nano", help="preset, hub id, file or folder")
args = parser.parse_args()

model = dafast.DepthAnything.from_pretrained(args.model)
args.out.mkdir(parents=True, exist_ok=True)
for photo, disparity in zip(args.photos, model.infer(args.photos), strict=True):
    # Disparity is relative: large is near. Its scale and shift are unknown.
    low, high = disparity.min(), disparity.max()
    normalized = (disparity - low) / max(high - low, 1e-6)
    path = args.out / f"{photo.stem}.png"
    Image.fromarray(colorize(normalized, "Spectral_r")).save(path)
    print(f"{path}: disparity {low:.3g} to {high:.3g}")

"""Renders pictures with exact depth, and their list, my-pictures.csv, to try `dafast train`.

python examples/rendered_pictures.py --count 40 --out my-pictures
dafast train --config finetune-nano --data.path my-pictures.csv
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from dafast.synthetic import render_scene

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--count", type=int, default=40)
parser.add_argument("--out", type=Path, default=Path("my-pictures"), help="folder of the pictures")
args = parser.parse_args()

args.out.mkdir(parents=True, exist_ok=True)
table = args.out.with_suffix(".csv")
with table.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "depth"])  # names are relative to the list; depth is in metres
    for seed in range(args.count):
        scene = render_scene(seed, size=(224, 168))
        Image.fromarray(scene.image).save(args.out / f"{seed:04}.png")
        np.save(args.out / f"{seed:04}.npy", scene.depth)
        writer.writerow([f"{args.out.name}/{seed:04}.png", f"{args.out.name}/{seed:04}.npy"])
print(f"{table}: {args.count} pictures")

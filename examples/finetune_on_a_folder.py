"""Fine-tunes a model on a folder: FOLDER/image/NAME.jpg and FOLDER/depth/NAME.png (16 bit, mm).

    python examples/finetune_on_a_folder.py my-pictures --steps 500
    dafast run photo.jpg --model runs/finetune/export --out depth

Options it does not know go to `dafast train`, for example --batch-size 4.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("--model", default="vits", help="preset to start from")
args, options = parser.parse_known_args()

depths = {path.stem: path for path in (args.folder / "depth").glob("*.png")}
photos = sorted(p for p in (args.folder / "image").iterdir() if p.stem in depths)
if not photos:
    raise SystemExit(f"{args.folder}: no image/NAME.* with a depth/NAME.png of the same name")

table = args.folder / "pictures.csv"
with table.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "depth", "scale"])  # depth in metres = value * scale; 0 is unknown
    writer.writerows([p.resolve(), depths[p.stem].resolve(), 0.001] for p in photos)

command = [sys.executable, "-m", "dafast.train", "--config", "finetune"]
command += ["--data.path", str(table), "--model.preset", args.model, "--model.init", args.model]
raise SystemExit(subprocess.run([*command, *options]).returncode)

"""Turns one photo into a colored point cloud in metres (PLY, opens in MeshLab or Blender).

    python examples/point_cloud.py photo.jpg --model v2-metric-hypersim-vits --fov 60

The model must be a metric one: relative disparity has no unit.
"""

import argparse
from pathlib import Path

import dafast

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("photo", type=Path)
parser.add_argument("--model", default="v2-metric-hypersim-vits", help="a metric model")
parser.add_argument("--fov", type=float, default=60.0, help="horizontal field of view, degrees")
parser.add_argument("--out", type=Path, default=Path("cloud.ply"))
args = parser.parse_args()

model = dafast.DepthAnything.from_pretrained(args.model)
cloud = model.infer_metric(args.photo, fov=args.fov)
cloud.save(args.out)
print(
    f"{args.out}: {len(cloud.points)} points, {cloud.depth.min():.2f} to {cloud.depth.max():.2f} m"
)

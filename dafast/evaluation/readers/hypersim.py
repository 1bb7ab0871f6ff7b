"""Hypersim's test split.

Source: the README of apple/ml-hypersim: depth_meters.hdf5 holds under "dataset" the distance of
each point to the camera's centre, in metres; NaN where there is nothing; 1024 x 768 pixels, focal
length 886.81 pixels, so depth = distance * 886.81 / |(x, y, 886.81)| with x and y from the middle
of the image. The split is metadata_images_split_scene_v1.csv of its repository. The focal length
is that of the standard camera; scenes whose camera is tilted or shifted are slightly off.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ...optional import why_no_module
from ..samples import DataMissingError, EvaluationSample, Samples
from ._files import missing, read_stored_image

MAX_DEPTH = 80.0
HEIGHT, WIDTH, FOCAL = 768, 1024, 886.81
SPLIT = "metadata_images_split_scene_v1.csv"

LAYOUT = f"""\
  PATH/{SPLIT}
  PATH/ai_001_010/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg
  PATH/ai_001_010/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5
"""


def hypersim(root: Path) -> Samples:
    """The test images of the public release.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If a file or a package is missing.
    """
    if why := why_no_module("h5py"):
        raise DataMissingError(f"hypersim needs h5py: pip install 'dafast[eval]' ({why})")
    if not (root / SPLIT).is_file():
        raise missing(root, f"no {SPLIT}", LAYOUT)
    entries = []
    with (root / SPLIT).open(newline="") as file:
        for row in csv.DictReader(file):
            if row["split_partition_name"] != "test" or row["included_in_public_release"] != "True":
                continue
            scene, camera, frame = row["scene_name"], row["camera_name"], int(row["frame_id"])
            base = root / scene / "images" / f"scene_{camera}_"
            image = Path(f"{base}final_preview") / f"frame.{frame:04d}.tonemap.jpg"
            truth = Path(f"{base}geometry_hdf5") / f"frame.{frame:04d}.depth_meters.hdf5"
            for path in (image, truth):
                if not path.is_file():
                    raise missing(root, f"no {path.relative_to(root)}", LAYOUT)
            entries.append((f"{scene}/{camera}/{frame:04d}", image, truth))
    if not entries:
        raise missing(root, f"{SPLIT} names no test image", LAYOUT)
    return Samples(entries, _load)


def _load(entry: tuple[str, Path, Path]) -> EvaluationSample:
    import h5py

    name, image, truth = entry
    with h5py.File(truth) as file:
        distance = file["dataset"][:].astype(np.float64)
    if distance.shape != (HEIGHT, WIDTH):
        raise ValueError(f"{truth}: is {distance.shape}, not {(HEIGHT, WIDTH)}")
    x = np.arange(WIDTH) - (WIDTH - 1) / 2
    y = np.arange(HEIGHT)[:, None] - (HEIGHT - 1) / 2
    depth = distance * FOCAL / np.sqrt(x**2 + y**2 + FOCAL**2)
    return EvaluationSample(
        name, read_stored_image(image), depth.astype(np.float32), MAX_DEPTH, sharp=True
    )

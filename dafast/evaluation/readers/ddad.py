"""DDAD's validation set, the front camera.

Sources: the README of TRI-ML/DDAD and the message definitions and depth projection of TRI-ML/dgp
(proto/*.proto, utils/camera.py). Depth is the lidar's points seen from the camera: each point
marks the pixel that it falls into, a later point replaces an earlier one, as in dgp. Lens
distortion is not modelled (dgp's projection does not either). The cap, 80 m, is common but not the
set's own: its lidar reaches 250 m.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...files import explain
from ..samples import EvaluationSample, Samples
from ._files import missing, read_stored_image, warn_of_count

MAX_DEPTH = 80.0
IMAGES = 3950
CAMERA, LIDAR = "camera_01", "lidar"
VALIDATION = "1"  # dgp's DatasetSplit.VAL

LAYOUT = """\
  PATH/ddad.json                                 its scene_splits["1"] is the validation set
  PATH/000150/scene_*.json
  PATH/000150/calibration/*.json
  PATH/000150/rgb/CAMERA_01/*.png
  PATH/000150/point_cloud/LIDAR/*.npz
"""


def ddad(root: Path) -> Samples:
    """The front camera's images of the validation scenes.

    Args:
        root: The folder of ddad.json, as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder has another layout.
        ValueError: If a file is not as dgp's definitions have it.
    """
    index = root / "ddad.json"
    if not index.is_file():
        raise missing(root, "no ddad.json", LAYOUT)
    try:
        splits = json.loads(index.read_text(encoding="utf-8"))["scene_splits"]
        scenes = splits[VALIDATION]["filenames"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index}: has no validation split ({explain(error)})") from error
    entries = []
    for name in scenes:
        path = root / name
        if not path.is_file():
            raise missing(root, f"no {name}", LAYOUT)
        try:
            entries += _scene_entries(path)
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise ValueError(f"{path}: is not a scene of dgp's format ({error!r})") from error
    warn_of_count("ddad", len(entries), IMAGES)
    return Samples(entries, _load)


def _scene_entries(path: Path) -> list[tuple[Path, dict[str, Any], dict[str, Any], Path]]:
    """Scene folder, the camera's and the lidar's record, and calibration of each sample."""
    scene = json.loads(path.read_text(encoding="utf-8"))
    data = {d["key"]: d for d in scene["data"]}
    entries = []
    for sample in scene["samples"]:
        named = {data[k]["id"]["name"].lower(): data[k]["datum"] for k in sample["datum_keys"]}
        calibration = path.parent / "calibration" / f"{sample['calibration_key']}.json"
        image, points = named[CAMERA]["image"], named[LIDAR]["point_cloud"]
        entries.append((path.parent, image, points, calibration))
    return entries


def _matrix(pose: dict[str, Any]) -> np.ndarray:
    """The 4 x 4 matrix of a pose: out of the sensor's frame into the scene's."""
    # Values that are 0 may be left out of JSON.
    w, x, y, z = (pose.get("rotation", {}).get(k, 0.0) for k in ("qw", "qx", "qy", "qz"))
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = [pose.get("translation", {}).get(k, 0.0) for k in "xyz"]
    return matrix


def _load(entry: tuple[Path, dict[str, Any], dict[str, Any], Path]) -> EvaluationSample:
    folder, image, points, calibration = entry
    pixels = read_stored_image(folder / image["filename"])
    record = json.loads(calibration.read_text(encoding="utf-8"))
    k = record["intrinsics"][[name.lower() for name in record["names"]].index(CAMERA)]
    with np.load(folder / points["filename"]) as file:
        xyz = file["data"][:, :3].astype(np.float64)
    to_camera = np.linalg.inv(_matrix(image["pose"])) @ _matrix(points["pose"])
    x, y, z = to_camera[:3, :3] @ xyz.T + to_camera[:3, 3:]
    x, y, z = (a[z > 0] for a in (x, y, z))
    u = ((k["fx"] * x + k.get("skew", 0.0) * y) / z + k["cx"]).astype(int)
    v = (k["fy"] * y / z + k["cy"]).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < pixels.shape[1]) & (v < pixels.shape[0])
    depth = np.zeros(pixels.shape[:2], np.float32)
    depth[v[inside], u[inside]] = z[inside]
    name = f"{folder.name}/{Path(image['filename']).stem}"
    return EvaluationSample(name, pixels, depth, MAX_DEPTH)

"""Data sets that need no path.

`builtin` holds real photographs with measured disparity that Python and Debian packages carry;
`synthetic` renders held-out scenes with seeds that training never uses.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._warnings import DataWarning, warn
from ..files import explain
from ..optional import why_no_module
from .samples import DataMissingError, EvaluationSample, Samples

SYNTHETIC_SCENES = 500
SYNTHETIC_MAX_DEPTH = 80.0
STEREO_MAX_DEPTH = 20.0
"""Both stereo scenes are rooms a few metres deep; the cap only bounds wild predictions."""


def stereo_depth(
    disparity: np.ndarray, *, focal: float, baseline: float, offset: float
) -> np.ndarray:
    """Depth of a rectified stereo pair: focal * baseline / (disparity + offset).

    Args:
        disparity: (H, W), pixels; 0, NaN or inf where unknown.
        focal: Focal length, pixels.
        baseline: Distance of the cameras, metres.
        offset: Difference of the principal points (or crop offset), pixels.

    Returns:
        float32 (H, W), metres, NaN where unknown.
    """
    disparity = disparity.astype(np.float64)
    known = np.isfinite(disparity) & (disparity > 0)
    depth = np.full(disparity.shape, np.nan)
    depth[known] = focal * baseline / (disparity[known] + offset)
    return depth.astype(np.float32)


def motorcycle() -> Sequence[EvaluationSample]:
    """Middlebury 2014 "Motorcycle", shipped with scikit-image (CC0), a quarter of full size.

    Calibration from `skimage.data.stereo_motorcycle`: focal length 994.978 px, baseline
    0.193001 m, principal points 31.086 px apart.

    Raises:
        DataMissingError: If scikit-image is not installed.
    """
    if why := why_no_module("skimage.data"):
        raise DataMissingError(
            f"motorcycle comes with scikit-image: pip install 'dafast[eval]' ({why})"
        )
    from skimage.data import stereo_motorcycle

    left, _, disparity = stereo_motorcycle()
    depth = stereo_depth(disparity, focal=994.978, baseline=0.193001, offset=31.086)
    return [EvaluationSample("motorcycle", left, depth, STEREO_MAX_DEPTH)]


ALOE_FOLDERS = (
    "/usr/share/doc/opencv-doc/examples/data",
    "/usr/share/doc/opencv-doc/examples/samples/data",
    "/usr/share/opencv4/samples/data",
)


def aloe() -> Sequence[EvaluationSample]:
    """Middlebury 2006 "Aloe" as OpenCV's samples carry it (Debian's package opencv-doc).

    Looked for in Debian's folders, or in the folder that the environment variable
    ``DAFAST_OPENCV_SAMPLES`` names. Calibration of the Middlebury 2006 sets: focal length
    3740 px, baseline 0.16 m; the pair was cropped, which took 270 px off the disparities
    (the set's dmin.txt).

    Raises:
        DataMissingError: If the files are not found.
    """
    from ..images import load_image

    folders = [os.environ.get("DAFAST_OPENCV_SAMPLES", ""), *ALOE_FOLDERS]
    for folder in map(Path, filter(None, folders)):
        if (folder / "aloeL.jpg").is_file() and (folder / "aloeGT.png").is_file():
            disparity = load_image(folder / "aloeGT.png")[..., 0]
            depth = stereo_depth(disparity, focal=3740, baseline=0.16, offset=270)
            image = load_image(folder / "aloeL.jpg")
            return [EvaluationSample("aloe", image, depth, STEREO_MAX_DEPTH)]
    raise DataMissingError(
        "aloeL.jpg and aloeGT.png come with Debian's opencv-doc (apt-get install opencv-doc), or "
        "set DAFAST_OPENCV_SAMPLES to a folder that has them"
    )


def builtin() -> Sequence[EvaluationSample]:
    """The real photographs with measured disparity; a missing one is named and left out.

    Raises:
        DataMissingError: If all are missing.
    """
    samples: list[EvaluationSample] = []
    missing = []
    for scene in (motorcycle, aloe):
        try:
            samples += scene()
        except DataMissingError as error:
            missing.append(str(error))
    if not samples:
        raise DataMissingError("; ".join(missing))
    for text in missing:
        warn(DataWarning, f"builtin: {text}")
    return samples


def synthetic(scenes: int = SYNTHETIC_SCENES) -> Samples:
    """Held-out synthetic scenes, rendered on the fly; the same ones on every machine.

    Raises:
        DataMissingError: If the renderer's packages are not installed.
    """
    try:
        from ..synthetic import HELD_OUT_SEED, render_scene
    except ImportError as error:
        raise DataMissingError(f"synthetic scenes: {explain(error)}") from error

    def render(seed: int) -> EvaluationSample:
        try:
            sample = render_scene(seed)
        except ImportError as error:
            raise DataMissingError(f"synthetic scenes: {explain(error)}") from error
        return EvaluationSample(
            str(seed), sample.image, sample.depth, SYNTHETIC_MAX_DEPTH, sharp=True
        )

    return Samples(range(HELD_OUT_SEED, HELD_OUT_SEED + scenes), render)

"""Data sets with true depth, and the score of a model on them beside two baselines.

`builtin` holds real photographs with measured disparity that Python and Debian packages carry;
`synthetic` renders held-out scenes with seeds that training never uses.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .alignment import align_disparity, constant_baseline, plane_baseline
from .metrics import depth_metrics, valid_depth

if TYPE_CHECKING:
    from ..models import DepthAnything

logger = logging.getLogger("dafast")

METRICS = ("abs_rel", "delta_1", "delta_2", "delta_3", "rmse", "log10", "silog")
SYNTHETIC_SCENES = 500
SYNTHETIC_MAX_DEPTH = 80.0
STEREO_MAX_DEPTH = 20.0
"""Both stereo scenes are rooms a few metres deep; the cap only bounds wild predictions."""


@dataclass(frozen=True)
class EvaluationSample:
    """One photo with its truth.

    Attributes:
        name: Key within its data set.
        image: uint8 (H, W, 3), RGB.
        depth: float32 (H, W), metres; inf or NaN where unknown or infinitely far.
        max_depth: Cap in metres.
    """

    name: str
    image: np.ndarray
    depth: np.ndarray
    max_depth: float


@dataclass(frozen=True)
class Result:
    """Scores of one predictor on one data set.

    Attributes:
        data: Data set.
        predictor: The model's name, ``"constant"`` or ``"plane"``.
        count: Images.
        metrics: Mean over the images of each of `METRICS`.
    """

    data: str
    predictor: str
    count: int
    metrics: dict[str, float]


class DataMissingError(FileNotFoundError):
    """A data set is not on this machine; the message says how to get it."""


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


def motorcycle() -> Iterator[EvaluationSample]:
    """Middlebury 2014 "Motorcycle", shipped with scikit-image (CC0), a quarter of full size.

    Calibration from `skimage.data.stereo_motorcycle`: focal length 994.978 px, baseline
    0.193001 m, principal points 31.086 px apart.

    Raises:
        DataMissingError: If scikit-image is not installed.
    """
    try:
        from skimage.data import stereo_motorcycle
    except ImportError as error:
        raise DataMissingError(
            "motorcycle comes with scikit-image: pip install dafast[eval]"
        ) from error
    left, _, disparity = stereo_motorcycle()
    depth = stereo_depth(disparity, focal=994.978, baseline=0.193001, offset=31.086)
    yield EvaluationSample("motorcycle", left, depth, STEREO_MAX_DEPTH)


ALOE_FOLDERS = (
    "/usr/share/doc/opencv-doc/examples/data",
    "/usr/share/doc/opencv-doc/examples/samples/data",
    "/usr/share/opencv4/samples/data",
)


def aloe() -> Iterator[EvaluationSample]:
    """Middlebury 2006 "Aloe" as OpenCV's samples carry it (Debian's package opencv-doc).

    Looked for in Debian's folders, or in the folder that the environment variable
    ``DAFAST_OPENCV_SAMPLES`` names. Calibration of the Middlebury 2006 sets: focal length
    3740 px, baseline 0.16 m; the pair was cropped, which took 270 px off the disparities
    (the set's dmin.txt).

    Raises:
        DataMissingError: If the files are nowhere.
    """
    from ..inference import load_image

    folders = [os.environ.get("DAFAST_OPENCV_SAMPLES", ""), *ALOE_FOLDERS]
    for folder in map(Path, filter(None, folders)):
        if (folder / "aloeL.jpg").is_file() and (folder / "aloeGT.png").is_file():
            disparity = load_image(folder / "aloeGT.png")[..., 0]
            depth = stereo_depth(disparity, focal=3740, baseline=0.16, offset=270)
            yield EvaluationSample(
                "aloe", load_image(folder / "aloeL.jpg"), depth, STEREO_MAX_DEPTH
            )
            return
    raise DataMissingError(
        "aloeL.jpg and aloeGT.png come with Debian's opencv-doc (apt-get install opencv-doc), or "
        "set DAFAST_OPENCV_SAMPLES to a folder that has them"
    )


def builtin() -> Iterator[EvaluationSample]:
    """The real photographs with measured disparity; one that is missing is named and left out.

    Raises:
        DataMissingError: If none is there.
    """
    missing = []
    for scene in (motorcycle, aloe):
        try:
            yield from scene()
        except DataMissingError as error:
            missing.append(str(error))
            logger.warning("builtin: %s", error)
    if len(missing) == 2:
        raise DataMissingError("; ".join(missing))


def synthetic(scenes: int = SYNTHETIC_SCENES) -> Iterator[EvaluationSample]:
    """Held-out synthetic scenes, rendered on the fly; the same ones on every machine.

    Raises:
        DataMissingError: If the renderer's packages are not installed.
    """
    try:
        from ..data.synthetic import HELD_OUT_SEED, render_scene
    except ImportError as error:
        raise DataMissingError(f"synthetic scenes: {error}") from error
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + scenes):
        try:
            sample = render_scene(seed)
        except ImportError as error:
            raise DataMissingError(f"synthetic scenes: {error}") from error
        yield EvaluationSample(str(seed), sample.image, sample.depth, SYNTHETIC_MAX_DEPTH)


DATA: dict[str, Callable[[], Iterator[EvaluationSample]]] = {
    "builtin": builtin,
    "motorcycle": motorcycle,
    "aloe": aloe,
    "synthetic": synthetic,
}
"""The data sets by name."""


def score(
    model: DepthAnything, samples: Iterable[EvaluationSample], data: str
) -> tuple[list[Result], dict[str, dict[str, dict[str, float]]]]:
    """Scores a model and the two baselines.

    Each prediction is fitted to the truth by least squares in disparity space, over the valid
    pixels, image by image, at the photo's resolution; metrics are averaged over the images.

    Args:
        model: A relative model.
        samples: Photos with truth; one without a valid pixel is left out with a warning.
        data: Name for the results.

    Returns:
        The mean results of the model, the constant and the plane; and the metrics per image,
        `[predictor][sample name]`.

    Raises:
        ValueError: If no sample has a valid pixel.
    """
    per_image: dict[str, dict[str, dict[str, float]]] = {}
    for sample in samples:
        mask = valid_depth(sample.depth, sample.max_depth)
        if not mask.any():
            logger.warning("%s/%s: no valid pixel; left out", data, sample.name)
            continue
        disparity = np.zeros(sample.depth.shape)
        disparity[mask] = 1 / sample.depth[mask].astype(np.float64)
        predictions = {
            model.config.name: align_disparity(model.infer(sample.image), disparity, mask),
            "plane": plane_baseline(disparity, mask),
            "constant": constant_baseline(disparity, mask),
        }
        for predictor, aligned in predictions.items():
            per_image.setdefault(predictor, {})[sample.name] = depth_metrics(
                aligned, sample.depth, mask, max_depth=sample.max_depth
            )
    if not per_image:
        raise ValueError(f"{data}: no image with a valid pixel")
    results = [
        Result(
            data,
            predictor,
            len(rows),
            {m: float(np.mean([row[m] for row in rows.values()])) for m in METRICS},
        )
        for predictor, rows in per_image.items()
    ]
    return results, per_image


def evaluate(model: DepthAnything, data: Iterable[str]) -> list[Result]:
    """Scores a model on data sets by name; `builtin` is reported photo by photo as well.

    Args:
        model: A relative model.
        data: Names from `DATA`.

    Returns:
        One result per data set and predictor.

    Raises:
        DataMissingError: If a data set is not there.
        ValueError: If a name is unknown.
    """
    names = list(data)
    unknown = [name for name in names if name not in DATA]
    if unknown:
        raise ValueError(f"no data set {', '.join(unknown)}; there are: {', '.join(DATA)}")
    results = []
    for name in names:
        means, per_image = score(model, DATA[name](), name)
        if 1 < means[0].count <= 4:
            results += [
                Result(f"{name}/{key}", predictor, 1, metrics)
                for predictor, rows in per_image.items()
                for key, metrics in rows.items()
            ]
        results += means
    return results

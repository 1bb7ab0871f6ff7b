"""Pinhole cameras: intrinsics in pixels, from angles and from EXIF data, and their checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._warnings import DataWarning, warn
from .config import ModelConfig
from .geometry import Geometry


class Intrinsics(NamedTuple):
    """A pinhole camera, in pixels.

    The centre of the pixel in row r and column c is at (c + 0.5, r + 0.5). OpenCV's calibrations
    have it at (c, r): add 0.5 to their cx and cy.

    Attributes:
        fx: Focal length divided by the width of a pixel.
        fy: Focal length divided by the height of a pixel.
        cx: Column of the optical axis.
        cy: Row of the optical axis.
    """

    fx: float
    fy: float
    cx: float
    cy: float


LEAST_FOV = 0.001
"""The smallest field of view in degrees; the focal length of a smaller one may be infinite."""


def check_fov(fov: float) -> None:
    """Raises a ValueError unless fov is an angle in degrees from `LEAST_FOV` to under 180."""
    try:
        good = not isinstance(fov, str) and LEAST_FOV <= float(fov) < 180
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"fov is the horizontal angle in degrees, from {LEAST_FOV} to under 180; got {fov!r}"
        )


def intrinsics_from_fov(fov: float, height: int, width: int) -> Intrinsics:
    """The camera whose axis meets the middle of a picture.

    Args:
        fov: Horizontal field of view in degrees, from `LEAST_FOV` to under 180.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.

    Raises:
        ValueError: If the angle is out of range.
    """
    check_fov(fov)
    focal = 0.5 * width / math.tan(math.radians(fov) / 2)
    return Intrinsics(focal, focal, width / 2, height / 2)


_DIAGONAL_35MM = math.hypot(36, 24)


def intrinsics_from_35mm(focal: float, height: int, width: int) -> Intrinsics:
    """The camera with a focal length in terms of 35 mm film, as EXIF data have it.

    The diagonal of the picture corresponds to that of the film, which is right for a picture that
    was not cropped after it was taken.

    Args:
        focal: FocalLengthIn35mmFilm in millimetres, above 0.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
    """
    pixels = focal * math.hypot(height, width) / _DIAGONAL_35MM
    return Intrinsics(pixels, pixels, width / 2, height / 2)


def check_intrinsics(intrinsics: Sequence[float] | np.ndarray) -> Intrinsics:
    """Reads (fx, fy, cx, cy), or the 3 x 3 matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]].

    Raises:
        ValueError: If it is neither, the focal lengths are not positive, or the matrix is not that
            of a pinhole camera: transposed, scaled, or with a skew above a thousandth of fx.
    """
    form = (
        "intrinsics are (fx, fy, cx, cy) in pixels, or a 3 x 3 matrix [[fx, 0, cx], [0, fy, cy], "
    )
    form += "[0, 0, 1]], with fx and fy above 0"
    try:
        values = np.asarray(intrinsics, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{form}; got {intrinsics!r}") from error
    if values.shape == (3, 3):
        matrix, values = values, values[[0, 1, 0, 1], [0, 1, 2, 2]]
        if reason := _why_no_camera(matrix):
            raise ValueError(f"{form}; {reason}: {matrix.tolist()}")
    if values.shape != (4,) or not np.isfinite(values).all() or min(values[:2]) <= 0:
        raise ValueError(f"{form}; got {np.asarray(intrinsics).tolist()}")
    return Intrinsics(*values.tolist())


def _why_no_camera(matrix: np.ndarray) -> str:
    """Why a 3 x 3 matrix is not that of a pinhole camera; "" if it is."""
    if not np.isfinite(matrix).all():
        return "the matrix has an entry that is not finite"
    near = 1e-6 * np.abs(matrix).max()
    if np.abs(matrix.T[2] - (0, 0, 1)).max() <= near and np.abs(matrix[2, :2]).max() > near:
        return "the matrix is transposed"
    if np.abs(matrix[2] - (0, 0, 1)).max() > 1e-6:
        return "the last row of the matrix is not (0, 0, 1)"
    if abs(matrix[1, 0]) > near:
        return "the matrix has an entry below its diagonal"
    if abs(matrix[0, 1]) > 1e-3 * abs(matrix[0, 0]):
        return "the matrix has a skew, which is not supported (rectify the picture first)"
    return ""


@functools.lru_cache(maxsize=64)  # one warning for all frames of a video
def warn_of_camera(camera: Intrinsics, height: int, width: int) -> None:
    """Warns of a camera that a picture of this size is unlikely to have."""
    problems = []
    degrees = 2 * math.degrees(math.atan(width / (2 * camera.fx)))
    if min(camera.fx / width, camera.fy / height) < 0.1:
        problems.append(
            f"the focal length ({camera.fx:g}, {camera.fy:g}) is under a tenth of the picture's "
            "size; is it in millimetres, or relative to the width? It must be in pixels"
        )
    if degrees < 5:
        problems.append(
            f"the field of view is {degrees:.3g} degrees; was it given in radians, or the focal "
            "length for a larger picture?"
        )
    if not (0 <= camera.cx <= width and 0 <= camera.cy <= height):
        problems.append(
            f"the centre ({camera.cx:g}, {camera.cy:g}) is outside the picture; are the "
            "intrinsics those of a picture of another size?"
        )
    for problem in problems:
        warn(DataWarning, f"camera of a picture of {width}x{height} pixels: {problem}")


CAMERA_SOURCES = ("given", "fov", "exif", "assumed", "none")
"""Where the intrinsics of a result come from: the caller's intrinsics or angle, the EXIF data of
the photo, an assumption, or nowhere."""

ASSUMED_35MM = 28.0
"""Focal length in millimetres in terms of 35 mm film that is assumed for a photo without EXIF data:
the main cameras of phones have 24 to 28 mm."""


def choose_camera(
    height: int,
    width: int,
    *,
    intrinsics: Sequence[float] | np.ndarray | None = None,
    fov: float | None = None,
    focal_35mm: float | None = None,
) -> tuple[Intrinsics, str]:
    """The camera of a photo from what is known of it, and where it comes from.

    Args:
        height: Height of the photo in pixels.
        width: Width of the photo in pixels.
        intrinsics: The camera, as for `check_intrinsics`.
        fov: The horizontal field of view in degrees, instead of ``intrinsics``.
        focal_35mm: The focal length of the EXIF data; it serves if there is neither.

    Returns:
        The intrinsics, and one of `CAMERA_SOURCES`. Without any information the camera has a focal
        length of `ASSUMED_35MM`.

    Raises:
        ValueError: If both ``intrinsics`` and ``fov`` are given, or one of them is not valid.
    """
    if intrinsics is not None and fov is not None:
        raise ValueError("intrinsics and fov both describe the camera: pass one of them")
    if intrinsics is None and fov is None:
        source = "assumed" if focal_35mm is None else "exif"
        return intrinsics_from_35mm(focal_35mm or ASSUMED_35MM, height, width), source
    if fov is None:
        camera, source = check_intrinsics(intrinsics), "given"  # type: ignore[arg-type]
    else:
        camera, source = intrinsics_from_fov(fov, height, width), "fov"
    warn_of_camera(camera, height, width)
    return camera, source


def focal_factor(focal_length: float, camera: Intrinsics, geometry: Geometry) -> float:
    """Factor that turns the output of a model with a `ModelConfig.focal_length` into metres.

    It is the camera's focal length in pixels of the network's input, the mean of both directions,
    divided by ``focal_length``.
    """
    (height, width), (rows, columns) = geometry.original, geometry.resized
    return (camera.fx * columns / width + camera.fy * rows / height) / 2 / focal_length


def no_camera(name: str, config: ModelConfig) -> ValueError:
    """The error for a photo whose camera a model needs and nobody knows."""
    return ValueError(
        f"{name}: {config.name!r} needs the camera's focal length for metres, and the photo has no "
        "FocalLengthIn35mmFilm in EXIF data: pass intrinsics=(fx, fy, cx, cy) in pixels or fov= "
        "(the horizontal field of view in degrees)"
    )

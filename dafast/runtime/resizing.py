"""Resizes in NumPy, each as two matrix products: one for the rows, one for the columns."""

from __future__ import annotations

import numpy as np

from ..geometry import Geometry

CUBIC = -0.75
"""The parameter of the cubic kernel, as in `dafast.ops.resize_bicubic`."""


def bilinear_matrix(source: int, target: int, *, align_corners: bool = False) -> np.ndarray:
    """Weights (target, source), float32, of a bilinear resize without antialiasing."""
    if align_corners:
        places = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    else:
        places = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    below = np.minimum(np.floor(places).astype(np.int64), source - 1)
    share = places - below
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    matrix[rows, below] = 1 - share
    matrix[rows, np.minimum(below + 1, source - 1)] += share
    return matrix.astype(np.float32)


def antialiased_matrix(source: int, target: int) -> np.ndarray:
    """Weights (target, source), float32, of a bilinear resize that is antialiased if it shrinks."""
    scale = source / target
    centers = (np.arange(target) + 0.5) * scale
    distance = (np.arange(source) + 0.5) - centers[:, None]
    matrix = np.maximum(1 - np.abs(distance) / max(scale, 1.0), 0)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def cubic_matrix(source: int, target: int) -> np.ndarray:
    """Weights (target, source), float32, of OpenCV's INTER_CUBIC."""
    places = (np.arange(target) + 0.5) * (source / target) - 0.5
    below = np.floor(places)
    t = places - below
    u = 1 - t
    first = ((CUBIC * (t + 1) - 5 * CUBIC) * (t + 1) + 8 * CUBIC) * (t + 1) - 4 * CUBIC
    second = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1
    third = ((CUBIC + 2) * u - (CUBIC + 3)) * u * u + 1
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    for step, weight in enumerate((first, second, third, 1 - first - second - third)):
        taps = np.clip(below.astype(np.int64) + step - 1, 0, source - 1)
        np.add.at(matrix, (rows, taps), weight)
    return matrix.astype(np.float32)


def area_matrix(source: int, target: int) -> np.ndarray:
    """Weights (target, source), float32, of OpenCV's INTER_AREA, for a side that does not grow."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    upper = np.minimum(edges[1:, None], pixels + 1)
    lower = np.maximum(edges[:-1, None], pixels)
    return (np.maximum(upper - lower, 0) * (target / source)).astype(np.float32)


def apply(rows: np.ndarray, plane: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``rows @ plane @ columns.T`` with the cheaper product first.

    Args:
        rows: (h, H).
        plane: (H, W).
        columns: (w, W).
    """
    (h, height), (w, width) = rows.shape, columns.shape
    if h * width * (height + w) <= height * w * (width + h):
        return (rows @ plane) @ columns.T
    return rows @ (plane @ columns.T)


def resize_photo(image: np.ndarray, geometry: Geometry, fit: str) -> np.ndarray:
    """Resizes a photo to `Geometry.resized` as `dafast.ops.preprocess` does.

    Args:
        image: (H, W, 3), uint8, or float32 in 0..1.
        geometry: From `plan_geometry` with the same ``fit``.
        fit: One of `dafast.geometry.FITS`.

    Returns:
        (3, *geometry.resized) float32 in 0..1.
    """
    whole = image.dtype == np.uint8
    planes = []
    for channel in range(3):  # one at a time: floats of a large photo are large
        plane = image[..., channel].astype(np.float32)
        if fit == "upper_bound":
            plane = _resize_in_two(plane, geometry, whole)
        if whole:
            plane *= np.float32(1 / 255)
        if plane.shape != geometry.resized:
            matrix = cubic_matrix if fit in ("official", "video") else antialiased_matrix
            sides = zip(plane.shape, geometry.resized, strict=True)
            rows, columns = (matrix(source, target) for source, target in sides)
            plane = apply(rows, plane, columns)
        planes.append(plane)
    return np.stack(planes)


def _resize_in_two(plane: np.ndarray, geometry: Geometry, whole: bool) -> np.ndarray:
    """The two resizes of Depth Anything 3, each rounded to uint8 for a uint8 photo (``whole``)."""
    assert geometry.first is not None
    for size in (geometry.first, geometry.resized):
        if plane.shape == size:
            continue
        grows = size[0] > plane.shape[0] or size[1] > plane.shape[1]
        matrix = cubic_matrix if grows else area_matrix
        rows, columns = (matrix(s, t) for s, t in zip(plane.shape, size, strict=True))
        plane = apply(rows, plane, columns)
        if whole:
            plane = plane.round().clip(0, 255)
    return plane


def resize_map(values: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Resizes a map (h, w) float32 to ``size``, bilinearly, as `dafast.ops.postprocess` does."""
    if values.shape == size:
        return values
    rows, columns = (
        bilinear_matrix(source, target, align_corners=align_corners)
        for source, target in zip(values.shape, size, strict=True)
    )
    return apply(rows, values, columns)

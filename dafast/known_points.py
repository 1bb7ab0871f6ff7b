"""Predictions aligned to points whose depth is known: `DepthAnything.predict` with ``align_to``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ._warnings import DataWarning, warn
from .alignment import SIGMA, robust_scale_shift
from .result import Alignment, DepthResult

METHODS = ("global", "local")

FEW = 5
"""With fewer points a note says so: a single wrong one spoils the fit."""

_CELLS = 24  # along the longer side: points of one cell count as one in a smooth correction
_NODES = 64  # along the longer side, between which a smooth correction is interpolated
_LEAST_CELLS = 6  # for a smooth correction: twice the three of a plane
_SMOOTH, _CLOSE = 0.1, 1e-4  # weights of the bending: to find outliers, and to pass near the rest
_ROUNDS = 6  # of reweighting, to find outliers


def read_points(points: Any, shape: tuple[int, int]) -> np.ndarray:
    """Reads known points.

    Args:
        points: (N, 3): row, column, metres; or a map of the photo's size with metres, and 0, NaN
            or infinity where nothing is known. Rows and columns are rounded to pixels: (0, 0) is
            the first.
        shape: Height and width of the photo.

    Returns:
        (N, 3) float64, all of it in the photo, finite and in front of the camera.

    Raises:
        ValueError: If it has another form, or no point can be used.
    """
    try:
        values = np.asarray(points, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"align_to: points (N, 3) or a map are numbers; {error}") from None
    if values.shape == shape:
        known = np.isfinite(values) & (values > 0)
        if not known.any():
            raise ValueError("align_to: the map has no depth above 0")
        values = np.column_stack([*np.nonzero(known), values[known]])
    elif values.ndim != 2 or values.shape[1] != 3:
        raise ValueError(
            f"align_to: points are (N, 3) of row, column and metres, or a map of the photo's size "
            f"{shape}; got {values.shape}"
        )
    rows, columns, metres = values.T
    inside = (rows > -0.5) & (rows < shape[0] - 0.5) & (columns > -0.5) & (columns < shape[1] - 0.5)
    usable = inside & np.isfinite(metres) & (metres > 0)
    if not usable.any():
        outside = int((~inside).sum())
        raise ValueError(
            f"align_to: none of {len(values)} points can be used: {outside} are outside of the "
            f"photo of {shape[0]} rows and {shape[1]} columns, the others have no depth above 0"
        )
    return values[usable]


def align_result(result: DepthResult, points: Any, method: str = "global") -> DepthResult:
    """Turns a prediction into metres by points whose depth is known.

    ``"global"``: a scale and a shift that fit most of the points robustly, of the disparity, or of
    the depth where the model predicts depth. With one point, with points that all have nearly the
    same prediction or depth, or where the fit would reverse near and far, only a scale.

    ``"local"``: the same, and then a smooth correction (a thin-plate spline in the logarithm of the
    depth) that passes near the points; points that contradict their neighbours do not count.

    Args:
        result: The prediction of a photo.
        points: As for `read_points`.
        method: ``"global"`` or ``"local"``.

    Returns:
        Depth in metres, NaN where the aligned disparity or depth is not positive (as in the sky).
        `DepthResult.alignment` has the fit, the residuals and notes, which are also logged as
        warnings.

    Raises:
        ValueError: If the method is unknown, or no point can be used.
    """
    check_method(method)
    known = read_points(points, result.values.shape)
    rows, columns = (np.rint(known[:, i]).astype(np.int64) for i in (0, 1))
    metres, predicted = known[:, 2], result.values[rows, columns]
    usable = np.isfinite(predicted) if result.near_is_large else predicted > 0
    if not usable.any():
        raise ValueError("align_to: the prediction has no value at any of the points")
    rows, columns, metres, predicted = (a[usable] for a in (rows, columns, metres, predicted))
    notes = _doubts(rows, columns, result.values.shape)
    given = np.shape(points)
    if given != result.values.shape and len(rows) < given[0]:
        notes.append(
            f"{given[0] - len(rows)} of {given[0]} points cannot be used: they are outside of the "
            "photo, have no depth above 0, or are where the prediction has no value"
        )
    scale, shift, inliers = _fit(predicted, metres, result.near_is_large, notes)
    aligned = result.values * np.float32(scale) + np.float32(shift)
    depth = np.full(aligned.shape, np.nan, np.float32)
    if result.near_is_large:
        np.divide(1, aligned, out=depth, where=aligned > 0)
    else:
        np.copyto(depth, aligned, where=aligned > 0)
    if method == "local":
        _correct(depth, rows, columns, metres, notes)
    alignment = Alignment(
        method=method,
        quantity=result.kind,
        scale=scale,
        shift=shift,
        points=np.column_stack([rows, columns, metres]),
        residuals=depth[rows, columns] - metres,
        inliers=inliers,
        notes=tuple(notes),
    )
    for note in notes:
        warn(DataWarning, f"align_to: {result.name and f'{result.name}: '}{note}")
    return dataclasses.replace(result, values=depth, kind="depth", unit="m", alignment=alignment)


def check_method(method: str) -> None:
    """Raises a ValueError unless a method of `align_result` has this name."""
    if method not in METHODS:
        raise ValueError(f"align={method!r}; use one of {', '.join(map(repr, METHODS))}")


def _doubts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> list[str]:
    """Why few or crowded points may not determine an alignment."""
    notes = []
    if len(rows) < FEW:
        count = f"only {len(rows)} point{'s' * (len(rows) > 1)} can be used"
        notes.append(f"{count}: an error in one of them changes the whole map")
    elif max(np.ptp(rows) / shape[0], np.ptp(columns) / shape[1]) < 0.1:
        notes.append("all points are close together: the rest of the map is extrapolated")
    return notes


def _fit(
    predicted: np.ndarray, metres: np.ndarray, disparity: bool, notes: list[str]
) -> tuple[float, float, np.ndarray]:
    """Scale, shift, and the points that count; adds notes."""
    x = torch.from_numpy(predicted)
    target = torch.from_numpy(1 / metres if disparity else metres)
    # Errors of depth grow with the depth.
    fit = robust_scale_shift(x, target, None if disparity else 1 / target)
    if fit.scale > 0 and fit.is_sure:
        outliers = int((~fit.inliers).sum())
        if outliers > 0.3 * len(x):
            notes.append(f"{outliers} of {len(x)} points do not fit to the others")
        return fit.scale, fit.shift, fit.inliers.numpy()
    reverses = fit.scale < 0 and fit.is_sure
    if not (x > 0).any():
        raise ValueError("align_to: the prediction is 0 at all points")
    ratios = (target / x)[x > 0]
    scale = float(ratios.median())
    if len(x) > 1:
        why = "the points reverse near and far" if reverses else "the points determine no shift"
        notes.append(f"{why}: only the scale is fitted, the shift is 0")
    return scale, 0.0, np.ones(len(x), bool)


def _correct(
    depth: np.ndarray, rows: np.ndarray, columns: np.ndarray, metres: np.ndarray, notes: list[str]
) -> None:
    """Multiplies a map by a smooth field, so that it passes near the points."""
    longer = max(depth.shape)
    at = depth[rows, columns]
    good = np.isfinite(at)
    places = np.column_stack([rows, columns])[good] / longer
    wanted = np.log(metres[good] / at[good])
    places, wanted = _per_cell(places, wanted)
    if len(wanted) < _LEAST_CELLS:
        notes.append(f"points in {len(wanted)} places are too few for a local correction")
        return
    residuals = np.abs(wanted - np.median(wanted))
    for _ in range(_ROUNDS):  # Cauchy weights
        trust = 1 / (1 + (residuals / (2 * _deviation(residuals))) ** 2)
        residuals = np.abs(wanted - _spline(places, wanted, _SMOOTH / trust)(places))
    kept = residuals <= 6 * _deviation(residuals)
    if not kept.all():
        notes.append(f"{(~kept).sum()} of {len(kept)} places contradict their neighbours")
        places, wanted = places[kept], wanted[kept]
    field = _spline(places, wanted, _CLOSE)
    nodes = [max(2, round(_NODES * side / longer)) for side in depth.shape]
    lines = [
        np.linspace(0, (side - 1) / longer, n) for side, n in zip(depth.shape, nodes, strict=True)
    ]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    values = field(grid).clip(wanted.min(), wanted.max()).reshape(nodes)
    coarse = torch.from_numpy(values.astype(np.float32))[None, None]
    whole = F.interpolate(coarse, size=depth.shape, mode="bilinear", align_corners=True)
    depth *= whole[0, 0].exp_().numpy()


def _deviation(residuals: np.ndarray) -> float:
    """The standard deviation of most of the residuals; at least rounding."""
    return max(SIGMA * float(np.median(residuals)), 2e-7)


def _per_cell(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean place and the median value of each cell that has a point."""
    cells = np.floor(places * _CELLS).astype(np.int64)
    _, index = np.unique(cells, axis=0, return_inverse=True)
    index = index.reshape(-1)
    order = np.argsort(index, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
    centres = np.array([places[group].mean(0) for group in groups])
    return centres, np.array([np.median(values[group]) for group in groups])


def _spline(places: np.ndarray, values: np.ndarray, bending: float | np.ndarray) -> Any:
    """The thin-plate spline near values (N,) at places (N, 2).

    ``bending``, one or (N,), makes it smooth: it follows places with a large one less.
    """
    count = len(places)

    def kernel(a: np.ndarray) -> np.ndarray:
        squares = ((a[:, None] - places) ** 2).sum(-1)
        return 0.5 * squares * np.log(np.maximum(squares, 1e-300))

    plane = np.column_stack([np.ones(count), places])
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = kernel(places) + bending * np.eye(count)
    system[:count, count:], system[count:, :count] = plane, plane.T
    # lstsq: places on a line leave the plane undetermined.
    weights, *_ = np.linalg.lstsq(system, np.concatenate([values, np.zeros(3)]), rcond=1e-10)
    return lambda a: kernel(a) @ weights[:count] + weights[count] + a @ weights[count + 1 :]

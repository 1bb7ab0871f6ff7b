"""`DepthResult`: the map of a photo with its meaning, its unit and its camera."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .alignment import Alignment
from .camera import CAMERA_SOURCES, Intrinsics
from .palettes import colorize
from .pointcloud import PointCloud, point_cloud

KINDS = ("disparity", "depth")
UNITS = ("", "m")

_ROWS = 16
"""Rows that are converted at a time: the float64 values of a large map would be large."""


def strips(height: int) -> Iterator[slice]:
    """Slices of a few rows that cover a map of this height."""
    for start in range(0, height, _ROWS):
        yield slice(start, min(height, start + _ROWS))


@dataclass(frozen=True, eq=False)
class DepthResult:
    """The prediction of one photo, as `DepthAnything.predict` returns it.

    Attributes:
        values: (H, W) float32, the map at the size of the photo. Pixels without a value are NaN.
        kind: ``"disparity"`` (large is near, up to an unknown scale and shift) or ``"depth"``
            (distance along the optical axis, large is far).
        unit: ``"m"`` for depth in metres; ``""`` for a map without a unit: disparity, or depth up
            to an unknown scale.
        image: The photo, (H, W, 3) RGB, uint8, or float32 in 0..1; None if it was not kept.
        intrinsics: The camera in pixels of the photo, or None.
        camera_source: Where the intrinsics come from: ``"given"``, ``"fov"``, ``"exif"``,
            ``"assumed"`` or ``"none"``.
        sky: (H, W) bool, True in the sky; None for a model without a sky head.
        name: Name of the photo: its path or URL, or "".
        model: Name of the model, or "".
        alignment: How the map was aligned to known points; None if it was not.
    """

    values: np.ndarray
    kind: str = "disparity"
    unit: str = ""
    image: np.ndarray | None = field(default=None, repr=False)
    intrinsics: Intrinsics | None = None
    camera_source: str = "none"
    sky: np.ndarray | None = field(default=None, repr=False)
    name: str = ""
    model: str = ""
    alignment: Alignment | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float32:
            raise ValueError(
                f"values is a float32 map (H, W); got {self.values.dtype} {self.values.shape}"
            )
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("unit", self.unit, UNITS if self.kind == "depth" else ("",)),
            ("camera_source", self.camera_source, CAMERA_SOURCES),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}; use one of {', '.join(map(repr, allowed))}")
        for name, array, shape in (
            ("image", self.image, (*self.values.shape, 3)),
            ("sky", self.sky, self.values.shape),
        ):
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} has the shape {array.shape}; the map needs {shape}")

    def __repr__(self) -> str:
        height, width = self.values.shape
        low, high = self.range
        what = f"{self.kind} {low:.4g}..{high:.4g}{self.unit and ' ' + self.unit}"
        return f"DepthResult({what}, {height}x{width}, {self.name!r}, camera {self.camera_source})"

    @property
    def near_is_large(self) -> bool:
        """Whether large values are near."""
        return self.kind == "disparity"

    @property
    def is_metric(self) -> bool:
        """Whether the map is in metres."""
        return self.unit == "m"

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value of the map; NaN for a map without values."""
        low, high = float(self.values.min()), float(self.values.max())
        if np.isnan(low):  # some pixel has no value
            known = self.values[np.isfinite(self.values)]
            low, high = (float(known.min()), float(known.max())) if known.size else (low, low)
        return low, high

    def numpy(self) -> np.ndarray:
        """The map, (H, W) float32."""
        return self.values

    def normalized(self, low: float | None = None, high: float | None = None) -> np.ndarray:
        """The map scaled to 0..1.

        Args:
            low: The value that becomes 0; by default the smallest of the map.
            high: The value that becomes 1; by default the largest of the map.

        Returns:
            (H, W) float32; values outside of the range are clipped, pixels without a value stay
            NaN. A constant map becomes 0.
        """
        scaled = np.empty(self.values.shape, np.float32)
        for rows, values in self._scaled(low, high):
            scaled[rows] = np.clip(values, 0, 1)
        return scaled

    def _scaled(
        self, low: float | None = None, high: float | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Strips of the map in float64, scaled so that low..high becomes 0..1."""
        own = self.range
        low = own[0] if low is None else low
        high = own[1] if high is None else high
        for rows in strips(len(self.values)):
            values = self.values[rows].astype(np.float64)
            yield rows, (values - low) / (high - low) if high > low else values * 0

    def colored(
        self, palette: str = "Spectral_r", low: float | None = None, high: float | None = None
    ) -> np.ndarray:
        """The map in colours, the palette's far end for near pixels.

        Depth is shown as its inverse, like disparity.

        Args:
            palette: A name that `dafast.palettes.colorize` knows.
            low: The disparity of the palette's first colour; by default the smallest.
            high: The disparity of the palette's last colour; by default the largest.

        Returns:
            (H, W, 3) uint8, RGB; pixels without a value are black.
        """
        colors = np.empty((*self.values.shape, 3), np.uint8)
        for rows, values in self.to_disparity()._scaled(low, high):
            unknown = np.isnan(values)
            colors[rows] = colorize(np.where(unknown, 0, values), palette)
            colors[rows][unknown] = 0
        return colors

    def to_disparity(self) -> DepthResult:
        """The result with disparity: of depth its inverse, NaN where the depth is not positive."""
        if self.kind == "disparity":
            return self
        inverse = np.full(self.values.shape, np.nan, np.float32)
        np.divide(1, self.values, out=inverse, where=self.values > 0)
        return dataclasses.replace(self, values=inverse, kind="disparity", unit="")

    def to_depth(self, ratio: float = 10.0) -> DepthResult:
        """The result with depth.

        A relative disparity leaves a shift open, so its depth is an assumption: the nearest pixel
        is at 1, the farthest at ``ratio``, and the disparity is linear between them.

        Args:
            ratio: Depth of the farthest pixel divided by that of the nearest, above 1.

        Raises:
            ValueError: If the ratio is 1 or less.
        """
        if self.kind == "depth":
            return self
        if not 1 < ratio < float("inf"):
            raise ValueError(f"ratio={ratio!r}: the farthest depth over the nearest, above 1")
        depth = np.empty(self.values.shape, np.float32)
        for rows, values in self._scaled():
            depth[rows] = 1 / (values + (1 - values) / ratio)
        return dataclasses.replace(self, values=depth, kind="depth")

    def point_cloud(self) -> PointCloud:
        """The points in space, in metres for a metric map and else up to an unknown scale.

        Disparity becomes depth by `to_depth`. Points have the colours of the photo, or those of
        the map where the photo was not kept.

        Raises:
            ValueError: If the result has no intrinsics.
        """
        image = self.colored() if self.image is None else self.image
        return point_cloud(self.to_depth().values, image, self._camera())

    def _camera(self) -> Intrinsics:
        if self.intrinsics is None:
            raise ValueError(
                f"{self.name or 'the result'}: 3D needs a camera; "
                "dataclasses.replace(result, intrinsics=..., camera_source='given') adds one"
            )
        return self.intrinsics

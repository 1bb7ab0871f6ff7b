"""`DepthResult`: the map of a photo with its meaning, its unit and its camera."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .camera import CAMERA_SOURCES, Intrinsics
from .formats import exr, glb, npz, pfm, ply, png, tiff
from .palettes import check_palette, colorize
from .pointcloud import PointCloud, as_bytes, cloud_parts, point_cloud
from .surface import EDGE_THRESHOLD, MAX_VERTICES, Mesh, mesh_of, normals_of

UNITS = {"disparity": ("", "1/m"), "depth": ("", "m")}
"""The units of each kind."""

_Strips = Iterator[tuple[slice, np.ndarray]]

SUFFIXES = (".png", ".exr", ".npz", ".npy", ".tif", ".tiff", ".pfm", ".ply", ".glb")
"""Suffixes of the files that `DepthResult.save` writes."""

DEPTH_SCALE = 1000.0
"""Steps of a 16-bit PNG per metre: millimetres."""

_ROWS = 16
"""Rows that are converted at a time: the float64 values of a large map would be large."""


def strips(height: int) -> Iterator[slice]:
    """Slices of a few rows that cover a map of this height."""
    for start in range(0, height, _ROWS):
        yield slice(start, min(height, start + _ROWS))


def known_range(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value; NaN without finite values."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):  # some pixel has no value
        known = values[np.isfinite(values)]
        low, high = (known.min(), known.max()) if known.size else (np.nan, np.nan)
    return float(low), float(high)


def shade_strips(
    result: DepthResult,
    palette: str | None,
    low: float | None = None,
    high: float | None = None,
) -> _Strips:
    """A map in colours, some rows at a time; see `DepthResult.colored`.

    Args:
        result: The map.
        palette: A name that `dafast.palettes.colorize` knows, or None for shades of gray, light for
            near pixels.
        low: As for `DepthResult.colored`.
        high: As for `DepthResult.colored`.

    Yields:
        Rows, and their pixels in uint8: (rows, W, 3), or (rows, W) for gray.
    """
    own = result.disparity_range
    low = own[0] if low is None else low
    high = own[1] if high is None else high
    for rows in strips(len(result.values)):
        values = result.values[rows]
        if result.kind == "depth":
            values = _inverse(values)
        scaled = _scale(values, low, high)
        unknown = np.isnan(scaled)
        scaled[unknown] = 0
        if palette is None:
            pixels = (np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)
        else:
            pixels = colorize(scaled, palette)
        pixels[unknown] = 0
        yield rows, pixels


def _inverse(values: np.ndarray) -> np.ndarray:
    """The inverse in float32, NaN where a value is not positive."""
    inverse = np.full(values.shape, np.nan, np.float32)
    return np.divide(1, values, out=inverse, where=values > 0)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values in float64, scaled so that low..high becomes 0..1; a range of 0 gives 0."""
    if high <= low:
        return values.astype(np.float64) * 0
    return (values.astype(np.float64) - low) / (high - low)


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a prediction was aligned to points whose depth is known.

    Attributes:
        method: ``"global"`` or ``"local"``.
        quantity: What the scale and the shift apply to: ``"disparity"`` or ``"depth"``.
        scale: Factor of the prediction.
        shift: What is added: in 1/m of disparity, in metres of depth.
        points: (N, 3) float64: row, column and metres of the points that were used.
        residuals: (N,) metres: the aligned depth minus that of the point; NaN where the aligned
            map has no value.
        inliers: (N,) bool: the points that agree with the scale and the shift.
        notes: What makes the alignment doubtful, in words.
    """

    method: str
    quantity: str
    scale: float
    shift: float
    points: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    inliers: np.ndarray = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DepthResult:
    """The prediction of one photo, as `DepthAnything.predict` returns it.

    Attributes:
        values: (H, W) float32, the map at the size of the photo. Pixels without a value are NaN.
        kind: ``"disparity"`` (large is near, up to an unknown scale and shift) or ``"depth"``
            (distance along the optical axis, large is far).
        unit: ``"m"`` for depth in metres, ``"1/m"`` for its inverse; ``""`` for relative disparity,
            and for depth up to an unknown scale.
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
            ("kind", self.kind, UNITS),
            ("unit", self.unit, UNITS.get(self.kind, ())),
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
        """Whether the map is in metres or their inverse."""
        return self.unit != ""

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value of the map; NaN for a map without values."""
        return known_range(self.values)

    @property
    def disparity_range(self) -> tuple[float, float]:
        """The smallest and the largest disparity: of depth, the inverses of its range."""
        low, high = self.range
        if self.kind == "disparity":
            return low, high
        if low <= 0:  # depth that is not positive is unknown
            known = self.values[(self.values > 0) & np.isfinite(self.values)]
            low, high = (float(known.min()), high) if known.size else (np.nan, np.nan)
        return 1 / high, 1 / low

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
            yield rows, _scale(self.values[rows], low, high)

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
        check_palette(palette)
        colors = np.empty((*self.values.shape, 3), np.uint8)
        for rows, pixels in shade_strips(self, palette, low, high):
            colors[rows] = pixels
        return colors

    def to_disparity(self) -> DepthResult:
        """The result with disparity; of depth the inverse, NaN where the depth is not positive."""
        if self.kind == "disparity":
            return self
        unit = "1/m" if self.unit == "m" else ""
        values = _inverse(self.values)
        return dataclasses.replace(self, values=values, kind="disparity", unit=unit)

    def to_depth(self, ratio: float = 10.0) -> DepthResult:
        """The result with depth; of disparity in 1/m the inverse.

        Relative disparity leaves a shift open, so its depth is an assumption: the nearest pixel
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
        if self.is_metric:
            return dataclasses.replace(self, values=_inverse(self.values), kind="depth", unit="m")
        depth = np.empty(self.values.shape, np.float32)
        for rows, values in self._scaled():
            depth[rows] = 1 / (values + (1 - values) / ratio)
        return dataclasses.replace(self, values=depth, kind="depth")

    def normals(self) -> np.ndarray:
        """Normals of the surface, by `dafast.surface.normals_of`.

        Returns:
            (H, W, 3) float32 unit vectors that point to the camera: x right, y down, z forward.
            Zero where the depth is unknown, and in the sky.

        Raises:
            ValueError: If the result has no intrinsics.
        """
        return normals_of(self.surface_depth(), self.camera())

    def normal_strips(self) -> _Strips:
        """Strips of `normals`, which takes less memory."""
        depth, camera = self.surface_depth(), self.camera()
        for rows in strips(len(depth)):
            yield rows, normals_of(depth, camera, rows.start, rows.stop)

    def point_cloud(self) -> PointCloud:
        """The points in space with their normals: in metres, or up to an unknown scale.

        Disparity becomes depth by `to_depth`; the sky gives no points. The colours are those of the
        photo, or of `colored` if the photo was not kept.

        Raises:
            ValueError: If the result has no intrinsics.
        """
        return point_cloud(
            self.surface_depth(),
            self._pixels(),
            self.camera(),
            normals=True,
            unit="m" if self.is_metric else "",
            warn=self.camera_source in ("given", "fov"),
        )

    def mesh(
        self, *, edge_threshold: float = EDGE_THRESHOLD, max_vertices: int = MAX_VERTICES
    ) -> Mesh:
        """The surface as triangles with the photo as texture; otherwise as `point_cloud`.

        Args:
            edge_threshold: A triangle is left out if its farthest corner is farther than its
                nearest by more than this fraction: it would join what an edge separates.
            max_vertices: A larger map is sampled at every second, third, ... row and column.

        Raises:
            ValueError: If the result has no intrinsics, or an argument is out of range.
        """
        return mesh_of(
            self.surface_depth(),
            as_bytes(self._pixels()),
            self.camera(),
            unit="m" if self.is_metric else "",
            edge_threshold=edge_threshold,
            max_vertices=max_vertices,
        )

    def _pixels(self) -> np.ndarray:
        return self.colored() if self.image is None else self.image

    def surface_depth(self) -> np.ndarray:
        """Depth of the surfaces, (H, W) float32, by `to_depth`; NaN in the sky."""
        depth = self.to_depth().values
        return depth if self.sky is None else np.where(self.sky, np.float32(np.nan), depth)

    def camera(self) -> Intrinsics:
        """The intrinsics.

        Raises:
            ValueError: If there are none.
        """
        if self.intrinsics is None:
            raise ValueError(
                f"{self.name or 'the result'}: 3D needs a camera; "
                "dataclasses.replace(result, intrinsics=..., camera_source='given') adds one"
            )
        return self.intrinsics

    def facts(self) -> dict[str, Any]:
        """What the map means, for the headers of files; JSON can hold it."""
        low, high = self.range
        facts: dict[str, Any] = {"kind": self.kind, "unit": self.unit, "min": low, "max": high}
        facts["near_is_large"] = self.near_is_large
        facts["camera_source"] = self.camera_source
        if self.intrinsics is not None:
            facts["intrinsics"] = [float(value) for value in self.intrinsics]
        for key, value in (("name", self.name), ("model", self.model)):
            if value:
                facts[key] = value
        return facts

    def save(
        self,
        path: str | Path,
        *,
        depth_scale: float = DEPTH_SCALE,
        edge_threshold: float = EDGE_THRESHOLD,
        value_range: tuple[float, float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Writes a file; it appears under its name only when it is complete.

        ``.npy``, ``.pfm``, ``.tiff`` and ``.exr`` hold the map in float32. ``.npz`` holds
        everything of the result. ``.png`` has 16 bits: a map in metres is multiplied by
        ``depth_scale``, and what does not fit is 0; another map is scaled from its range to
        0..65535. ``.ply`` holds the points and ``.glb`` the surface. docs/output.md describes them.

        Args:
            path: The file; its suffix decides the format.
            depth_scale: Steps of a 16-bit PNG per metre.
            edge_threshold: For ``.glb``, see `mesh`.
            value_range: The values that become 0 and 65535 in a PNG without a unit; by default the
                range of the map.
            facts: Further facts for the header of the file; JSON must be able to hold them. None
                leaves one out that `facts` has.

        Returns:
            The facts in the file, also of a format that has no place for them: those of `facts`,
            and of a PNG in metres ``depth_scale`` and the number of pixels that did not fit,
            ``out_of_range``.

        Raises:
            ValueError: If the suffix is another one, an argument is out of range, or a format for
                3D is chosen and the result has no intrinsics.
            DiskFullError: If there is no room for the file.
        """
        path = Path(path)
        given = {**self.facts(), **(facts or {})}
        noted = {name: value for name, value in given.items() if value is not None}
        suffix = path.suffix.lower()
        if suffix == ".png":
            return self._save_png(path, noted, depth_scale, value_range)
        if suffix == ".npy":
            npz.write_npy(path, self.values)
        elif suffix == ".npz":
            npz.write_npz(path, self._arrays(), noted)
        elif suffix == ".pfm":
            pfm.write_pfm(path, self.values)
        elif suffix in (".tif", ".tiff"):
            tiff.write_tiff(path, self.values, noted)
        elif suffix == ".exr":
            exr.write_exr(path, self.values, noted)
        elif suffix == ".ply":
            self._save_ply(path, noted)
        elif suffix == ".glb":
            mesh = self.mesh(edge_threshold=edge_threshold)
            parts = (mesh.vertices, mesh.faces, mesh.uv, mesh.texture, mesh.intrinsics)
            glb.write_glb(path, *parts, {**noted, "edge_threshold": edge_threshold})
        else:
            raise ValueError(
                f"{path}: results are saved as {', '.join(SUFFIXES)}, not as "
                f"{path.suffix or 'a file without a suffix'}"
            )
        return noted

    def _save_png(
        self,
        path: Path,
        facts: dict[str, Any],
        depth_scale: float,
        value_range: tuple[float, float] | None,
    ) -> dict[str, Any]:
        if self.unit == "m":
            if not 0 < depth_scale < float("inf"):
                raise ValueError(f"depth_scale={depth_scale!r}: steps per metre, above 0")
            lost = 0
            for _, part in self._steps(depth_scale):
                lost += int((part == 0).sum())
            facts = {**facts, "depth_scale": depth_scale, "out_of_range": lost}
            png.write_gray16(path, self.values.shape, self._steps(depth_scale), facts)
            return facts
        low, high = self.range if value_range is None else value_range
        facts = {**facts, f"{self.kind}_min": low, f"{self.kind}_max": high}
        png.write_gray16(path, self.values.shape, self._whole_range(low, high), facts)
        return facts

    def _steps(self, scale: float) -> _Strips:
        """The map in steps of 16 bits per metre; 0 where it is unknown or does not fit."""
        for rows in strips(len(self.values)):
            steps = (self.values[rows].astype(np.float64) * scale).round()
            yield rows, np.where((steps > 0) & (steps <= 65535), steps, 0).astype(np.uint16)

    def _whole_range(self, low: float, high: float) -> _Strips:
        for rows, values in self._scaled(low, high):
            steps = (np.nan_to_num(np.clip(values, 0, 1)) * 65535).round()
            yield rows, steps.astype(np.uint16)

    def _save_ply(self, path: Path, facts: dict[str, Any]) -> None:
        depth, camera = self.surface_depth(), self.camera()
        count = int((np.isfinite(depth) & (depth > 0)).sum())
        parts = cloud_parts(depth, self._pixels(), camera, normals=True)
        unit = "m" if self.is_metric else ""
        ply.write_ply(path, count, parts, unit, normals=True, facts=facts)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {self.kind: self.values}
        for name in ("kind", "unit", "near_is_large", "camera_source", "name", "model"):
            arrays[name] = np.array(getattr(self, name))
        if self.intrinsics is not None:
            fx, fy, cx, cy = self.intrinsics
            arrays["intrinsics"] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        for name in ("image", "sky"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        if self.alignment is not None:
            for item in dataclasses.fields(self.alignment):
                kind = str if item.name == "notes" else None  # there may be none
                arrays[f"alignment_{item.name}"] = np.array(
                    getattr(self.alignment, item.name), kind
                )
        return arrays

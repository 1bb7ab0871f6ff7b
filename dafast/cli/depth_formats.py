"""The files that `dafast run` writes of a depth model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import png, sidecar
from ..pointcloud import as_bytes
from ..result import DepthResult, shade_strips
from .outputs import Format


@dataclass(frozen=True)
class Made:
    """The prediction of one photo, ready to be written.

    Attributes:
        result: What the model predicted.
        shown: What the files of maps hold: metres, or disparity of a relative model.
        facts: Further facts of the files.
        noted: The facts of the written files, by their path.
    """

    result: DepthResult
    shown: DepthResult
    facts: dict[str, Any]
    noted: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def facts_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The facts that a file records: the map, the settings, and the range of the disparity."""
        facts = self.shown.facts()
        if "camera" not in settings:  # the file does not depend on it
            del facts["camera_source"]
            facts.pop("intrinsics", None)
        if not self.shown.is_metric:
            facts |= {"disparity_min": facts["min"], "disparity_max": facts["max"]}
        given = {key: value for key, value in settings.items() if value is not None}
        return {**facts, **given, **self.facts}


def _save(path: Path, made: Made, settings: dict[str, Any]) -> None:
    """The files of `DepthResult.save` that hold the map."""
    low_high = settings.get("range")
    facts = made.facts_of(settings)
    if "camera" not in settings:  # the file stays if another run has another camera
        facts = {"camera_source": None, "intrinsics": None, **facts}
    made.noted[path] = made.shown.save(
        path,
        **({"depth_scale": settings["depth_scale"]} if "depth_scale" in settings else {}),
        value_range=None if low_high is None else tuple(low_high),
        facts=facts,
    )


def _save_scene(path: Path, made: Made, settings: dict[str, Any]) -> None:
    """The files of `DepthResult.save` that hold points or surfaces."""
    made.result.save(
        path,
        **({"edge_threshold": settings["edge_threshold"]} if "edge_threshold" in settings else {}),
        facts=made.facts_of(settings),
    )


def _save_colors(path: Path, made: Made, settings: dict[str, Any]) -> None:
    shades = shade_strips(made.shown, settings["palette"], *(settings.get("range") or ()))
    png.write_pixels(path, (*made.shown.values.shape, 3), shades, made.facts_of(settings))


def _save_gray(path: Path, made: Made, settings: dict[str, Any]) -> None:
    shades = shade_strips(made.shown, None, *(settings.get("range") or ()))
    png.write_pixels(path, made.shown.values.shape, shades, made.facts_of(settings))


def _save_side(path: Path, made: Made, settings: dict[str, Any]) -> None:
    height, width = made.shown.values.shape
    photo = made.result.image
    assert photo is not None  # the format shows it

    def both() -> Iterator[tuple[slice, np.ndarray]]:
        for rows, colors in shade_strips(
            made.shown, settings["palette"], *(settings.get("range") or ())
        ):
            yield rows, np.concatenate([as_bytes(photo[rows]), colors], axis=1)

    png.write_pixels(path, (height, 2 * width, 3), both(), made.facts_of(settings))


def _save_normals(path: Path, made: Made, settings: dict[str, Any]) -> None:
    """Writes x, -y, -z in -1..1 as red, green and blue in 0..255; black where they are unknown."""

    def colors() -> Iterator[tuple[slice, np.ndarray]]:
        for rows, normals in made.result.normal_strips():
            pixels = ((normals * (1, -1, -1) + 1) * 127.5).round()
            yield rows, np.where(normals.any(axis=2, keepdims=True), pixels, 0).astype(np.uint8)

    facts = {**made.facts_of(settings), "axes": "red right, green up, blue to the camera"}
    png.write_pixels(path, (*made.result.values.shape, 3), colors(), facts)


def _save_facts(path: Path, made: Made, settings: dict[str, Any]) -> None:
    sidecar.write_sidecar(path, made.facts_of(settings))


FORMATS = {
    "png16": Format("_depth.png", _save, ("range",)),
    "color": Format("_color.png", _save_colors, ("palette", "range")),
    "gray": Format("_gray.png", _save_gray, ("range",)),
    "side": Format("_side.png", _save_side, ("palette", "range"), shows_photo=True),
    "exr": Format(".exr", _save, ("camera",)),
    "npz": Format(".npz", _save, ("camera",), shows_photo=True),
    "npy": Format(".npy", _save, holds_facts=False),
    "tiff": Format(".tiff", _save, ("camera",)),
    "pfm": Format(".pfm", _save, holds_facts=False),
    "ply": Format(".ply", _save_scene, ("camera",), shows_photo=True),
    "glb": Format(".glb", _save_scene, ("camera", "edge_threshold"), shows_photo=True),
    "normals": Format("_normals.png", _save_normals, ("camera",)),
    "facts": Format(".json", _save_facts, ("camera",)),
}
"""The formats by the name that ``--formats`` takes; ``facts`` accompanies npy and pfm."""

IN_METRES = {**FORMATS, "png16": Format("_depth.png", _save, ("depth_scale",))}
"""The same for maps in metres."""

DEFAULT = ("png16", "color")

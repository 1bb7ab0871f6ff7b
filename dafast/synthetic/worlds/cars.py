"""Cars of TORCS: AC3D files, with wheels where their XML files say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dafast.synthetic.meshes import F32
from dafast.synthetic.worlds.ac3d import read_objects
from dafast.synthetic.worlds.model import GameModel, build_model, picture_of

_SPOKES = 24  # segments of a wheel
_CLEARANCE = 0.1  # metres between the lowest part of a body and the ground


def find_cars(folder: Path) -> Iterator[Path]:
    """The cars below a folder, in their finest version."""
    for path in sorted(folder.rglob("cars/*/*.acc")):
        if path.stem == path.parent.name:
            yield path


def _wheels(path: Path) -> list[tuple[float, float, float, float]]:
    """Position along and across the car, radius and width of each wheel, metres, if known."""
    try:
        root = ElementTree.parse(path.with_suffix(".xml")).getroot()
        return _wheels_of(root)
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        return []


def _wheels_of(root: ElementTree.Element) -> list[tuple[float, float, float, float]]:
    found = []
    sections = {s.get("name", ""): s for s in root.iter("section")}
    for end in ("Front", "Rear"):
        values = {}
        for name in (f"{end} Axle", f"{end} Right Wheel"):
            for number in sections[name].iter("attnum") if name in sections else ():
                values[number.get("name")] = float(number.get("val", "nan"))
        x, y = values.get("xpos", np.nan), abs(values.get("ypos", np.nan))
        width = values.get("tire width", 225.0) / 1000
        radius = values.get("rim diameter", 16.0) * 0.0127
        radius += width * values.get("tire height-width ratio", 0.5)
        if np.isfinite([x, y, radius, width]).all() and 0.1 < radius < 1:
            found += [(x, y, radius, width), (x, -y, radius, width)]
    return found


def _wheel(x: float, y: float, radius: float, width: float) -> tuple[F32, F32]:
    """Triangles of a wheel: vertices and texture coordinates of their corners."""
    a = np.linspace(0, 2 * np.pi, _SPOKES + 1)
    ring = np.stack([np.cos(a), 0 * a, np.sin(a)], 1)
    out = np.sign(y) * np.array([0, width / 2, 0])
    rim, uv_rim = ring * radius, 0.25 + 0.245 * ring[:, [0, 2]]
    hub = np.zeros_like(rim)
    v = [rim[:-1] + out, rim[1:] + out, hub[1:] + out * 0.7]  # the visible side
    t = [uv_rim[:-1], uv_rim[1:], np.full_like(uv_rim[1:], 0.25)]
    v += [rim[:-1] + out, rim[1:] + out, rim[1:] - out]  # the tread, of the tire's colour
    v += [rim[:-1] + out, rim[1:] - out, rim[:-1] - out]
    t += [uv_rim[:-1]] * 6
    corners = np.concatenate([np.stack(v[k : k + 3], 1).reshape(-1, 3) for k in (0, 3, 6)])
    uv = np.concatenate([np.stack(t[k : k + 3], 1).reshape(-1, 2) for k in (0, 3, 6)])
    return corners + np.array([x, y, radius - _CLEARANCE]), uv


def read_car(name: str, path: Path) -> GameModel:
    """Imports a car.

    Args:
        name: of the model.
        path: its .acc file, next to its pictures and its .xml file.

    Raises:
        DamagedFileError: the file is damaged.
        ValueError: it is no AC3D file, or has no surface.
    """
    vertices, uv, texture, pictures = read_objects(path)
    wheels = [_wheel(*w) for w in _wheels(path)]
    try:
        with Image.open(path.with_name("tex-wheel.rgb")) as picture:
            pictures.append(picture.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pictures.append(Image.new("RGBA", (4, 4), (28, 28, 30, 255)))
    texture = np.concatenate(
        [texture, *(np.full(len(v) // 3, len(pictures) - 1, np.int32) for v, _ in wheels)]
    )
    vertices = np.concatenate([vertices, *(v for v, _ in wheels)]).astype(np.float32)
    uv = np.concatenate([uv, *(t for _, t in wheels)]).astype(np.float32)
    # Corners with one place and one texel are one vertex, so that bodies are smooth.
    keys = np.round(np.concatenate([vertices, uv], 1), 4)
    _, first, index = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    vertices = vertices[first][None]
    return build_model(
        name, "vehicle", np.stack([vertices[..., 1], -vertices[..., 0], vertices[..., 2]], -1),
        index.reshape(-1, 3).astype(np.int32), uv[first], texture,
        [picture_of(p, holes=False) for p in pictures],
    )  # fmt: skip

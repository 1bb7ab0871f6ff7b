"""GLB: a textured surface as binary glTF 2.0, or points where there is no surface."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..files import whole_file
from ._text import TAG, from_text, to_text

_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_FLOAT, _UINT32 = 5126, 5125
_JSON, _BINARY = 0x4E4F534A, 0x004E4942
_CLAMP, _LINEAR, _LINEAR_MIPMAP = 33071, 9729, 9987
_POINTS, _TRIANGLES = 0, 4
_LARGEST_TEXTURE = 8192
"""Pixels of a side that viewers and their graphics cards take."""


class _Binary:
    """The parts of the binary chunk, each at a multiple of four bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.views: list[dict[str, Any]] = []
        self.length = 0

    def add(self, data: bytes, **fields: Any) -> int:
        view = {"buffer": 0, "byteOffset": self.length, "byteLength": len(data), **fields}
        self.views.append(view)
        self.parts.append(data + bytes(-len(data) % 4))
        self.length += len(self.parts[-1])
        return len(self.views) - 1


def write_glb(
    path: Path,
    vertices: np.ndarray,
    faces: np.ndarray,
    uv: np.ndarray,
    texture: np.ndarray,
    intrinsics: tuple[float, float, float, float] | None,
    facts: Mapping[str, Any],
) -> None:
    """Writes a surface that shows its texture without lighting, and the camera of the photo.

    glTF has y up and z backward, so y and z change their signs.

    Args:
        path: The file.
        vertices: (N, 3) float32: x right, y down, z forward.
        faces: (M, 3) indices of vertices, counterclockwise from the front; with none, points.
        uv: (N, 2) float32, places in the texture from its top left corner.
        texture: (H, W, 3) uint8; a side above 8192 pixels is reduced.
        intrinsics: fx, fy, cx, cy; None for a panorama, whose file has no camera.
        facts: See `dafast.formats`; they are the ``extras`` of the asset.
    """
    scene: dict[str, Any] = {
        "asset": {
            "version": "2.0",
            "generator": f"dafast {__version__}",
            "extras": {TAG: json.loads(to_text(facts))},
        },
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "camera"}],
    }
    if intrinsics is not None:
        scene["nodes"][0]["camera"] = 0
        lens = _perspective(vertices, texture.shape, intrinsics)
        scene["cameras"] = [{"type": "perspective", "perspective": lens}]
    binary = _Binary()
    if len(vertices):  # a picture that shows only sky has none
        scene["scenes"][0]["nodes"].append(1)
        scene["nodes"].append({"mesh": 0, "name": "surface"})
        scene |= _surface(binary, vertices, faces, uv, texture)
        scene |= {"bufferViews": binary.views, "buffers": [{"byteLength": binary.length}]}
    text = json.dumps(scene, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    content = struct.pack("<II", binary.length, _BINARY) if binary.parts else b""
    with whole_file(path) as file:
        total = 12 + 8 + len(text) + len(content) + binary.length
        file.write(struct.pack("<4sIIII", b"glTF", 2, total, len(text), _JSON) + text + content)
        for part in binary.parts:
            file.write(part)


def _perspective(
    vertices: np.ndarray, shape: tuple[int, ...], intrinsics: tuple[float, float, float, float]
) -> dict[str, float]:
    height, width = shape[:2]
    fx, fy = intrinsics[:2]
    return {
        "yfov": 2 * math.atan(height / (2 * fy)),
        "aspectRatio": width / fx * fy / height,
        "znear": float(vertices[:, 2].min()) / 10 if len(vertices) else 0.01,
    }


def _surface(
    binary: _Binary, vertices: np.ndarray, faces: np.ndarray, uv: np.ndarray, texture: np.ndarray
) -> dict[str, Any]:
    """The parts of a scene with one mesh; their data go into ``binary``."""
    points = vertices.astype("<f4") * np.array((1, -1, -1), np.float32)
    view = binary.add(points.tobytes(), target=_ARRAY_BUFFER)
    accessors = [_accessor(view, points, "VEC3", min=points.min(0), max=points.max(0))]
    view = binary.add(uv.astype("<f4").tobytes(), target=_ARRAY_BUFFER)
    accessors.append(_accessor(view, uv, "VEC2"))
    primitive: dict[str, Any] = {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}
    primitive["mode"] = _TRIANGLES if len(faces) else _POINTS
    if len(faces):
        indices = faces.astype("<u4").ravel()
        view = binary.add(indices.tobytes(), target=_ELEMENT_ARRAY_BUFFER)
        accessors.append({**_accessor(view, indices, "SCALAR"), "componentType": _UINT32})
        primitive["indices"] = 2
    shown = {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1}
    sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP, "wrapS": _CLAMP, "wrapT": _CLAMP}
    unlit = "KHR_materials_unlit"
    return {
        "extensionsUsed": [unlit],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {"pbrMetallicRoughness": shown, "doubleSided": True, "extensions": {unlit: {}}}
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "images": [{"bufferView": binary.add(_jpeg(texture)), "mimeType": "image/jpeg"}],
        "samplers": [sampler],
        "accessors": accessors,
    }


def _accessor(view: int, values: np.ndarray, kind: str, **bounds: np.ndarray) -> dict[str, Any]:
    found = {"bufferView": view, "componentType": _FLOAT, "count": len(values), "type": kind}
    return {**found, **{name: bound.tolist() for name, bound in bounds.items()}}


def _jpeg(texture: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(texture)
    if max(image.size) > _LARGEST_TEXTURE:
        image.thumbnail((_LARGEST_TEXTURE, _LARGEST_TEXTURE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=95, subsampling=0)
    return file.getvalue()


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in the asset, if the file has its full length."""
    with path.open("rb") as file:
        magic, _, total, length, _ = struct.unpack("<4sIIII", file.read(20))
        if magic != b"glTF" or path.stat().st_size != total:
            return None
        scene = from_text(file.read(length).decode()) or {}
    return scene["asset"]["extras"][TAG]

"""Encodes results as the files that a server returns."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

from ..files import files_in_memory
from ..formats import png
from ..result import DepthResult, shade_strips

FORMATS = {
    "png16": "image/png",
    "color": "image/png",
    "gray": "image/png",
    "exr": "image/x-exr",
    "npz": "application/zip",
    "npy": "application/octet-stream",
    "json": "application/json",
    "tiff": "image/tiff",
    "pfm": "image/x-portable-floatmap",
    "ply": "application/ply",
    "glb": "model/gltf-binary",
}
"""Media types of the formats by name."""

SUFFIXES = {"png16": ".png", "color": ".png", "gray": ".png"}
"""Suffixes of the files where the name of the format is another one."""


def suffix_of(name: str) -> str:
    """Returns the file suffix of a format."""
    return SUFFIXES.get(name, f".{name}")


def encode(result: DepthResult, name: str, palette: str = "Spectral_r") -> bytes:
    """Encodes a result as the bytes of a file.

    Args:
        result: The result, with its image for ``npz``, ``ply`` and ``glb``.
        name: A name of `FORMATS`.
        palette: The colours of ``color``.

    Returns:
        The file that `DepthResult.save` writes. ``color`` and ``gray`` are 8-bit PNG; ``json`` has
        the facts, ``shape``, and ``data``, the float32 values (little endian, by rows) in base64.

    Raises:
        ValueError: If the format is for 3D and the result has no camera.
    """
    if name == "json":
        return _as_json(result)
    path = Path(f"depth{suffix_of(name)}")
    with files_in_memory() as files:
        if name in ("color", "gray"):
            shades = shade_strips(result, palette if name == "color" else None)
            shape = (*result.values.shape, 3) if name == "color" else result.values.shape
            png.write_pixels(path, shape, shades, result.facts())
        else:
            result.save(path)
    return files[path]


def _as_json(result: DepthResult) -> bytes:
    facts = {key: _known(value) for key, value in result.facts().items()}
    data = base64.b64encode(result.values.astype("<f4").tobytes()).decode()
    facts |= {"shape": list(result.values.shape), "dtype": "float32", "data": data}
    return json.dumps(facts).encode()


def _known(value: object) -> object:
    """Returns None instead of NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headers_of(result: DepthResult) -> dict[str, str]:
    """Describes a map for HTTP headers."""
    height, width = result.values.shape
    low, high = result.range
    headers = {
        "X-Depth-Kind": result.kind,
        "X-Depth-Unit": result.unit,
        "X-Depth-Min": repr(low),
        "X-Depth-Max": repr(high),
        "X-Depth-Size": f"{width}x{height}",
        "X-Depth-Camera": result.camera_source,
    }
    if result.intrinsics is not None:
        headers["X-Depth-Intrinsics"] = ",".join(repr(float(v)) for v in result.intrinsics)
    return headers

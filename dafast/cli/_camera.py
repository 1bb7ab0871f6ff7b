"""The camera of a command: ``--fov`` and ``--intrinsics``."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import explain
from ._common import CommandError

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NAMED = re.compile(rf"\b([fc][xy])\b[\"']?\s*[:=]?\s*({_NUMBER.pattern})")


@dataclass(frozen=True)
class CameraChoice:
    """The options of the command line for the camera.

    Attributes:
        intrinsics: fx, fy, cx, cy in pixels, or None.
        fov: The horizontal field of view in degrees, or None.
        exif: Whether a photo without a focal length in its EXIF data is an error.
    """

    intrinsics: tuple[float, ...] | None = None
    fov: float | None = None
    exif: bool = False

    @property
    def setting(self) -> str:
        """The choice as results note it; with EXIF data the photo itself decides."""
        if self.intrinsics is not None:
            return "intrinsics " + ",".join(f"{value:.9g}" for value in self.intrinsics)
        return "exif" if self.fov is None else f"fov {self.fov:.9g}"


def add_camera(parser: argparse.ArgumentParser) -> None:
    """Adds ``--fov`` and ``--intrinsics``."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--fov", type=float, metavar="DEGREES", help="horizontal field of view of the photos"
    )
    group.add_argument(
        "--intrinsics",
        metavar="FX,FY,CX,CY|FILE|exif",
        help="camera of the photos, in pixels: four numbers, or a file (text, JSON, NPY) with them "
        "or a 3x3 matrix; exif: an error for a photo without a focal length in its EXIF data "
        "(default: EXIF data where there are some, else a lens of 28 mm on 35 mm film)",
    )


def camera_of(args: argparse.Namespace) -> CameraChoice:
    """Reads ``--fov`` and ``--intrinsics``.

    Raises:
        CommandError: If a value is not valid, or a file cannot be read.
    """
    from ..camera import check_fov, check_intrinsics

    try:
        if args.fov is not None:
            check_fov(args.fov)
            return CameraChoice(fov=args.fov)
    except ValueError as error:
        raise CommandError(f"--fov: {error}") from None
    if args.intrinsics is None or args.intrinsics == "exif":
        return CameraChoice(exif=args.intrinsics == "exif")
    try:
        return CameraChoice(tuple(check_intrinsics(_read(args.intrinsics))))
    except (ValueError, OSError, EOFError) as error:  # NumPy's for an empty file is the last one
        raise CommandError(f"--intrinsics {args.intrinsics}: {explain(error)}") from None


def _read(text: str) -> Any:
    """Numbers from the option itself, or from the file that it names."""
    path = Path(text)
    if not path.is_file():
        try:
            return [float(number) for number in text.split(",")]
        except ValueError:
            raise ValueError("neither a file, nor four numbers, nor exif") from None
    if path.suffix.lower() == ".npy":
        import numpy as np

        return np.load(path, allow_pickle=False)
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("the file is neither text, nor JSON, nor NPY") from None
    try:
        values = json.loads(content)
    except ValueError:
        values = _from_text(content)
    if isinstance(values, dict):
        values = _from_mapping(values)
    if isinstance(values, list) and len(values) == 9:
        values = [values[0:3], values[3:6], values[6:9]]
    return values


def _from_text(content: str) -> Any:
    """Numbers from text: ``fx: 1450`` etc. in any order, or only numbers; # begins a comment."""
    content = re.sub("#.*", "", content)
    if named := dict(_NAMED.findall(content.lower())):
        return _from_mapping({name: float(value) for name, value in named.items()})
    if words := re.findall(r"[A-Za-z_]{2,}", content):
        raise ValueError(
            f"the text has the word {words[0]!r}; it must hold four numbers, a 3x3 matrix, or "
            "fx, fy, cx and cy with their numbers (fx: 1450)"
        )
    return [float(number) for number in _NUMBER.findall(content)]


def _from_mapping(values: dict[str, Any]) -> Any:
    """Numbers from JSON: ``intrinsics`` (also of dafast's own files), or fx, fy, cx and cy."""
    inner = values.get("dafast", values)
    if isinstance(inner, dict) and "intrinsics" in inner:
        return inner["intrinsics"]
    try:
        return [values[name] for name in ("fx", "fy", "cx", "cy")]
    except KeyError as error:
        raise ValueError(
            f"the file has neither intrinsics nor fx, fy, cx and cy ({error} is missing)"
        ) from None

"""Stereo pictures from one photo, in the layouts of 3D televisions, glasses and VR players."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from .warp import Camera, render_view

LAYOUTS = {
    "sbs": ("_SBS",),
    "half-sbs": ("_half_SBS",),
    "tb": ("_TB",),
    "anaglyph": ("_anaglyph",),
    "cross": ("_RL",),
    "pair": ("_L", "_R"),
}
"""Layouts, and what the names of their files end with. Skybox, Rad TV and others recognise SBS, TB
and RL in a name, Skybox and Commedia "half" too."""

MAX_DIVERGENCE = 20.0
"""Per cent of the width; more would stretch surfaces until they break."""

# Dubois, "A projection method to generate anaglyph stereo images", ICASSP 2001: least-squares
# projection for red-cyan glasses, applied to sRGB values, with the published coefficients.
_DUBOIS_LEFT = np.array(
    [[0.456, 0.500, 0.176], [-0.040, -0.038, -0.016], [-0.015, -0.021, -0.005]], np.float32
)
_DUBOIS_RIGHT = np.array(
    [[-0.043, -0.088, -0.002], [0.378, 0.734, -0.018], [-0.072, -0.113, 1.226]], np.float32
)


def check_divergence(divergence: float) -> None:
    """Raises a ValueError unless divergence is a useful part of the width."""
    if not 0 <= divergence <= MAX_DIVERGENCE:
        raise ValueError(
            f"divergence={divergence}: it is in per cent of the width, 0 to {MAX_DIVERGENCE:g}"
        )


def stereo_pair(
    photo: np.ndarray,
    near: np.ndarray,
    *,
    divergence: float = 2.5,
    convergence: float = 0.5,
    edge: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The views of the left and the right eye; the photo is in the middle between them.

    A pixel with nearness d is at x + s in the left view and at x - s in the right one, with
    s = divergence / 200 * width * (d - convergence).

    Args:
        photo: (H, W, 3) uint8.
        near: Nearness (H, W), as `nearness` gives it.
        divergence: Parallax between nearness 0 and 1, in per cent of the width. 0 returns the photo
            twice.
        convergence: The nearness that is on the screen; what is nearer comes out of it.
        edge: As for `render_view`.
        device: Where to compute.

    Returns:
        Left and right, (H, W, 3) uint8.

    Raises:
        ValueError: If divergence is not in 0..20, convergence not in 0..1, or the sizes differ.
    """
    check_divergence(divergence)
    half = divergence / 200 * near.shape[1]
    left, right = (
        render_view(
            photo, near, Camera(right=side), convergence=convergence, edge=edge, device=device
        )
        for side in (-half, half)
    )
    return left, right


def stereo_pictures(left: np.ndarray, right: np.ndarray, layout: str) -> dict[str, np.ndarray]:
    """Arranges two views.

    Args:
        left: (H, W, 3) uint8.
        right: The same for the right eye.
        layout: One of `LAYOUTS`: ``"sbs"`` (side by side, each in full width), ``"half-sbs"`` (each
            squeezed to half the width, for 3D televisions), ``"tb"`` (top and bottom), ``"cross"``
            (side by side with the right view on the left, for crossed eyes), ``"anaglyph"``
            (red-cyan glasses) or ``"pair"`` (two pictures).

    Returns:
        Pictures (H', W', 3) uint8 by the end of their file's name.

    Raises:
        ValueError: If the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"no layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    names = LAYOUTS[layout]
    if layout == "pair":
        pictures = [left, right]
    elif layout == "tb":
        pictures = [np.concatenate([left, right])]
    elif layout == "cross":
        pictures = [np.concatenate([right, left], axis=1)]
    elif layout == "anaglyph":
        pictures = [_anaglyph(left, right)]
    else:
        if layout == "half-sbs":
            left, right = _half_width(left), _half_width(right)
        pictures = [np.concatenate([left, right], axis=1)]
    return dict(zip(names, pictures, strict=True))


def _half_width(view: np.ndarray) -> np.ndarray:
    height, width, _ = view.shape
    size = (max(1, width // 2), height)
    return np.asarray(Image.fromarray(view).resize(size, Image.Resampling.BOX))


def _anaglyph(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    out = np.empty_like(left)
    for rows in range(0, len(left), 256):  # the float32 values of a large picture would be large
        part = slice(rows, rows + 256)
        mixed = left[part].astype(np.float32) @ _DUBOIS_LEFT.T
        mixed += right[part].astype(np.float32) @ _DUBOIS_RIGHT.T
        out[part] = mixed.round().clip(0, 255)
    return out

"""Pictures of depth for the frames of a video: gray, in colours, next to or over the frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..palettes import colorize
from ..views import stereo_pair, stereo_pictures

LAYOUTS = ("depth", "color", "side", "overlay", "sbs")
"""Gray depth; depth in colours; the frame with colours to its right; colours over the frame; a
stereo picture, the view of the left eye next to that of the right eye."""

_OPACITY = 0.6
"""Of the colours over the frame."""

_ROWS = 64
"""Rows that are scaled at a time: their temporary values fit into the cache."""


def scaled(disparity: np.ndarray, low: float, high: float, top: int) -> np.ndarray:
    """Disparity as whole numbers from 0 (``low`` and less) to ``top`` (``high`` and more).

    Pixels without a value become 0, and so does a map whose range is empty.

    Args:
        disparity: (H, W) float32.
        low: Start of the range.
        high: End of the range.
        top: 255 or less gives uint8, else uint16.
    """
    kind = np.uint8 if top <= 255 else np.uint16
    if not high > low:
        return np.zeros(disparity.shape, kind)
    factor = top / (high - low)
    result = np.empty(disparity.shape, kind)
    for start in range(0, len(disparity), _ROWS):
        rows = slice(start, start + _ROWS)
        out = disparity[rows] * np.float32(factor)
        out += np.float32(0.5 - low * factor)  # rounds
        np.fmax(out, 0, out=out)  # which makes NaN 0
        np.minimum(out, top + 0.5, out=out)
        result[rows] = out
    return result


@dataclass(frozen=True)
class Renderer:
    """Makes the picture of a frame.

    Attributes:
        layout: One of `LAYOUTS`.
        palette: As for `dafast.palettes.colorize`.
        divergence: As for `dafast.views.stereo_pair`.
        convergence: As for `dafast.views.stereo_pair`.
        device: Where stereo views are computed.
    """

    layout: str = "depth"
    palette: str = "Spectral_r"
    divergence: float = 2.5
    convergence: float = 0.5
    device: str = "cpu"

    @property
    def is_gray(self) -> bool:
        """Whether pictures are gray."""
        return self.layout == "depth"

    @property
    def shows_frame(self) -> bool:
        """Whether pictures show the frame, so that `render` needs its pixels."""
        return self.layout in ("side", "overlay", "sbs")

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the picture of a frame of this size."""
        return (2 * width if self.layout in ("side", "sbs") else width), height

    def gray(self, disparity: np.ndarray, low: float, high: float, top: int) -> np.ndarray:
        """The gray picture, (H, W) from 0 to ``top``; near is light."""
        return scaled(disparity, low, high, top)

    def render(
        self, pixels: np.ndarray, disparity: np.ndarray, low: float, high: float
    ) -> np.ndarray:
        """The picture of a frame in RGB.

        Args:
            pixels: The frame, (H, W, 3) uint8; not read unless `shows_frame`.
            disparity: (H, W) float32.
            low: The disparity of the palette's first colour.
            high: The disparity of the palette's last colour.

        Returns:
            (H', W', 3) uint8, of `size`.
        """
        if self.layout == "sbs":
            near = np.clip((disparity - low) / max(high - low, 1e-12), 0, 1)
            near = np.nan_to_num(near).astype(np.float32)
            left, right = stereo_pair(
                pixels,
                near,
                divergence=self.divergence,
                convergence=self.convergence,
                device=self.device,
            )
            return stereo_pictures(left, right, "sbs")["_SBS"]
        index = scaled(disparity, low, high, 255)
        colors = palette_of(self.palette)[index]
        colors[np.isnan(disparity)] = 0
        if self.layout == "side":
            return np.concatenate([pixels, colors], axis=1)
        if self.layout == "overlay":
            mixed = pixels * np.float32(1 - _OPACITY)
            mixed += colors * np.float32(_OPACITY)
            return (mixed + np.float32(0.5)).astype(np.uint8)
        return colors


def palette_of(name: str) -> np.ndarray:
    """The 256 colours of a palette, (256, 3) uint8."""
    return colorize((np.arange(256) + 0.5) / 256, name)

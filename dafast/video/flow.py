"""Optical flow between frames, by OpenCV, and maps that it carries along."""

from __future__ import annotations

import numpy as np

from ..optional import MissingPackageError, why_no_module


def require_flow() -> None:
    """Raises a `MissingPackageError` if OpenCV cannot be imported."""
    if why := why_no_module("cv2"):
        raise MissingPackageError(f"optical flow needs OpenCV: pip install 'dafast[flow]' ({why})")


def optical_flow(frame: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where each pixel of a frame is in another frame: DIS (Kroeger et al., ECCV 2016).

    Args:
        frame: Brightness, 0 to 255, (H, W), uint8 or float.
        other: The other frame, same shape.

    Returns:
        float32 (H, W, 2): ``other[y + flow[y, x, 1], x + flow[y, x, 0]]`` shows what
        ``frame[y, x]`` shows.

    Raises:
        MissingPackageError: OpenCV is not installed.
    """
    require_flow()
    import cv2

    height, width = frame.shape
    # Smaller pictures than the patches of the method are extended at the right and the bottom.
    pad = ((0, max(32 - height, 0)), (0, max(32 - width, 0)))
    first, second = (
        np.pad(np.clip(np.rint(image), 0, 255).astype(np.uint8), pad, "edge")
        for image in (frame, other)
    )
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    found = np.zeros((*first.shape, 2), np.float32)
    return np.asarray(method.calc(first, second, found))[:height, :width]


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Carries a map along: its value where the flow points to, bilinearly.

    Args:
        image: float32 (H, W).
        flow: As `optical_flow` returns it, float32 (H, W, 2).

    Returns:
        float32 (H, W), NaN where the flow leaves the picture or is NaN.

    Raises:
        MissingPackageError: OpenCV is not installed.
    """
    require_flow()
    import cv2

    height, width = image.shape
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    carried = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(inside, carried, np.float32(np.nan))

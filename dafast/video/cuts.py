"""Changes between frames: which pixels changed, and whether a frame begins another shot."""

from __future__ import annotations

import numpy as np

THUMBNAIL = 32
"""Rows and columns of the copies that are compared."""

_BINS = 16
_NOISE = (2.0, 8.0)  # least and largest grey levels of the change of a pixel that did not move
_SIGMAS = 4.0  # the same in standard deviations
_MARGIN = 2  # pixels around one that moved that count as moved
_FLAT = 2.0  # grey levels of spread below which a picture has no structure


def reduced(picture: np.ndarray, side: int) -> np.ndarray:
    """A smaller copy by averaging, with the longer side at most ``side``.

    Args:
        picture: uint8 (H, W, 3) or float32 (H, W).
        side: Pixels.

    Returns:
        float32 (h, w, 3) or (h, w). A pixel that covers one that is not finite is not finite.
    """
    from PIL import Image

    factor = max(-(-max(picture.shape[:2]) // side), 1)
    if factor == 1:
        return picture.astype(np.float32)
    # Every third row or so: the mean needs few of them, and copies of whole rows are fast.
    stride = max(factor // 4, 1)
    rows = np.ascontiguousarray(picture[::stride])
    small = Image.fromarray(rows).reduce((factor, max(round(factor / stride), 1)))
    return np.asarray(small, np.float32)


def luma(picture: np.ndarray) -> np.ndarray:
    """Brightness of RGB, 0 to 255, float32 (H, W)."""
    return picture @ np.array([0.299, 0.587, 0.114], np.float32)


def unchanged(grey: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Pixels that show the same as in another frame, except for noise and overall brightness.

    Args:
        grey: Brightness, float32 (h, w).
        reference: The other frame's, same shape; NaN where unknown, which counts as changed.

    Returns:
        bool (h, w). Pixels next to one that changed are left out too: a plain surface that moves
        changes only at its edges.
    """
    change = grey - reference
    known = np.isfinite(change)
    if not known.any():
        return known
    change = _box(np.where(known, change - np.median(change[known]), 0))
    size = np.abs(change)
    noise = 1.4826 * float(np.median(size[known]))
    return ~_grown(~known | (size > np.clip(_SIGMAS * noise, *_NOISE)), _MARGIN)


def _box(image: np.ndarray) -> np.ndarray:
    """Mean of each pixel and its eight neighbours."""
    padded = np.pad(image, 1, "edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _grown(mask: np.ndarray, margin: int) -> np.ndarray:
    """Dilates the mask by ``margin`` rows and columns."""
    for _ in range(margin):
        padded = np.pad(mask, 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        mask = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return mask


class CutDetector:
    """Compares each frame with its predecessor.

    A cut changes most pixels, the layout and, mostly, the colours. Movement keeps the layout,
    shifted; a flash or a fade keeps it too. Frames without structure (black, white) are skipped,
    so that a new shot after a fade to black is compared with the last picture before it. In a
    video that starts with them, the first picture begins a shot.
    """

    def __init__(self) -> None:
        self.layout: np.ndarray = np.empty(0, np.float32)
        self.histogram = np.empty(0, np.float32)

    def is_cut(self, small: np.ndarray, *, fits: bool) -> bool:
        """Whether a frame begins another shot than the one before; the first frame does not.

        Args:
            small: RGB of the frame, float32 (h, w, 3), as `reduced` gives it.
            fits: Whether the frame's disparity could be fitted to what was before.
        """
        grey = luma(small)
        is_flat = float(grey.std()) < _FLAT
        if is_flat and self.layout.size:
            return False
        # Zeros are like no picture.
        layout = np.zeros((THUMBNAIL, THUMBNAIL), np.float32) if is_flat else _layout(grey)
        histogram = _histogram(small[::2, ::2])
        previous, colours = self.layout, self.histogram
        self.layout, self.histogram = layout, histogram
        if not previous.size:
            return False
        alike = _likeness(previous, layout)
        other = 0.5 * float(np.abs(colours - histogram).sum())  # 0 to 1
        limit = 0.35 + 0.35 * min(other / 0.4, 1.0) + (0.0 if fits else 0.1)
        return alike < limit

    def state(self) -> dict[str, np.ndarray]:
        """The state that `restore` takes."""
        return {"layout": self.layout, "histogram": self.histogram}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continues from a `state`."""
        self.layout, self.histogram = state["layout"], state["histogram"]


def _layout(grey: np.ndarray) -> np.ndarray:
    """A thumbnail with mean 0 and norm 1, faded towards its border."""
    from PIL import Image

    size = (THUMBNAIL, THUMBNAIL)
    small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX), np.float32)
    window = np.hanning(THUMBNAIL + 2)[1:-1].astype(np.float32) ** 0.5
    small = (small - small.mean()) * window * window[:, None]
    return small / max(float(np.linalg.norm(small)), 1e-6)


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest correlation of two layouts over all shifts, at most 1."""
    product = np.fft.rfft2(a) * np.conj(np.fft.rfft2(b))
    return float(np.fft.irfft2(product, a.shape).max())


def _histogram(small: np.ndarray) -> np.ndarray:
    """Shares of the colours, float32 (3 * bins,), per channel a third in total."""
    bins = np.minimum(small * np.float32(_BINS / 256), _BINS - 1)
    low = bins.astype(np.int32)
    # Each value is divided between two bins, so that a small change changes little.
    fraction = (bins - low).ravel()
    low += np.arange(3, dtype=np.int32) * (_BINS + 1)  # each channel has bins of its own
    k, size = low.ravel(), 3 * (_BINS + 1)
    counts = np.bincount(k, 1 - fraction, size) + np.bincount(k + 1, fraction, size)
    return (counts / counts.sum()).astype(np.float32)

"""The values of pictures: their range, their dtype, their channels."""

from __future__ import annotations

import numpy as np

from ._warnings import DataWarning, warn

_SLIVER = 1 / 16
"""Largest share of its range that a picture of more than 8 bits uses when a warning says so."""

_warned: set[tuple[str, str]] = set()


class ImageError(ValueError):
    """An image that cannot be read or used; the message names it and the reason."""


def warn_once(name: str, text: str, key: str = "") -> None:
    """Warns about a picture, once for each name and key (the text by default)."""
    if (name, key or text) not in _warned:
        _warned.add((name, key or text))
        warn(DataWarning, f"{name}: {text}")


def check_range(values: np.ndarray, top: int, name: str) -> None:
    """Checks that values are in 0..top and finite, and warns if they use a sliver of it."""
    low, high = float(values.min()), float(values.max())
    if low >= -1e-3 * top and high <= 1.001 * top:  # False for NaN
        warn_of_sliver(low, high, top, name)
        return
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ImageError(
            f"{name}: {bad} of {values.size} values are NaN or infinite; replace them, e.g. by "
            f"np.nan_to_num(image, posinf={top}, neginf=0)"
        )
    if low < -1000 * max(1.0, abs(high)):
        raise ImageError(
            f"{name}: the value {low:g} probably marks missing pixels; replace it, e.g. by "
            f"np.where(image == {low:g}, 0, image)"
        )
    kind = "floating-point images" if top == 1 else "images of more than 8 bits"
    raise ImageError(
        f"{name}: {kind} must be in 0..{top}; got {low:g}..{high:g} ({_remedy(low, high, top)})"
    )


def _remedy(low: float, high: float, top: int) -> str:
    """How to bring values from low..high into 0..top: the likely reason, and an expression."""
    if top == 65535:
        if low < 0 and high < 32768:
            return "values of int16: add 32768 and save the picture as uint16"
        return "scale them to 0..65535, or save the picture with 8 or 16 bits"
    if -0.51 <= low <= -0.4 and 0.4 <= high <= 0.51:
        return "values in -0.5..0.5: image + 0.5"
    if low >= -0.5 and high <= 1.5:
        return "resizing with a cubic filter overshoots: np.clip(image, 0, 1)"
    if low >= -1.01 and high <= 1.01:
        return "values in -1..1: (image + 1) / 2"
    if low < 0 and low >= -4 and high <= 4:
        return "values normalised by mean and standard deviation: image * std + mean"
    for bits in (8, 10, 12, 14, 16):
        most = 2**bits - 1
        if -most // 2 - 1 <= low < -most // 4 and most // 4 < high <= most / 2 + 1:
            return f"signed values of {bits} bits: (image + {most // 2 + 1}) / {most}"
        # Up to 3 the values could as well be those of a high-dynamic-range picture.
        if 3 < high <= 1.2 * most and low >= -0.2 * most:
            if low >= 0 and high <= most:
                return f"values of {bits} bits: divide by {most}"
            return f"values of {bits} bits with overshoot: np.clip(image / {most}, 0, 1)"
    return "scale them to 0..1, e.g. (image - image.min()) / (image.max() - image.min())"


def warn_of_sliver(low: float, high: float, top: int, name: str, *, reduced: bool = False) -> None:
    """Warns of values that use at most 1/16 of the range 0..top."""
    if not 0 < high - low <= _SLIVER * top:
        return
    advice = "stretch them, e.g. (image - image.min()) / (image.max() - image.min())"
    bits = 0
    if top > 1 and low < 0.25 * high:
        most = high * 257 if reduced else high
        bits = next(n for n in (8, 10, 12, 14) if most < 2**n + 256 * reduced)
        advice = f"if they have {bits} bits, multiply them by 65535 / {2**bits - 1}"
    elif top == 1 and 255 * high < 1.01:
        advice = "were they divided by 255 twice?"
    warn_once(
        name,
        f"values of {low:g}..{high:g} use a small part of 0..{top} and are not stretched, so the "
        f"prediction will be poor; {advice}",
        key=f"sliver {top} {bits}",
    )


def from_array(array: np.ndarray, name: str) -> np.ndarray:
    """A numpy image of any accepted kind to uint8 or float32 (H, W, 3)."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        hint = ""
        if array.ndim == 4:
            hint = "; for a batch pass list(batch)"
        elif array.ndim == 3 and array.shape[0] in (1, 2, 3, 4):
            hint = "; use image.transpose(1, 2, 0)"
        raise ImageError(
            f"{name}: an array must be (H, W), or (H, W, C) with 1 to 4 channels in the last "
            f"dimension, and not empty; got {array.shape}{hint}"
        )
    if not array.dtype.isnative:  # big-endian, as in some files
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.uint16:
        warn_of_sliver(float(array.min()), float(array.max()), 65535, name)
        array = array.astype(np.float32)
        array /= 65535
    elif np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32, copy=False)
        check_range(array, 1, name)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"{name}: dtype {array.dtype}; {_other_dtype(array)}")
    return as_rgb(array)


def _other_dtype(array: np.ndarray) -> str:
    """How to convert an array of a dtype that is not accepted."""
    if np.issubdtype(array.dtype, np.integer):
        low, high = int(array.min()), int(array.max())
        for dtype, top in (("uint8", 255), ("uint16", 65535)):
            if low >= 0 and high <= top:
                return f"its values fit: image.astype(np.{dtype})"
        return f"scale its values, {low}..{high}, to 0..1 in floating point"
    return "use uint8, uint16 or floating point"


def as_rgb(array: np.ndarray) -> np.ndarray:
    """uint8 or float32 (H, W, C), or float32 (H, W), to (H, W, 3), alpha laid over white."""
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] in (2, 4):
        white = np.float32(255 if array.dtype == np.uint8 else 1)
        alpha = array[..., -1].astype(np.float32)
        alpha /= white
        color = np.empty((*array.shape[:2], array.shape[2] - 1), array.dtype)
        for c in range(color.shape[2]):  # one at a time: floats of a large photo are large
            plane = array[..., c] * alpha + white * (1 - alpha)
            color[..., c] = plane.round() if array.dtype == np.uint8 else plane
        array = color
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return array

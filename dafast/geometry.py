"""Sizes of photos on their way to the network and back."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

from . import _warnings

FITS = ("pad", "official", "upper_bound", "video")
MAX_TOKENS = 8192


@dataclass(frozen=True)
class Geometry:
    """How one photo became one input of the network; sizes are (height, width) in pixels.

    Attributes:
        original: Size of the photo.
        resized: Size it is resized to.
        padding: Pixels added (left, right, top, bottom) after that.
        network: Size of the network's input, multiples of the patch.
        first: With ``fit="upper_bound"`` the size between the two resizes, else None.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    padding: tuple[int, int, int, int]
    network: tuple[int, int]
    first: tuple[int, int] | None = None


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def check_count(name: str, value: int, least: int, why: str) -> None:
    """Raises a ValueError, with the reason, unless an option is a whole number and at least so."""
    try:
        if operator.index(value) >= least:
            return
    except TypeError:
        why = "a whole number is needed"
    raise ValueError(f"{name}={value!r}: {why}")


def check_geometry(*, size: int, multiple: int, fit: str, max_tokens: int) -> None:
    """Raises the ValueError that `plan_geometry` raises for these options with any photo."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}; use one of {', '.join(FITS)}")
    check_count("size", size, multiple, f"it is smaller than a patch of {multiple} pixels")
    check_count("max_tokens", max_tokens, 2, "one patch and the cls token make two")


def plan_geometry(
    height: int,
    width: int,
    *,
    size: int = 518,
    multiple: int = 14,
    fit: str = "pad",
    max_tokens: int = MAX_TOKENS,
    warn: bool = True,
) -> Geometry:
    """Works out the sizes without touching a pixel.

    ``fit="pad"``: the shorter side becomes ``size``, the longer one is rounded to the nearest
    pixel, and both are padded up to a multiple, evenly, the odd pixel right and bottom.
    ``fit="official"``: the rule of the official script (`depth_anything/util/transform.py`,
    ``lower_bound``): scale = max(size/h, size/w), each side rounded to a multiple, up instead
    where rounding falls under ``size``; no padding.
    ``fit="upper_bound"``: the rule of Depth Anything 3: the longer side becomes ``size``, the
    shorter one is rounded to the nearest pixel; then each side goes to the nearest multiple, up at
    a tie, in a second resize; no padding.
    ``fit="video"``: the rule of Video-Depth-Anything: ``"official"``, with a smaller ``size`` for
    frames whose sides differ by more than 1.78 times, so that a long side takes no more memory.

    A photo that would need more than ``max_tokens`` tokens (patches and the cls token) is
    scaled down until it fits, with a warning; no side falls under ``multiple``.

    Args:
        height: Height of the photo in pixels.
        width: Width of the photo in pixels.
        size: Wanted shorter side in pixels; the longer one with ``fit="upper_bound"``.
        multiple: Patch size in pixels.
        fit: ``"pad"``, ``"official"``, ``"upper_bound"`` or ``"video"``.
        max_tokens: Upper bound on (H / multiple) * (W / multiple) + 1.
        warn: Whether to log a warning for a photo that is scaled down.

    Returns:
        The geometry.

    Raises:
        ValueError: For an empty photo, an unknown ``fit``, a ``size`` under ``multiple``, or
            options that are no whole numbers.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel; got {height}x{width}")
    check_geometry(size=size, multiple=multiple, fit=fit, max_tokens=max_tokens)

    def tokens(sides: tuple[int, int]) -> int:
        return _round_up(sides[0], multiple) * _round_up(sides[1], multiple) // multiple**2 + 1

    if fit == "video":
        fit, size = "official", _video_size(height, width, size, multiple)
    bound = fit == "upper_bound"
    scale = (min if bound else max)(size / height, size / width)
    sides = _sides(height, width, scale, size, multiple, fit)
    wanted = tokens(sides)
    while tokens(sides) > max_tokens and max(sides) > multiple:
        # sqrt would do for a continuous size; rounding up to patches may need a few steps more.
        scale *= min(0.995, math.sqrt(max_tokens / tokens(sides)))
        shrunk = _sides(height, width, scale, 0, multiple, fit)
        # A side at its floor of one patch stays; only the other one shrinks.
        longest = (max_tokens - 1) * multiple
        sides = (min(shrunk[0], longest), min(shrunk[1], longest))
    if wanted > max_tokens and warn:
        _warnings.warn(
            _warnings.DataWarning,
            f"an image of {width}x{height} pixels would take {wanted} tokens; scaled down to "
            f"{tokens(sides)} (max_tokens={max_tokens})",
        )
    network = (_round_up(sides[0], multiple), _round_up(sides[1], multiple))
    extra_h, extra_w = network[0] - sides[0], network[1] - sides[1]
    padding = (extra_w // 2, extra_w - extra_w // 2, extra_h // 2, extra_h - extra_h // 2)
    first = _whole(height, width, scale) if bound else None
    return Geometry((height, width), sides, padding, network, first)


def _video_size(height: int, width: int, size: int, multiple: int) -> int:
    """The ``size`` of Video-Depth-Anything for frames of these sides."""
    ratio = max(height, width) / min(height, width)
    if ratio <= 1.78:
        return size
    return max(multiple, round(int(size * 1.777 / ratio) / multiple) * multiple)


def _whole(height: int, width: int, scale: float) -> tuple[int, int]:
    """Both sides scaled to whole pixels."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def _sides(
    height: int, width: int, scale: float, size: int, multiple: int, fit: str
) -> tuple[int, int]:
    """Both sides after scaling; ``size`` > 0 is the least that the official rule allows."""
    if fit == "pad":
        return tuple(max(multiple, round(side * scale)) for side in (height, width))  # type: ignore[return-value]
    if fit == "upper_bound":
        first = _whole(height, width, scale)
        return tuple(  # type: ignore[return-value]
            max(multiple, (2 * side + multiple) // (2 * multiple) * multiple) for side in first
        )
    sides = []
    for side in (height, width):
        # Python's round is half to even, as np.round in the official script.
        rounded = round(side * scale / multiple) * multiple
        if rounded < size:
            rounded = math.ceil(side * scale / multiple) * multiple
        sides.append(max(multiple, rounded))
    return sides[0], sides[1]

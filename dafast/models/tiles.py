"""Large photos in overlapping tiles: the layout of one whole pass, the detail of many.

The whole photo gives a map in which everything is in its place, at the resolution of the network.
Each tile gives a sharper map of its part, up to a scale and a shift, which a robust fit to the
whole map finds, in disparity. Where the two still differ at low frequencies, the whole map counts.
Tiles are blended with weights that fall to 0 at their borders.

Memory, in addition to the photo and the resulting map, depends only on the tile and the width of
the photo: finished rows are written while later ones are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..alignment import robust_scale_shift
from ..config import ModelConfig
from ..geometry import check_count
from ..ops import Geometry, guided_upsample
from .inference import InferenceOptions, predict_maps
from .network import DepthNetwork

OVERLAP = 0.25
"""Part of a tile that it shares with its neighbour, at least."""

_SAMPLES = 64  # along each side of a tile, of which the scale and the shift are fitted
_CELLS = 16  # along each side of a tile, in which its difference to the whole map is averaged
_SIGMA = 2.0  # cells: the difference is smoothed by a Gaussian; what is left is the tile's own
_LEAST_INLIERS = 0.5  # fewer pixels that agree with the fit: the tile contradicts the whole map


def check_tile(tile: int | str | None, config: ModelConfig) -> None:
    """Raises a ValueError unless ``tile`` is None, ``"auto"`` or a number of pixels."""
    if tile is None or tile == "auto":
        return
    if isinstance(tile, str):
        raise ValueError(f"tile={tile!r}; use 'auto' or a number of pixels")
    check_count("tile", tile, 4 * config.patch_size, "a tile needs at least 4 x 4 patches")


def tile_side(shape: tuple[int, int], size: int, tile: int | str | None) -> int | None:
    """The side of the tiles in pixels; None for a photo that one pass serves.

    ``"auto"``: two and a half times as many pixels as the network sees, or more: at most 8 tiles
    lie along the longer side. A photo that is little larger than that is predicted in one pass.

    Args:
        shape: Height and width of the photo.
        size: Side in pixels of the network's input.
        tile: ``"auto"`` or the side in pixels; None for one pass.
    """
    if tile is None:
        return None
    if tile == "auto":
        side = max(round(2.5 * size), math.ceil(max(shape) / (1 + 7 * (1 - OVERLAP))))
        return side if min(shape) >= 1.2 * side else None
    return int(tile) if max(shape) > int(tile) else None


def starts_of(length: int, side: int) -> list[int]:
    """Computes the starts of tiles of this side, evenly spaced, with `OVERLAP` or more overlap."""
    if length <= side:
        return [0]
    step = max(1, math.floor(side * (1 - OVERLAP)))
    count = 1 + math.ceil((length - side) / step)
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def predict_tiled(
    model: DepthNetwork,
    photo: np.ndarray,
    options: InferenceOptions,
    tile: int | str | None,
    guided: bool = False,
) -> tuple[Tensor, Geometry]:
    """Predicts one photo in tiles, or in one pass.

    Args:
        model: Any model.
        photo: (H, W, 3) RGB, uint8, or float32 in 0..1.
        options: Those of the whole pass and of each tile.
        tile: ``"auto"`` or the side of the tiles in pixels; None for one pass.
        guided: Whether maps are enlarged by `dafast.ops.guided_upsample`.

    Returns:
        The map (H, W), float32, on the CPU, in the quantity of the model, and the geometry of the
        whole pass.
    """
    height, width = photo.shape[:2]
    side = tile_side((height, width), options.size_for(model.config), tile)
    geometries: dict[int, Geometry] = {}
    if side is None:
        (whole,) = _maps(model, [photo], options, guided, geometries)
        return whole, geometries[0]
    whole = predict_maps(model, [photo], options, native=True, geometries=geometries)[0].cpu()
    inverse = model.config.quantity != "disparity"
    whole = _invert(whole) if inverse else whole
    rows, columns = starts_of(height, side), starts_of(width, side)
    tall, wide = min(side, height), min(side, width)
    result = torch.empty(height, width)
    band = torch.zeros(2, tall, width)  # sums of weighted values and of weights
    for k, top in enumerate(rows):
        crops = [photo[top : top + tall, left : left + wide] for left in columns]
        maps = _maps(model, crops, options, guided)
        for left, predicted in zip(columns, maps, strict=True):
            sharp = _invert(predicted) if inverse else predicted
            base = _window(
                whole,
                (height, width),
                (top, left, tall, wide),
                model.config.output_align_corners,
            )
            weight = _ramp(top, tall, rows)[:, None] * _ramp(left, wide, columns)
            part = band[:, :, left : left + wide]
            part[0] += weight * merge(sharp, base)
            part[1] += weight
        end = rows[k + 1] if k + 1 < len(rows) else height
        done = end - top
        finished = band[0, :done] / band[1, :done]
        result[top:end] = _invert(finished) if inverse else finished
        for sums in band:  # one after the other: half of the memory
            kept = sums[done:].clone()
            sums[: tall - done] = kept
            sums[tall - done :] = 0
    return result, geometries[0]


def _maps(
    model: DepthNetwork,
    photos: list[np.ndarray],
    options: InferenceOptions,
    guided: bool,
    geometries: dict[int, Geometry] | None = None,
) -> list[Tensor]:
    """Maps of photos at their size, on the CPU."""
    maps = predict_maps(model, photos, options, native=guided, geometries=geometries)
    maps = [out.cpu() for out in maps]
    if not guided:
        return maps
    corners = model.config.output_align_corners
    return [
        guided_upsample(
            out[None, None], torch.from_numpy(photo).permute(2, 0, 1)[None], align_corners=corners
        )[0, 0]
        for out, photo in zip(maps, photos, strict=True)
    ]


def merge(sharp: Tensor, base: Tensor) -> Tensor:
    """The detail of a tile with the layout of the whole map, both disparity (h, w)."""
    steps = [max(1, side // _SAMPLES) for side in sharp.shape]
    x, y = (
        m[steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]].flatten() for m in (sharp, base)
    )
    known = x.isfinite() & y.isfinite()
    if known.sum() < 16:
        return base
    fit = robust_scale_shift(x[known], y[known])
    if fit.scale <= 0 or fit.inliers.double().mean() < _LEAST_INLIERS:
        return base
    aligned = fit.scale * sharp + fit.shift
    return aligned + _smooth(base - aligned)


def _smooth(difference: Tensor) -> Tensor:
    """The low frequencies of a map (h, w)."""
    height, width = difference.shape
    coarse = F.adaptive_avg_pool2d(difference[None], (min(_CELLS, height), min(_CELLS, width)))
    reach = math.ceil(3 * _SIGMA)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / _SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(coarse[None], (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    blurred = F.conv2d(rows, kernel.view(1, 1, 1, -1))
    return F.interpolate(blurred, size=(height, width), mode="bicubic", align_corners=False)[0, 0]


def _invert(values: Tensor) -> Tensor:
    """Depth from disparity, or the other way; positive."""
    return 1 / values.clamp(min=1e-6)


def _ramp(start: int, length: int, starts: Sequence[int]) -> Tensor:
    """Weights (length,) of a tile along one axis: 1, falling to 0 where it overlaps a neighbour."""
    k = list(starts).index(start)
    weight = torch.ones(length)
    for other in (starts[k - 1] if k else None, starts[k + 1] if k + 1 < len(starts) else None):
        if other is None:
            continue
        shared = length - abs(other - start)
        if shared > 0:
            # Raised cosine: at every pixel of the overlap two neighbours add up to 1.
            ramp = torch.sin((torch.arange(shared) + 0.5) / shared * math.pi / 2) ** 2
            if other < start:
                weight[:shared] *= ramp
            else:
                weight[length - shared :] *= ramp.flip(0)
    return weight.clamp(min=1e-6)


def _window(
    native: Tensor, size: tuple[int, int], part: tuple[int, int, int, int], align_corners: bool
) -> Tensor:
    """A part (top, left, height, width) of a map that is resized to ``size``."""
    out = native
    for axis, (target, start, length) in enumerate(zip(size, part[:2], part[2:], strict=True)):
        source = native.shape[axis]
        place = torch.arange(start, start + length, dtype=torch.float64)
        if align_corners:
            place = place * ((source - 1) / max(1, target - 1))
        else:
            place = ((place + 0.5) * (source / target) - 0.5).clamp(0, source - 1)
        low = place.floor().long().clamp(0, source - 1)
        high = (low + 1).clamp(max=source - 1)
        share = (place - low).float()
        share = share[:, None] if axis == 0 else share
        out = out.index_select(axis, low) * (1 - share) + out.index_select(axis, high) * share
    return out

"""Forward warp with a depth test: moves every pixel of an image, and fills what stays empty.

It renders a photo from another position: pixels move with their depth, near ones hide far ones,
and the holes behind near ones are filled from the background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension
from ._dispatch import Op
from ._kernel_op import KernelOp

FRACTIONS = 256
"""Targets are rounded to this fraction of a pixel, so that whole-pixel shifts copy pixels."""

FARTHEST = 1 << 20
"""Pixels that move farther than this, or whose flow or order is not finite, are left out."""


def _splat(image: Tensor, flow: Tensor, order: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Moves the pixels of one image.

    Returns:
        The image (C, H, W), 0 where nothing landed, and the order there (H, W), -inf in holes.
    """
    channels, height, width = image.shape
    device, order = image.device, order.float()
    x = torch.arange(width, device=device, dtype=torch.float32) + flow[0].float()
    y = torch.arange(height, device=device, dtype=torch.float32)[:, None] + flow[1].float()
    lands = (x.abs() < FARTHEST) & (y.abs() < FARTHEST) & order.isfinite()  # false for NaN
    x = (torch.where(lands, x, 0) * FRACTIONS).round().long()
    y = (torch.where(lands, y, 0) * FRACTIONS).round().long()
    corners = []
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = (x >> 8) + dx, (y >> 8) + dy
            weight_x = (x & 255) if dx else FRACTIONS - (x & 255)
            weight_y = (y & 255) if dy else FRACTIONS - (y & 255)
            weight = weight_x * weight_y
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            source = (lands & inside & (weight > 0)).flatten().nonzero()[:, 0]
            target = (row * width + column).flatten()[source]
            corners.append((source, target, weight.flatten()[source].to(image.dtype)))
    nearest = torch.full((height * width,), -torch.inf, device=device)
    order = order.flatten()
    for source, target, _ in corners:
        nearest.scatter_reduce_(0, target, order[source], "amax")
    total = torch.zeros(height * width, dtype=image.dtype, device=device)
    out = torch.zeros(channels, height * width, dtype=image.dtype, device=device)
    for source, target, weight in corners:
        shown = order[source] >= nearest[target] - tolerance
        source, target, weight = source[shown], target[shown], weight[shown]
        total = total.index_add(0, target, weight)
        out = out.index_add(1, target, image.flatten(1)[:, source] * weight)
    out = out / torch.where(total > 0, total, 1)
    return out.view(image.shape), nearest.view(height, width)


def _fill_once(image: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Fills the holes that have a pixel in their row or column.

    Along each of both axes the side with the smaller order is taken, and the two are averaged with
    the inverse squares of their distances as weights.
    """
    hole = order == -torch.inf
    total = torch.zeros_like(image[0])
    colours, orders = torch.zeros_like(image), torch.zeros_like(order)
    for axis in (1, 0):
        size = hole.shape[axis]
        shape = (1, size) if axis == 1 else (size, 1)
        place = torch.arange(size, device=hole.device).view(shape).expand(hole.shape)
        before = torch.where(hole, -1, place).cummax(axis).values
        after = torch.where(hole, size, place).flip(axis).cummin(axis).values.flip(axis)

        def at(x: Tensor, index: Tensor, axis: int = axis, size: int = size) -> Tensor:
            index = index.clamp(0, size - 1).expand(x.shape)
            return x.gather(axis - 2, index)

        first, second = before >= 0, after < size
        order_before = torch.where(first, at(order, before), torch.inf)
        order_after = torch.where(second, at(order, after), torch.inf)
        # The nearer of two sides with the same order; then the one before.
        closer = (place - before <= after - place) | ~second
        left = (order_before < order_after) | ((order_before == order_after) & closer & first)
        taken = torch.where(left, before, after)
        distance = (place - taken).abs().to(image.dtype)
        weight = torch.where(hole & (first | second), 1 / distance.clamp(min=1) ** 2, 0)
        total = total + weight
        colours = colours + weight * at(image, taken)
        chosen = torch.where(left, order_before, order_after)
        orders = orders + torch.where(weight > 0, weight.float() * chosen, 0)
    filled = hole & (total > 0)
    safe = torch.where(filled, total, 1)
    return (
        torch.where(filled, colours / safe, image),
        torch.where(filled, orders / safe.float(), order),
    )


def forward_warp_reference(
    image: Tensor, flow: Tensor, order: Tensor, tolerance: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Specification of `forward_warp`: bilinear splatting with a depth test, then two fills."""
    images, holes = [], []
    for one, moved, near in zip(image, flow, order[:, 0], strict=True):
        out, nearest = _splat(one, moved, near, tolerance)
        holes.append(nearest == -torch.inf)
        for _ in range(2):  # after the first every row that has a pixel is complete
            out, nearest = _fill_once(out, nearest)
        images.append(out)
    if not images:
        return image.clone(), torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return torch.stack(images), torch.stack(holes)[:, None]


def _results(image: Tensor, flow: Tensor, order: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(image, memory_format=torch.contiguous_format),
        torch.empty(order.shape, dtype=torch.bool, device=order.device),
    )


def _kernel(image: Tensor, flow: Tensor, order: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    out, holes = _results(image, flow, order, tolerance)
    torch.ops.dafast_C.forward_warp(
        image.contiguous(), flow.contiguous(), order.contiguous(), out, holes, tolerance
    )
    return out, holes


_op = KernelOp(
    "forward_warp(Tensor image, Tensor flow, Tensor order, float tolerance) -> (Tensor, Tensor)",
    fake=_results,
    cpp=_kernel,
)


def _limits(image: Tensor, flow: Tensor, order: Tensor, _tolerance: float) -> str:
    for x in (image, flow, order):
        if x.dtype != torch.float32:
            return f"takes float32, not {x.dtype}"
    return ""


_forward_warp = Op(
    "forward_warp",
    forward_warp_reference,
    {"cpp": _extension.backend("cpp", "forward_warp", _op, _limits, backward=False)},
)


def forward_warp(
    image: Tensor, flow: Tensor, order: Tensor, tolerance: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Moves every pixel of images by its flow; near pixels hide far ones; holes are filled.

    A pixel is spread over the four pixels around its target with bilinear weights. Of those that
    land on one pixel, the ones whose order is within ``tolerance`` of the largest are averaged;
    the others are hidden. Targets are rounded to 1/256 pixel, so a flow of whole pixels copies
    values, and a flow of 0 returns the image. A surface that is stretched to less than twice its
    size has no holes.

    A hole takes the colours next to it in its row and in its column, each from the side with the
    smaller order (the background), and averages the two with the inverse squares of their
    distances as weights. Nothing stays empty, unless all pixels leave the image: then it is 0.

    The result is the same in every run and for any number of threads. The reference has a gradient
    for ``image``; the C++ kernel has none.

    Args:
        image: (B, C, H, W), float32 or float64.
        flow: (B, 2, H, W), floating point: the shift of each pixel to the right and down, in
            pixels. A pixel whose flow or order is not finite is left out.
        order: (B, 1, H, W), floating point: large is near.
        tolerance: Difference in ``order`` up to which two pixels belong to the same surface. The
            default fits an ``order`` in pixels of the flow: surfaces that hide each other differ by
            1 or more.

    Returns:
        The image (B, C, H, W) in its dtype, and the holes (B, 1, H, W), bool, that were filled.

    Raises:
        ValueError: If shapes or dtypes do not fit, H or W is 0, or ``tolerance`` is negative.
    """
    if image.ndim != 4 or 0 in image.shape[-2:]:
        raise ValueError(f"image must be (B, C, H, W), H and W > 0; got {tuple(image.shape)}")
    batch, _, height, width = image.shape
    for name, x, channels in (("flow", flow, 2), ("order", order, 1)):
        if x.shape != (batch, channels, height, width) or not x.is_floating_point():
            raise ValueError(
                f"{name} must be floating point ({batch}, {channels}, {height}, {width}) for an "
                f"image {tuple(image.shape)}; got {x.dtype} {tuple(x.shape)}"
            )
    if image.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"image must be float32 or float64; got {image.dtype}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0; got {tolerance}")
    return _forward_warp(image, flow, order, float(tolerance))

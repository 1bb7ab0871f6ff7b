"""Affine-invariant loss: median/MAD-normalised L1 between disparity maps (Eqs. 1-3)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Op, wrong_dtype
from ._kernel_op import KernelOp

MIN_SCALE = 1e-6
"""Lower bound of the scale s(d); a constant map would otherwise divide by zero."""

_MAX_PIXELS = 2**31 - 2**16  # 32-bit indices, also of the last block's pixels beyond the map


def _normalise(values: Tensor) -> Tensor:
    """(d - t) / s of the valid values of one map; t the lower median, s the mean |d - t|."""
    shift = values.median()
    scale = (values - shift).abs().mean().clamp_min(MIN_SCALE)
    return (values - shift) / scale


def _map_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Loss of one map over the pixels in ``mask``; 0 (with zero gradient) without any."""
    if not mask.any():
        # Indexing keeps masked pixels out even if they are NaN; the sum keeps the graph.
        return prediction[mask].sum()
    return (_normalise(prediction[mask]) - _normalise(target[mask])).abs().mean()


def affine_invariant_loss_reference(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, regions: Tensor | None = None
) -> Tensor:
    """Specification of `affine_invariant_loss`, one map after the other, in float32 inside.

    `torch.median` gives the lower median, and its full reduction divides the gradient equally
    over all elements equal to it.
    """
    compute = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    prediction, target = prediction.to(compute), target.detach().to(compute)
    if prediction.numel() == 0:
        return prediction.sum()  # 0, with a graph
    if mask is None:
        mask = torch.ones_like(target, dtype=torch.bool)
    total = prediction.new_zeros(())
    for i, (p, t, m) in enumerate(zip(prediction, target, mask, strict=True)):
        if regions is None:
            total = total + _map_loss(p, t, m)
        else:
            for region in (regions[i], ~regions[i]):
                total = total + region.float().mean() * _map_loss(p, t, m & region)
    return total / len(prediction)


_launch = _triton.launcher("affine_invariant_loss", "affine_invariant_loss_fwd")


def _empty_results(prediction: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    """For the loss, and for what the backward needs: 8 float32 of each map and region."""
    _target, _mask, regions, _backend = args
    return (
        prediction.new_empty((), dtype=torch.float32),
        prediction.new_empty(
            (prediction.shape[0], 1 if regions is None else 2, 8), dtype=torch.float32
        ),
    )


def _dense_maps(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors whose maps are dense (any stride between maps), copies of the others."""
    return [x if x is None or x[:1].is_contiguous() else x.contiguous() for x in tensors]


def _extension_forward(*args: Any) -> tuple[Tensor, Tensor]:
    results = _empty_results(*args, "")
    torch.ops.dafast_C.affine_invariant_loss(*_dense_maps(*args), MIN_SCALE, *results)
    return results


_op = KernelOp(
    "affine_invariant_loss(Tensor prediction, Tensor target, Tensor? mask, Tensor? regions,"
    " str backend) -> (Tensor, Tensor)",
    fake=_empty_results,
    triton=lambda *args: _launch(*args, MIN_SCALE),
    cpp=_extension_forward,
    cuda=_extension_forward,
)


def _extension_backward(grad: Tensor, prediction: Tensor, *args: Any) -> Tensor:
    *others, coefficients = args
    out = prediction.new_empty(prediction.shape)
    torch.ops.dafast_C.affine_invariant_loss_backward(
        grad, *_dense_maps(prediction, *others), coefficients, out
    )
    return out


_backward_op = KernelOp(
    "affine_invariant_loss_backward(Tensor grad, Tensor prediction, Tensor target, Tensor? mask,"
    " Tensor? regions, Tensor coefficients, str backend) -> Tensor",
    fake=lambda grad, prediction, *_: prediction.new_empty(prediction.shape),
    triton=_triton.launcher("affine_invariant_loss", "affine_invariant_loss_bwd"),
    cpp=_extension_backward,
    cuda=_extension_backward,
)


_op.differentiate_by(_backward_op, lambda inputs, results: (*inputs[:4], results[1], inputs[-1]))


def _backend(name: str) -> Callable[..., Tensor]:
    return lambda prediction, target, *others: _op(prediction, target.detach(), *others, name)[0]


def _limits(prediction: Tensor, target: Tensor, *_: Any) -> str:
    return wrong_dtype(prediction.dtype, target.dtype)


def _triton_limits(prediction: Tensor, target: Tensor, *_: Any) -> str:
    pixels = prediction.shape[1] * prediction.shape[2]
    if pixels > _MAX_PIXELS:
        return f"takes maps of up to {_MAX_PIXELS} pixels, not {pixels}"
    return _limits(prediction, target)


@functools.lru_cache
def _why_no_cluster(device: int, pixels: int, regions: int) -> str:
    """Why no cluster of thread blocks of a GPU keeps a map in its shared memory."""
    ask = getattr(_extension.load(), "affine_invariant_loss_cluster", None)
    if ask is None:
        return f"the C++ extension is of an older version: {_extension.HOW_TO_BUILD}"
    if ask(device, pixels, regions) == 0:
        return (
            f"no cluster of thread blocks keeps {pixels} pixels in its shared memory; it takes "
            "compute capability 9.0 or later and smaller maps"
        )
    return ""


# A constant while torch.compile traces; see `_dispatch._context`.
_why_no_cluster._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _cuda_limits(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, regions: Tensor | None = None
) -> str:
    pixels = prediction.shape[1] * prediction.shape[2]
    return _limits(prediction, target) or _why_no_cluster(
        prediction.device.index, pixels, 1 if regions is None else 2
    )


def _cuda_preferred(*_: Any) -> str:
    return "was never timed, and serves only when it is asked for by name"


_affine_invariant_loss = Op(
    "affine_invariant_loss",
    affine_invariant_loss_reference,
    {
        "triton": _triton.backend(_backend("triton"), _triton_limits),
        "cpp": _extension.backend("cpp", "affine_invariant_loss", _backend("cpp"), _limits),
        "cuda": _extension.backend(
            "cuda", "affine_invariant_loss", _backend("cuda"), _cuda_limits, _cuda_preferred
        ),
    },
)


def affine_invariant_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, regions: Tensor | None = None
) -> Tensor:
    """Mean over the batch of the affine-invariant loss of each map.

    For a map d over its valid pixels: t = lower median, s = mean |d - t| (at least 1e-6),
    d_hat = (d - t) / s; the loss is mean |d_hat_prediction - d_hat_target| (Depth Anything,
    Eqs. 1-3). Invalid pixels take no part in any of it and may hold NaN or inf. The gradient
    flows through t and s; the target gets none; invalid pixels get exactly 0. A map without a
    valid pixel contributes 0.

    Args:
        prediction: Disparity (B, H, W), floating point.
        target: Disparity (B, H, W), floating point.
        mask: Valid pixels (B, H, W), bool; all by default.
        regions: (B, H, W), bool; splits each map in two (CutMix, Eqs. 7-8). Each map's loss is
            then the sum over its two regions of the region's share of H*W times the loss within
            it, with its own median and scale.

    Returns:
        A scalar, float32 (float64 for a float64 prediction).

    Raises:
        ValueError: If shapes or dtypes do not fit together.
    """
    if prediction.ndim != 3 or prediction.shape != target.shape:
        raise ValueError(
            "affine_invariant_loss needs prediction and target of one shape (B, H, W); got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if not prediction.is_floating_point() or not target.is_floating_point():
        raise ValueError(f"floating point expected; got {prediction.dtype}, {target.dtype}")
    for name, extra in (("mask", mask), ("regions", regions)):
        if extra is not None and (extra.shape != prediction.shape or extra.dtype != torch.bool):
            raise ValueError(
                f"{name} must be bool of shape {tuple(prediction.shape)}; got {extra.dtype} "
                f"{tuple(extra.shape)}"
            )
    return _affine_invariant_loss(prediction, target, mask, regions)


def lower_medians(maps: Tensor, mask: Tensor) -> Tensor:
    """The lower median of the valid pixels of each map, without a gradient.

    Args:
        maps: (B, H, W), floating point.
        mask: Valid pixels (B, H, W), bool.

    Returns:
        (B,) in the dtype of ``maps``; 0 for a map without a valid pixel.
    """
    # On a CPU the kernel of the loss selects; a sort takes ten times as long.
    if maps.dtype == torch.float32 and _affine_invariant_loss.select(maps, maps, mask) == "cpp":
        return _op(maps, maps, mask, None, "cpp")[1][:, 0, 0]
    count = mask.sum(dim=(1, 2))[:, None]
    ordered = maps.masked_fill(~mask, torch.inf).flatten(1).sort(dim=1).values
    middle = ordered.gather(1, (count - 1).clamp_min(0) // 2)
    return middle.where(count > 0, 0.0)[:, 0]

"""Rows in e4m3 with a scale each, which products in fp8 multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _triton
from ._dispatch import Check, Op, wrong_dtype
from ._kernel_op import KernelOp

MAX_E4M3 = 448.0
"""The largest value of e4m3: 3 binary digits below the first one; the smallest is 2^-9."""

MIN_CAPABILITY = (8, 9)
"""Oldest NVIDIA compute capability with e4m3 (Ada)."""

_MAX_CHANNELS = 8192
"""A row has to fit in the registers of one program."""


class Fp8Rows(NamedTuple):
    """Rows in e4m3, from `quantize_fp8` or `add_layer_norm_fp8`.

    Attributes:
        values: float8_e4m3fn (..., C).
        scale: float32 (...); a row is its values times its scale.
    """

    values: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """The rows as float32 (..., C)."""
        return self.values.float() * self.scale[..., None]


def why_no_fp8(device: torch.device) -> str:
    """Why a device does not compute in e4m3, or ""."""
    if device.type != "cuda":
        return f"fp8 needs an NVIDIA GPU, not {device.type!r}"
    if torch.version.hip is not None:
        return "fp8 needs an NVIDIA GPU: those of AMD have another format than e4m3"
    found = torch.cuda.get_device_capability(device)
    if found < MIN_CAPABILITY:
        needed = ".".join(map(str, MIN_CAPABILITY))
        return f"fp8 needs compute capability {needed} or later; the GPU has {found[0]}.{found[1]}"
    return ""


def round_rows(y: Tensor) -> tuple[Tensor, Tensor]:
    """Values and scales of rows (..., C) in float32: the specification of the rounding."""
    most = y.abs().amax(-1)
    # Not `448 / most` of a Python number, which PyTorch computes by a rounded reciprocal.
    steps = torch.full_like(most, MAX_E4M3) / most.masked_fill(most == 0, 1)
    steps = steps.clamp_max(torch.finfo(torch.float32).max)  # of an infinite quotient
    scale = most / torch.full_like(most, MAX_E4M3)
    return (y * steps[..., None]).to(torch.float8_e4m3fn), scale


def quantize_fp8_reference(x: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Specification of `quantize_fp8`."""
    y = x.float()
    return round_rows(F.gelu(y) if gelu else y)


def _empty_results(x: Tensor, _gelu: bool) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape, dtype=torch.float8_e4m3fn),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
    )


_op = KernelOp(
    "quantize_fp8(Tensor x, bool gelu) -> (Tensor, Tensor)",
    fake=_empty_results,
    triton=_triton.launcher("quantize_fp8", "quantize_fp8_fwd"),
)


def limits(*dtypes: torch.dtype, device: torch.device, channels: int, most: int) -> str:
    """The check of the kernels that write rows in e4m3."""
    if device.type == "cuda" and (why := why_no_fp8(device)):
        return why
    if reason := wrong_dtype(*dtypes):
        return reason
    return "" if channels <= most else f"takes up to {most} channels, not {channels}"


def _limits(x: Tensor, _gelu: bool) -> str:
    return limits(x.dtype, device=x.device, channels=x.shape[-1], most=_MAX_CHANNELS)


def backend(fn: Callable[..., Any], check: Check) -> Any:
    """A backend of Triton kernels that write rows in e4m3, which have no backward."""
    return _triton.backend(fn, check, backward=False)


_quantize_fp8 = Op("quantize_fp8", quantize_fp8_reference, {"triton": backend(_op, _limits)})


def quantize_fp8(x: Tensor, *, gelu: bool = False) -> Fp8Rows:
    """Rounds rows to e4m3, each scaled to a largest magnitude of 448; for inference.

    Weights (N, K) get a scale for each output channel, activations (..., K) one for each token. A
    row with NaN or an infinity gives no finite product.

    Args:
        x: (..., C), at least one channel; any floating-point type.
        gelu: Whether to quantise GELU(x), exact (erf), instead of x.

    Returns:
        The rows of the shape of ``x``.

    Raises:
        ValueError: If the shape or the dtype does not fit.
    """
    if x.ndim == 0 or not x.shape[-1] or not x.is_floating_point():
        raise ValueError(
            "quantize_fp8 needs floating-point rows (..., C), C at least 1; got "
            f"{x.dtype} {tuple(x.shape)}"
        )
    return Fp8Rows(*_quantize_fp8(x, gelu))

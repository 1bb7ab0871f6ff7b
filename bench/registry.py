"""Inputs of every op: what the benchmarks time and check.

A case makes fresh inputs from a seed. ``work`` says what the op cannot avoid: floating-point
operations of the forward, and bytes that it must read and write once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dafast import ops


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: Name in `dafast.ops`.
        label: Shape in words.
        make: Takes (seed, dtype, device) and returns the positional arguments.
        call: The public function as it is benchmarked.
        differentiable: Positions of the arguments that get a gradient.
        flops: Floating-point operations of the forward.
        bytes: Takes the element size, returns the bytes that must move in the forward.
        dtypes: What the op is used with.
        tolerance: Largest accepted error over max |reference|, per dtype.
    """

    op: str
    label: str
    make: Callable[[int, torch.dtype, torch.device], tuple[Any, ...]]
    call: Callable[..., torch.Tensor]
    differentiable: tuple[int, ...]
    flops: float
    bytes: Callable[[int], float]
    dtypes: tuple[torch.dtype, ...]
    tolerance: dict[torch.dtype, float]


def _attention(batch: int, tokens: int, heads: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        qkv = torch.randn(batch, tokens, 3, heads, 64, generator=generator)
        return (qkv.to(device, dtype),)

    return Case(
        op="flash_attention",
        label=f"{batch}x{tokens} tokens, {heads} heads",
        make=make,
        call=ops.flash_attention_qkvpacked,
        differentiable=(0,),
        flops=4.0 * batch * heads * tokens**2 * 64,
        bytes=lambda size: 4.0 * batch * tokens * heads * 64 * size,
        dtypes=(torch.float32, torch.bfloat16),
        tolerance={torch.float32: 1e-5, torch.bfloat16: 2e-2},
    )


def _loss(batch: int, side: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, side, side)
        prediction = torch.rand(shape, generator=generator).to(device, dtype)
        target = torch.rand(shape, generator=generator).to(device)
        mask = (torch.rand(shape, generator=generator) < 0.8).to(device)
        return prediction, target, mask

    pixels = batch * side * side
    return Case(
        op="affine_invariant_loss",
        label=f"{batch}x{side}x{side}, 20% masked",
        make=make,
        call=ops.affine_invariant_loss,
        differentiable=(0,),
        flops=10.0 * pixels,
        bytes=lambda size: pixels * (size + 4.0 + 1.0),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2},
    )


def _bicubic(height: int, width: int, size: tuple[int, int]) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, height, width, generator=generator)
        return image.to(device, dtype), size

    return Case(
        op="resize_bicubic",
        label=f"{width}x{height} to {size[1]}x{size[0]}",
        make=make,
        call=ops.resize_bicubic,
        differentiable=(),
        flops=3.0 * 8 * (size[0] * width + size[0] * size[1]),
        # Without antialiasing only four rows per output row are looked at.
        bytes=lambda b: 3.0 * b * (min(height, 4 * size[0]) * width + size[0] * size[1]),
        dtypes=(torch.float32,),
        tolerance={torch.float32: 1e-5},
    )


CASES: tuple[Case, ...] = (
    _attention(1, 1370, 6),
    _attention(1, 1370, 16),
    _loss(8, 518),
    _bicubic(1080, 1920, (518, 924)),
)
"""The shapes of the models; ViT-S and ViT-L at 518x518."""

SMALL_CASES: tuple[Case, ...] = (
    _attention(1, 50, 2),
    _loss(2, 30),
    _bicubic(40, 60, (28, 42)),
)
"""The same ops at sizes for tests."""

"""Cases of the ops of pictures and maps, made by their sizes."""

from __future__ import annotations

from typing import Any

import torch

from bench.case import FLOAT_TOLERANCE, Case
from dafast import ops


def bicubic(height: int, width: int, size: tuple[int, int]) -> Case:
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
        # Without antialiasing an output row reads only four rows.
        bytes=lambda b: 3.0 * b * (min(height, 4 * size[0]) * width + size[0] * size[1]),
        dtypes=(torch.float32,),
        tolerance={torch.float32: 1e-5},
    )


def warp(height: int, width: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, height, width, generator=generator)
        coarse = 12 * torch.rand(1, 1, height // 20 + 1, width // 20 + 1, generator=generator)
        order = torch.nn.functional.interpolate(coarse, size=(height, width))
        flow = torch.cat([order, 0.3 * order], 1)
        return tuple(x.to(device, dtype) for x in (image, flow, order))

    return Case(
        op="forward_warp",
        label=f"{width}x{height}",
        make=make,
        call=lambda *inputs: ops.forward_warp(*inputs)[0],
        differentiable=(),
        flops=4.0 * 8 * height * width,
        bytes=lambda b: 9.0 * b * height * width,
        dtypes=(torch.float32,),
        tolerance={torch.float32: 1e-5},
    )


def guided(height: int, width: int, size: tuple[int, int]) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(1, 1, *size, generator=generator).to(device, dtype)
        return x, torch.rand(1, 3, height, width, generator=generator).to(device, dtype)

    return Case(
        op="guided_upsample",
        label=f"{size[1]}x{size[0]} to {width}x{height}",
        make=make,
        call=ops.guided_upsample,
        differentiable=(),
        flops=25.0 * 15 * height * width,
        bytes=lambda b: b * (4.0 * height * width + size[0] * size[1]),
        dtypes=(torch.float32,),
        tolerance={torch.float32: 1e-4},
    )


def bilinear(
    channels: int,
    source: tuple[int, int],
    size: tuple[int, int],
    antialias: bool = False,
    gpu_only: bool = False,
) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(1, channels, *source, generator=generator).to(device, dtype),)

    def call(x: torch.Tensor) -> torch.Tensor:
        return ops.resize_bilinear(x, size, align_corners=not antialias, antialias=antialias)

    pixels = channels * source[0] * source[1], channels * size[0] * size[1]
    return Case(
        op="resize_bilinear",
        label=f"{channels}x{source[1]}x{source[0]} to {size[1]}x{size[0]}"
        + ", antialiased" * antialias,
        make=make,
        call=call,
        differentiable=(0,),
        flops=8.0 * max(pixels),
        bytes=lambda b: float(b * sum(pixels)),
        dtypes=(torch.float32, torch.bfloat16),
        # PyTorch rounds coordinates to float32, the kernels do not.
        tolerance={torch.float32: 2e-4, torch.bfloat16: 2e-2},
        gpu_only=gpu_only,
    )


def pad(channels: int, source: tuple[int, int], padding: tuple[int, int, int, int]) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, channels, *source, generator=generator).to(device, dtype), padding

    left, right, top, bottom = padding
    pixels = source[0] * source[1] + (source[0] + top + bottom) * (source[1] + left + right)
    return Case(
        op="pad",
        label=f"{channels}x{source[1]}x{source[0]} by {padding}",
        make=make,
        call=lambda x, padding: ops.pad(x, padding, mode="replicate"),
        differentiable=(0,),
        flops=0.0,
        bytes=lambda b: float(channels * b * pixels),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )


def preprocess(height: int, width: int, size: int = 518, fit: str = "pad") -> Case:
    network = ops.plan_geometry(height, width, size=size, fit=fit).network

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        photo = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        return photo.to(device), dtype

    return Case(
        op="preprocess",
        label=f"{width}x{height} to {network[1]}x{network[0]}, {fit}",
        make=make,
        call=lambda photo, dtype: ops.preprocess(photo, size=size, fit=fit, dtype=dtype)[0],
        differentiable=(),
        flops=8.0 * 3 * max(height * width, network[0] * network[1]),
        bytes=lambda b: 3.0 * (height * width + b * network[0] * network[1]),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance={torch.float32: 2e-4, torch.bfloat16: 1e-2},
    )


def postprocess(height: int, width: int, size: int = 518, save: bool = False) -> Case:
    geometry = ops.plan_geometry(height, width, size=size)
    out = torch.uint16 if save else torch.float32

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.rand(1, *geometry.network, generator=generator).to(device, dtype),)

    return Case(
        op="postprocess",
        label=f"{width}x{height}" + ", 16 bits" * save,
        make=make,
        call=lambda x: ops.postprocess(x, [geometry], dtype=out)[0],
        differentiable=(),
        flops=8.0 * height * width,
        bytes=lambda b: float(
            b * geometry.resized[0] * geometry.resized[1] + out.itemsize * height * width
        ),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance={torch.float32: 2e-4, torch.bfloat16: 1e-2},
    )

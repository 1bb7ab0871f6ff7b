"""Cases of the ops with packed weights and of the products of training, which run on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from bench.case import FLOAT_TOLERANCE, Case
from dafast import ops


def attention_int8(batch: int, tokens: int, heads: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        qkv = torch.randn(batch, tokens, 3, heads, 64, generator=generator)
        return (qkv.to(device, dtype),)

    return Case(
        op="attention_int8",
        label=f"{batch}x{tokens}x{heads}x64",
        make=make,
        call=ops.attention_int8,
        differentiable=(),
        flops=4.0 * batch * heads * tokens * tokens * 64,
        bytes=lambda size: size * 4.0 * batch * tokens * heads * 64,
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=dict.fromkeys(FLOAT_TOLERANCE, 0.03),  # probabilities of 8 bits
    )


def int8(tokens: int, depth: int, columns: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, tokens, depth, generator=generator).to(device, dtype)
        weight = torch.randn(columns, depth, generator=generator) / depth**0.5
        bias = torch.randn(columns, generator=generator)
        return x, ops.quantize_weight(weight.to(device)), bias.to(device)

    return Case(
        op="linear_int8",
        label=f"1x{tokens}x{depth} to {columns}",
        make=make,
        call=ops.linear_int8,
        differentiable=(),
        flops=2.0 * tokens * depth * columns,
        bytes=lambda size: size * tokens * (depth + columns) + 1.0 * depth * columns,
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )


def linear_packed(tokens: int, depth: int, columns: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x, weight, bias = (
            torch.randn(shape, generator=generator).to(device, dtype)
            for shape in ((tokens, depth), (columns, depth), (columns,))
        )
        return x, ops.pack_linear(weight / depth**0.5, bias)

    return Case(
        op="linear_packed",
        label=f"{tokens}x{depth} to {columns}",
        make=make,
        call=ops.linear_packed,
        differentiable=(),
        flops=2.0 * tokens * depth * columns,
        bytes=lambda size: size * (tokens * (depth + columns) + 1.0 * depth * columns),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )


def embed_patches(batch: int, side: int, channels: int) -> Case:
    """The tokens of square images of patches of 14 pixels."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device)

        image = draw(batch, 3, 14 * side, 14 * side).to(dtype)
        weight = ops.pack_linear(draw(channels, 588).div(24).to(dtype), draw(channels).to(dtype))
        norm = ops.RowNorm(draw(channels), draw(channels), 1e-6)
        return image, weight, draw(1 + side**2, channels), norm

    return Case(
        op="embed_patches",
        label=f"{batch}x{14 * side}x{14 * side} to {channels}",
        make=make,
        call=lambda *arguments: ops.embed_patches(*arguments)[1],
        differentiable=(),
        flops=2.0 * batch * side**2 * 588 * channels,
        bytes=lambda size: (
            size * 588.0 * (batch * side**2 + channels) + (8 + size) * batch * side**2 * channels
        ),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )


def encoder_rows(batch: int, tokens: int, channels: int, int8: bool = False) -> Case:
    """What follows attention in a block, with a tap and the first layer of the next block."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device)

        def layer(depth: int, columns: int) -> Any:
            weight, bias = draw(columns, depth) / depth**0.5, draw(columns)
            if int8:
                return ops.Int8Linear(ops.quantize_weight(weight), bias)
            return weight.to(dtype), bias.to(dtype)

        ones = torch.ones(channels, device=device)
        norm = ops.RowNorm(ones, 0 * ones, 1e-6)
        rows = (ops.EncoderRows if int8 else ops.PackedRows)(
            layer(channels, channels), ones, norm, layer(channels, 4 * channels),
            layer(4 * channels, channels), ones, norm, norm, layer(channels, 3 * channels),
        )  # fmt: skip
        x = draw(batch, tokens, channels)
        return x, draw(batch, tokens, channels).to(dtype), rows

    def call(x: torch.Tensor, mixed: torch.Tensor, rows: Any) -> torch.Tensor:
        op = ops.encoder_rows_int8 if int8 else ops.encoder_rows
        stream, tap, qkv = op(x, mixed, rows)
        assert tap is not None and qkv is not None
        return torch.cat([stream.to(mixed.dtype), tap, qkv], -1)

    # int8: a value between two steps may be rounded either way. bfloat16: so may inputs of layers.
    tolerance = dict.fromkeys(FLOAT_TOLERANCE, 0.02)
    if not int8:
        tolerance[torch.float32] = FLOAT_TOLERANCE[torch.float32]
    return Case(
        op="encoder_rows" + "_int8" * int8,
        label=f"{batch}x{tokens}x{channels}",
        make=make,
        call=call,
        differentiable=(),
        flops=24.0 * batch * tokens * channels * channels,
        bytes=lambda size: (
            batch * tokens * channels * (8 + size * 5.0)
            + 12.0 * channels**2 * (1 if int8 else size)
        ),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=tolerance,
    )


def transposed(side: int, channels: int, factor: int) -> Case:
    """The rearrangement behind the product of a transposed convolution."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = (side, side, factor, factor * channels)
        return (torch.randn(shape, generator=generator).to(device, dtype),)

    return Case(
        op="transpose_rows",
        label=f"{side}x{side}x{factor}x{factor * channels}",
        make=make,
        call=ops.transpose_rows,
        differentiable=(),
        flops=0.0,
        bytes=lambda size: size * 2.0 * (side * factor) ** 2 * channels,
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=dict.fromkeys(FLOAT_TOLERANCE, 0.0),
    )


def conv3x3(side: int, channels: int, int8: bool = False) -> Case:
    """A convolution of a `ResidualConvUnit`, with its ReLU and residual."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, channels, side, side, generator=generator).to(device, dtype)
        weight = torch.randn(channels, channels, 3, 3, generator=generator)
        weight = (weight / (9 * channels) ** 0.5).to(device)
        bias = torch.randn(channels, generator=generator).to(device)
        x = x.contiguous(memory_format=torch.channels_last)
        if int8:
            return x, ops.quantize_conv3x3(weight), bias
        return x, ops.pack_conv3x3(weight.to(dtype), bias)

    def call(x: torch.Tensor, *weight: Any) -> torch.Tensor:
        op: Any = ops.conv3x3_int8 if int8 else ops.conv3x3_packed
        return op(x, *weight, add=x, relu_input=True)

    pixels = side * side
    return Case(
        op="conv3x3_" + ("int8" if int8 else "packed"),
        label=f"1x{channels}x{side}x{side}",
        make=make,
        call=call,
        differentiable=(),
        flops=18.0 * pixels * channels * channels,
        bytes=lambda size: size * 3.0 * pixels * channels,
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )


def training_linear(tokens: int, depth: int, columns: int) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x, weight, bias = (
            torch.randn(shape, generator=generator).to(device, dtype)
            for shape in ((tokens, depth), (columns, depth), (columns,))
        )
        return x, weight / depth**0.5, bias

    return Case(
        op="linear",
        label=f"{tokens}x{depth} to {columns}",
        make=make,
        call=ops.linear,
        differentiable=(0, 1, 2),
        flops=2.0 * tokens * depth * columns,
        bytes=lambda size: size * (tokens * (depth + columns) + 1.0 * depth * columns),
        dtypes=(torch.float32,),
        tolerance=FLOAT_TOLERANCE,
    )


def training_conv3x3(batch: int, side: int, channels: int) -> Case:
    """A convolution of a `ResidualConvUnit`, with its ReLU and residual."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, channels, side, side, generator=generator).to(device, dtype)
        weight = torch.randn(channels, channels, 3, 3, generator=generator).to(device, dtype)
        bias = torch.randn(channels, generator=generator).to(device, dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        return x, weight / (9 * channels) ** 0.5, bias

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ops.conv3x3(x, weight, bias, add=x, relu_input=True)

    pixels = batch * side * side
    return Case(
        op="conv3x3",
        label=f"{batch}x{channels}x{side}x{side}",
        make=make,
        call=call,
        differentiable=(0, 1, 2),
        flops=18.0 * pixels * channels * channels,
        bytes=lambda size: size * 3.0 * pixels * channels,
        dtypes=(torch.float32,),
        tolerance=FLOAT_TOLERANCE,
    )


def training_project(batch: int, side: int) -> Case:
    """The end of the decoder."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, 32, side, side, generator=generator).to(device, dtype)
        weight = torch.randn(1, 32, 1, 1, generator=generator).to(device)
        bias = torch.randn(1, generator=generator).to(device)
        return x.contiguous(memory_format=torch.channels_last), weight, bias

    pixels = batch * side * side
    return Case(
        op="relu_project",
        label=f"{batch}x32x{side}x{side}",
        make=make,
        call=ops.relu_project,
        differentiable=(0, 1, 2),
        flops=64.0 * pixels,
        bytes=lambda size: pixels * (32.0 * size + 4.0),
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )

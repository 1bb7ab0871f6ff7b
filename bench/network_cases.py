"""Cases of the ops of networks and losses, made by their sizes."""

from __future__ import annotations

from typing import Any

import torch

from bench.case import ALL_DTYPES, FLOAT_TOLERANCE, Case
from bench.depth_like import depth_like
from dafast import ops
from dafast.ops.bias_gelu import mlp as run_mlp


def attention(
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int = 64,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    gpu_only: bool = False,
) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        qkv = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator)
        return (qkv.to(device, dtype),)

    return Case(
        op="flash_attention_qkvpacked",
        label=f"{batch}x{tokens} tokens, {heads}x{head_dim}",
        make=make,
        call=ops.flash_attention_qkvpacked,
        differentiable=(0,),
        flops=4.0 * batch * heads * tokens**2 * head_dim,
        bytes=lambda size: 4.0 * batch * tokens * heads * head_dim * size,
        dtypes=dtypes,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def separate(
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int = 64,
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,),
    gpu_only: bool = False,
) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, tokens, heads, head_dim)
        return tuple(torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))

    return Case(
        op="flash_attention",
        label=f"{batch}x{tokens} tokens, {heads}x{head_dim}",
        make=make,
        call=ops.flash_attention,
        differentiable=(0, 1, 2),
        flops=4.0 * batch * heads * tokens**2 * head_dim,
        bytes=lambda size: 4.0 * batch * tokens * heads * head_dim * size,
        dtypes=dtypes,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def varlen(lengths: tuple[int, ...], heads: int, head_dim: int = 64) -> Case:
    tokens = sum(lengths)

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (
            torch.randn(tokens, heads, head_dim, generator=generator).to(device, dtype)
            for _ in range(3)
        )
        ends = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
        return q, k, v, ends, max(lengths)

    return Case(
        op="flash_attention_varlen",
        label=f"{'+'.join(map(str, lengths))} tokens, {heads}x{head_dim}",
        make=make,
        call=lambda *inputs: ops.flash_attention_varlen(*inputs),
        differentiable=(0, 1, 2),
        flops=4.0 * heads * head_dim * sum(n**2 for n in lengths),
        bytes=lambda size: 4.0 * tokens * heads * head_dim * size,
        dtypes=(torch.float32, torch.bfloat16),
        tolerance=FLOAT_TOLERANCE,
    )


def loss(
    batch: int,
    side: int,
    regions: bool = False,
    masked: bool = True,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    gpu_only: bool = False,
    smooth: bool = False,
) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, side, side)
        if smooth:
            prediction, target = depth_like(generator, shape)
        else:
            prediction, target = torch.rand(2, *shape, generator=generator)
        prediction, target = prediction.to(device, dtype), target.to(device)
        if not masked:
            return prediction, target
        mask = (torch.rand(shape, generator=generator) < 0.8).to(device)
        if not regions:
            return prediction, target, mask
        box = torch.zeros_like(mask)
        box[:, side // 4 : side // 2, side // 3 :] = True
        return prediction, target, mask, box

    def call(prediction: Any, target: Any, mask: Any = None, box: Any = None) -> torch.Tensor:
        return ops.affine_invariant_loss(prediction, target, mask, regions=box)

    pixels = batch * side * side
    return Case(
        op="affine_invariant_loss",
        label=f"{batch}x{side}x{side}"
        + ", 20% masked" * masked
        + ", 2 regions" * regions
        + ", depth-like" * smooth,
        make=make,
        call=call,
        differentiable=(0,),
        flops=10.0 * pixels,
        bytes=lambda size: pixels * (size + 4.0 + masked + regions),
        dtypes=dtypes,
        tolerance={torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3},
        gpu_only=gpu_only,
        outliers=1e-5,  # of millions of pixels, those where rounding decides the L1's sign
    )


def alignment(
    batch: int,
    channels: int,
    tokens: int = 1369,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    gpu_only: bool = False,
) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, tokens + 1, channels)
        teacher = torch.randn(shape, generator=generator)
        # Cosines from 0.58 to 1: about half of the tokens are within the tolerance.
        spread = 1.4 * torch.rand(batch, tokens + 1, 1, generator=generator)
        student = teacher + spread * torch.randn(shape, generator=generator)
        return student.to(device, dtype)[:, 1:], teacher.to(device, dtype)[:, 1:]

    return Case(
        op="feature_alignment_loss",
        label=f"{batch}x{tokens}x{channels}",
        make=make,
        call=ops.feature_alignment_loss,
        differentiable=(0,),
        flops=8.0 * batch * tokens * channels,
        bytes=lambda size: 2.0 * batch * tokens * channels * size,
        dtypes=dtypes,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def tail(
    batch: int, channels: int, side: int = 296, size: int = 518, gpu_only: bool = False
) -> Case:
    hidden = 32

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        x = normal(batch, side, side, channels).permute(0, 3, 1, 2)  # channels last
        weight1 = normal(hidden, 3, 3, channels).permute(0, 3, 1, 2) / (9 * channels) ** 0.5
        weight2 = normal(1, hidden, 1, 1) / hidden**0.5
        bias2 = torch.full((1,), 4.0, device=device, dtype=dtype)  # zeros compare nothing
        return x, (size, size), weight1, normal(hidden), weight2, bias2

    pixels = batch * size * size
    return Case(
        op="decoder_tail",
        label=f"{batch}x{channels}x{side}x{side} to {size}x{size}",
        make=make,
        call=ops.decoder_tail,
        differentiable=(),
        # Products on the map before upsampling suffice: taps and interpolation commute.
        flops=2.0 * hidden * (9 * channels * min(side, size) ** 2 * batch + pixels),
        bytes=lambda b: b * channels * (batch * side * side + 9 * hidden) + 4.0 * pixels,
        dtypes=ALL_DTYPES,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def epilogue(
    batch: int,
    channels: int,
    side: int = 148,
    residuals: int = 0,
    relu: bool = False,
    gpu_only: bool = False,
) -> Case:
    """What follows a convolution: its bias, residuals and a ReLU."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        maps = [normal(batch, side, side, channels).permute(0, 3, 1, 2)]
        maps += [normal(batch, side, side, channels).permute(0, 3, 1, 2) for _ in range(residuals)]
        return maps[0], normal(channels), *maps[1:]

    elements = batch * channels * side**2
    return Case(
        op="bias_relu_add",
        label=f"{batch}x{channels}x{side}x{side}"
        + f", {residuals} residual{'s' * (residuals > 1)}" * (residuals > 0)
        + ", ReLU" * relu,
        make=make,
        call=lambda *terms: ops.bias_relu_add(*terms, relu=relu),
        differentiable=tuple(range(2 + residuals)),
        flops=float((1 + residuals + relu) * elements),
        bytes=lambda size: (2.0 + residuals) * elements * size,
        dtypes=ALL_DTYPES,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
        # A sum of float32 terms rounded in another order may be 0 or not; a ReLU decides by it.
        outliers=1e-5 if relu else 0.0,
    )


def enlarge(
    batch: int, channels: int, out_channels: int, factor: int, side: int = 37,
    gpu_only: bool = False,
) -> Case:  # fmt: skip
    """A transposed convolution whose stride is its kernel."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        x = normal(batch, side, side, channels).permute(0, 3, 1, 2)
        weight = normal(channels, factor, factor, out_channels).permute(0, 3, 1, 2)
        return x, weight / channels**0.5, normal(out_channels)

    pixels, columns = batch * side**2, factor**2 * out_channels
    return Case(
        op="conv_transpose",
        label=f"{batch}x{channels}x{side}x{side} to {out_channels}, {factor}x{factor}",
        make=make,
        call=ops.conv_transpose,
        differentiable=(0, 1, 2),
        flops=2.0 * pixels * channels * columns,
        bytes=lambda size: size * (pixels * (channels + columns) + channels * columns),
        dtypes=ALL_DTYPES,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def glue(
    batch: int, channels: int, tokens: int = 1370, autocast: bool = False, gpu_only: bool = False
) -> Case:
    """Residual add and LayerNorm; with ``autocast`` the stream and the parameters are float32."""

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, tokens, channels)
        rest = torch.float32 if autocast else dtype
        x, branch = (torch.randn(shape, generator=generator) for _ in range(2))
        parameters = (torch.randn(channels, generator=generator).to(device, rest) for _ in range(3))
        return x.to(device, rest), branch.to(device, dtype), *parameters

    elements = batch * tokens * channels
    return Case(
        op="add_layer_norm",
        label=f"{batch}x{tokens}x{channels}" + ", autocast" * autocast,
        make=make,
        call=lambda x, branch, *rest: ops.add_layer_norm(x, branch, *rest, dtype=branch.dtype),
        differentiable=(0, 1, 2, 3, 4),
        flops=10.0 * elements,
        bytes=lambda size: elements * (8.0 + 2 * size if autocast else 4.0 * size),
        dtypes=(torch.bfloat16,) if autocast else ALL_DTYPES,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def gelu(
    batch: int, channels: int, tokens: int = 1370, added: bool = True, gpu_only: bool = False
) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(batch, tokens, channels, generator=generator)
        bias = torch.randn(channels, generator=generator)
        return x.to(device, dtype), bias.to(device, dtype)

    return Case(
        op="bias_gelu",
        label=f"{batch}x{tokens}x{channels}" + ", added before" * added,
        make=make,
        call=lambda x, bias: ops.bias_gelu(x, bias, added=added),
        differentiable=(0, 1),
        flops=20.0 * batch * tokens * channels,
        bytes=lambda size: 2.0 * batch * tokens * channels * size,
        dtypes=ALL_DTYPES,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


def mlp(batch: int, channels: int, tokens: int = 1370, gpu_only: bool = False) -> Case:
    """fc1, GELU and fc2: in training the kernel of the backward computes GELU again."""
    hidden = 4 * channels

    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        weights = normal(hidden, channels) / channels**0.5, normal(channels, hidden) / hidden**0.5
        terms = normal(batch, tokens, channels), weights[0], normal(hidden), weights[1]
        return *(x.to(device, dtype) for x in terms), normal(channels).to(device, dtype)

    elements = batch * tokens * channels
    return Case(
        op="bias_gelu",
        label=f"{batch}x{tokens}x{channels}, MLP",
        make=make,
        call=lambda x, w1, b1, w2, b2: run_mlp(x, (w1, b1), (w2, b2)),
        differentiable=(0, 1, 2, 3, 4),
        flops=16.0 * elements * channels,
        bytes=lambda size: size * (18.0 * elements + 8.0 * channels**2),
        dtypes=ALL_DTYPES,
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )


_E4M3_STEP = 0.08
"""A rounding between two neighbours in e4m3, over the largest value: 32 of 448."""


def quantize(batch: int, channels: int, tokens: int = 1370, gelu: bool = False) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(batch, tokens, channels, generator=generator).to(device, dtype),)

    elements = batch * tokens * channels
    return Case(
        op="quantize_fp8",
        label=f"{batch}x{tokens}x{channels}" + ", GELU" * gelu,
        make=make,
        call=lambda x: ops.quantize_fp8(x, gelu=gelu),
        differentiable=(),
        flops=(22.0 if gelu else 2.0) * elements,
        bytes=lambda size: (size + 1.0) * elements,
        dtypes=ALL_DTYPES,
        tolerance=dict.fromkeys(ALL_DTYPES, _E4M3_STEP),
        gpu_only=batch > 4,
        e4m3=True,
    )


def glue_fp8(batch: int, channels: int, tokens: int = 1370) -> Case:
    plain = glue(batch, channels, tokens)

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s, rows = ops.add_layer_norm_fp8(*inputs)
        return s, *rows

    elements = batch * tokens * channels
    return Case(
        op="add_layer_norm_fp8",
        label=plain.label,
        make=plain.make,
        call=call,
        differentiable=(),
        flops=12.0 * elements,
        bytes=lambda size: elements * (3.0 * size + 1),
        dtypes=ALL_DTYPES,
        tolerance=dict.fromkeys(ALL_DTYPES, _E4M3_STEP),
        gpu_only=batch > 4,
        e4m3=True,
    )


def fp8(tokens: int, depth: int, columns: int, gpu_only: bool = False) -> Case:
    def make(seed: int, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, tokens, depth, generator=generator).to(device, dtype)
        weight = torch.randn(columns, depth, generator=generator) / depth**0.5
        bias = torch.randn(columns, generator=generator)
        rows = (ops.quantize_fp8(each.to(device)) for each in (x, weight))
        return *rows, bias.to(device, dtype)

    return Case(
        op="linear_fp8",
        label=f"1x{tokens}x{depth} to {columns}",
        make=make,
        call=ops.linear_fp8,
        differentiable=(),
        flops=2.0 * tokens * depth * columns,
        bytes=lambda size: tokens * (depth + 2.0 * columns) + 1.0 * depth * columns,
        dtypes=(torch.bfloat16,),
        tolerance=FLOAT_TOLERANCE,
        gpu_only=gpu_only,
    )

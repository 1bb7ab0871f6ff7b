"""Inputs of every op, which the benchmarks time and check.

A case makes fresh inputs from a seed. Its ``flops`` and ``bytes`` are the least that the forward
needs: floating-point operations, and bytes that it must read and write once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.depth_like import depth_like
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
        bytes: Takes the element size, returns the bytes that the forward must move.
        dtypes: Dtypes that the op is used with.
        tolerance: Largest accepted error over max |reference|, per dtype.
        gpu_only: Whether it is too large to be timed on a CPU.
        outliers: Fraction of a gradient's values whose error does not count.
    """

    op: str
    label: str
    make: Callable[[int, torch.dtype, torch.device], tuple[Any, ...]]
    call: Callable[..., Any]
    differentiable: tuple[int, ...]
    flops: float
    bytes: Callable[[int], float]
    dtypes: tuple[torch.dtype, ...]
    tolerance: dict[torch.dtype, float]
    gpu_only: bool = False
    outliers: float = 0.0

    def name(self, dtype: torch.dtype) -> str:
        """Op, shape and dtype in one string."""
        return f"{self.op}|{self.label}|{str(dtype).removeprefix('torch.')}"

    def forward(
        self, arguments: tuple[Any, ...], call: Callable[..., Any] | None = None
    ) -> Callable[[], Any]:
        """Returns a function that runs the forward of ``call`` (default: `call` of the case)."""
        call = call or self.call

        def run() -> Any:
            with torch.no_grad():
                return call(*arguments)

        return run

    def forward_backward(
        self, arguments: tuple[Any, ...], call: Callable[..., Any] | None = None
    ) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Returns a function that runs both passes and returns gradients of `differentiable`."""
        call = call or self.call
        leaves = [arguments[i].detach().requires_grad_() for i in self.differentiable]
        full = list(arguments)
        for i, leaf in zip(self.differentiable, leaves, strict=True):
            full[i] = leaf
        cotangent: list[torch.Tensor] = []

        def run() -> tuple[torch.Tensor, ...]:
            out = call(*full)
            outputs = out if isinstance(out, tuple) else (out,)
            if not cotangent:  # the gradient of a sum would have stride 0
                cotangent.extend(torch.ones_like(output) for output in outputs)
            return torch.autograd.grad(outputs, leaves, cotangent)

        return run

    def run(self, arguments: tuple[Any, ...]) -> None:
        """Runs the forward once, and the backward if the op has one."""
        self.forward_backward(arguments)() if self.differentiable else self.forward(arguments)()


HALF = (torch.float16, torch.bfloat16)
ALL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


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


def _separate(batch: int, tokens: int, heads: int, head_dim: int = 64) -> Case:
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
        dtypes=(torch.bfloat16,),
        tolerance=FLOAT_TOLERANCE,
    )


def _varlen(lengths: tuple[int, ...], heads: int, head_dim: int = 64) -> Case:
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


def _tail(
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


def _glue(
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


def _gelu(
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


def _int8(tokens: int, depth: int, columns: int) -> Case:
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
        # Without antialiasing an output row reads only four rows.
        bytes=lambda b: 3.0 * b * (min(height, 4 * size[0]) * width + size[0] * size[1]),
        dtypes=(torch.float32,),
        tolerance={torch.float32: 1e-5},
    )


def _warp(height: int, width: int) -> Case:
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


def _guided(height: int, width: int, size: tuple[int, int]) -> Case:
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


def _bilinear(
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


def _pad(channels: int, source: tuple[int, int], padding: tuple[int, int, int, int]) -> Case:
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


def _preprocess(height: int, width: int, size: int = 518, fit: str = "pad") -> Case:
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


def _postprocess(height: int, width: int, size: int = 518, save: bool = False) -> Case:
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


HALF = (torch.float16, torch.bfloat16)

CASES: tuple[Case, ...] = (
    attention(1, 1370, 6),
    attention(1, 1370, 16),
    attention(16, 1370, 16, dtypes=HALF, gpu_only=True),
    attention(8, 1814, 16, dtypes=HALF, gpu_only=True),
    attention(4, 4552, 16, dtypes=HALF, gpu_only=True),
    _separate(1, 1370, 6),
    _varlen((1370, 962, 1814), 6),
    loss(8, 518),
    loss(8, 518, regions=True),
    loss(8, 518, smooth=True),
    loss(64, 518, gpu_only=True),
    loss(64, 518, gpu_only=True, smooth=True),
    alignment(4, 384),
    alignment(32, 1024, gpu_only=True),
    _int8(1370, 384, 1536),
    _int8(1370, 1536, 384),
    _tail(1, 32),
    _tail(1, 64),
    _tail(1, 128),
    _tail(16, 128, gpu_only=True),
    _glue(4, 384),
    _glue(4, 384, autocast=True),
    _glue(16, 1024, gpu_only=True),
    _glue(16, 1024, autocast=True, gpu_only=True),
    _gelu(4, 1536),
    _gelu(16, 4096, gpu_only=True),
    _bicubic(1080, 1920, (518, 924)),
    _warp(1080, 1920),
    _guided(1080, 1920, (518, 921)),
    _bilinear(64, (148, 148), (296, 296)),
    _bilinear(32, (296, 296), (518, 518)),
    _bilinear(3, (1080, 1920), (518, 921), antialias=True),
    _bilinear(256, (148, 148), (296, 296), gpu_only=True),
    _pad(3, (518, 921), (1, 2, 0, 0)),
    _preprocess(1080, 1920),
    _preprocess(1080, 1920, fit="official"),
    _postprocess(1080, 1920),
    _postprocess(1080, 1920, save=True),
)
"""The shapes of ViT-S and ViT-L at 518x518."""

SMALL_CASES: tuple[Case, ...] = (
    attention(1, 50, 2),
    _separate(2, 33, 1),
    _varlen((17, 1, 30), 2),
    loss(2, 30),
    loss(2, 30, regions=True),
    loss(2, 30, smooth=True),
    alignment(2, 48, tokens=9),
    _tail(1, 12, 5, 9),
    _glue(2, 48, tokens=9),
    _gelu(2, 96, tokens=9),
    _int8(9, 30, 33),
    _bicubic(40, 60, (28, 42)),
    _warp(40, 60),
    _guided(40, 60, (14, 21)),
    _bilinear(4, (9, 10), (18, 20)),
    _bilinear(3, (40, 60), (28, 42), antialias=True),
    _pad(4, (9, 10), (1, 2, 3, 4)),
    _preprocess(40, 60, 28),
    _postprocess(40, 60, 28),
)
"""The same ops at sizes for tests."""

_LOSS_OPTIONS = ((False, True), (False, False), (True, True))  # regions, masked

STATIC_CASES: tuple[Case, ...] = (
    *(attention(1, 1370, 6, head_dim, ALL_DTYPES) for head_dim in (64, 32, 48, 80, 96, 128)),
    *(attention(10, 1370, 6, head_dim, ALL_DTYPES[1:]) for head_dim in (64, 32, 48, 80, 96, 128)),
    _separate(1, 1370, 6),
    *(_varlen((1370, 962), 6, head_dim) for head_dim in (64, 32, 48, 80, 96, 128)),
    *(_varlen((6850, 6850), 6, head_dim) for head_dim in (64, 128)),
    *(loss(1, 518, *options, dtypes=ALL_DTYPES) for options in _LOSS_OPTIONS),
    *(loss(16, 518, *options, dtypes=ALL_DTYPES) for options in _LOSS_OPTIONS),
    loss(1, 512, dtypes=ALL_DTYPES),
    *(alignment(2, channels, dtypes=ALL_DTYPES) for channels in (384, 768, 1024)),
    _tail(1, 32, 64, 112),  # the first case's bytes are counted, interpreted: small
    *(_tail(1, channels) for channels in (32, 64, 128)),
    _tail(1, 12, 96, 168),
    *(_glue(1, channels) for channels in (384, 192, 768, 1024)),
    *(_glue(1, channels, autocast=True) for channels in (384, 192, 768, 1024)),
    _gelu(1, 1536),
    _gelu(1, 1536, added=False),
)
"""Every configuration of every Triton kernel that a call can choose, for one image.

Attention also for ten images and the loss for sixteen, where their tiles are larger, and the loss
at 512x512, where its loads are wider.
"""

"""Layers with packed weights, of which `OptimizedForward` consists.

Products run on the ops of `dafast.ops`, whose threads take pieces as they come; on CPUs for which
these have no kernels, on the oneDNN operators that PyTorch has for its own compiler
(`torch.ops.mkldnn`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Block, LayerNorm
from ..ops import (
    EncoderRows,
    Int8Linear,
    PackedRows,
    PackedWeight,
    RowNorm,
    add_layer_norm,
    attention_int8,
    conv3x3_int8,
    conv3x3_packed,
    encoder_rows,
    encoder_rows_int8,
    flash_attention_qkvpacked,
    linear_int8,
    linear_packed,
    pack_conv3x3,
    pack_linear,
    quantize_conv3x3,
    quantize_weight,
    resize_bilinear,
    transpose_rows,
)
from ..ops.linear_packed import why_slow_packed
from ..profiling import annotate
from .dpt import FeatureFusionBlock, ResidualConvUnit


class _Linear:
    """(..., I) to (..., O), with an activation."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: int, activation: str = "none"
    ) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.bias = bias
        self.activation: tuple[str, list[Any], str] = (
            activation,
            [],
            "none" if activation == "gelu" else "",
        )

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.activation)


class _LinearPacked:
    """`_Linear` by dafast's kernel."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = pack_linear(weight, weight.new_zeros(len(weight)) if bias is None else bias)

    def __call__(self, x: Tensor) -> Tensor:
        return linear_packed(x, self.weight)


class _LinearInt8:
    """`_Linear` in int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = quantize_weight(weight)
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear_int8(x, self.weight, self.bias)


class _Conv3x3:
    """A 3x3 convolution that keeps the size; channels last.

    Args:
        conv: With padding 1 and stride 1.
        side: Height and width to lay the weights out for; without a hint, the layout that oneDNN
            takes can be that of a slower kernel.
        relu_input: Whether negative inputs count as 0.
        relu: Whether negative results become 0; not with maps to add.
    """

    def __init__(
        self, conv: nn.Conv2d, side: int, relu_input: bool = False, relu: bool = False
    ) -> None:
        self.geometry = ([1, 1], list(conv.stride), [1, 1], 1)  # padding, stride, dilation, groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self.geometry, [1, conv.in_channels, side, side]
        )
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.relu_input = relu_input
        self.activation: tuple[str, list[Any], str] = ("relu" if relu else "none", [], "")

    def __call__(self, x: Tensor, add: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        """The convolution of x, plus ``add`` and ``other``."""
        if self.relu_input:
            x = F.relu(x)
        # PyTorch 2.11 does not fuse the sum of single pixels.
        if add is None or x.shape[-2:] == (1, 1):
            out = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, *self.activation
            )
            return sum((more for more in (add, other) if more is not None), start=out)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, add if other is None else add + other, self.weight, self.bias, *self.geometry,
            "add", None, None, [], None,
        )  # fmt: skip


class _Conv3x3Int8:
    """`_Conv3x3` in int8, with any stride."""

    def __init__(self, conv: nn.Conv2d, relu_input: bool = False, relu: bool = False) -> None:
        self.weight = quantize_conv3x3(conv.weight.detach())
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.bias = bias.detach().float()
        self.stride, self.relu_input, self.relu = conv.stride[0], relu_input, relu

    def __call__(self, x: Tensor, add: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        return conv3x3_int8(
            x, self.weight, self.bias, add=add, other=other, stride=self.stride,
            relu_input=self.relu_input, relu=self.relu,
        )  # fmt: skip


class _Conv3x3Packed:
    """`_Conv3x3` by dafast's kernel, with any stride."""

    def __init__(self, conv: nn.Conv2d, relu_input: bool = False, relu: bool = False) -> None:
        self.weight = pack_conv3x3(conv.weight, conv.bias)
        self.stride, self.relu_input, self.relu = conv.stride[0], relu_input, relu

    def __call__(self, x: Tensor, add: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        return conv3x3_packed(
            x, self.weight, add=add, other=other, stride=self.stride, relu_input=self.relu_input,
            relu=self.relu,
        )  # fmt: skip


def own_conv3x3(
    conv: nn.Conv2d, int8: bool, relu_input: bool = False, relu: bool = False
) -> _Conv3x3Packed | _Conv3x3Int8 | None:
    """A convolution by dafast's kernels; None if they do not take it."""
    if int8 and conv.in_channels % 4 == 0:
        return _Conv3x3Int8(conv, relu_input, relu)
    if conv.in_channels % 2 or why_slow_packed(conv.weight.dtype):
        return None
    return _Conv3x3Packed(conv, relu_input, relu)


def conv3x3(
    conv: nn.Conv2d, side: int, int8: bool, relu_input: bool = False, relu: bool = False
) -> _Conv3x3 | _Conv3x3Packed | _Conv3x3Int8:
    own = own_conv3x3(conv, int8, relu_input, relu)
    return _Conv3x3(conv, side, relu_input, relu) if own is None else own


FREED = "the weights were freed after packing (prepare_inference(keep_weights=False))"

# Names of functions that tell about a tensor without its values; properties are "__get__".
_FACTS = frozenset({
    "__get__", "__len__", "__repr__", "data_ptr", "dim", "element_size", "is_complex",
    "is_contiguous", "is_floating_point", "is_inference", "numel", "size", "stride",
})  # fmt: skip


class FreedWeight(nn.Parameter):
    """A weight without memory: it has a shape, a dtype and a device, and every other use fails.

    An ordinary tensor on "meta" does not fail: operators then return results without values, or
    memory that nothing has written.
    """

    @classmethod
    def __torch_function__(  # type: ignore
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") not in _FACTS:
            raise RuntimeError(
                f"{FREED}: the model only predicts, with nothing attached to it and outside of "
                "autocast; load it again to train, save, copy, change or move it"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError(f"{FREED}: load the model again to save or copy it")


def free_weights(layers: Iterable[Any], modules: Iterable[nn.Module]) -> None:
    """Frees the weights of layers and modules that dafast's kernels have packed; biases stay.

    Weights without memory replace them, on PyTorch's device "meta"; those of modules are
    `FreedWeight`.

    Args:
        layers: Made of the modules by `linear`, `conv3x3` and the classes of this file.
        modules: The modules.
    """
    for layer in layers:
        for name, value in vars(layer).items():
            if isinstance(value, PackedWeight) and value.packed.numel():
                setattr(layer, name, value._replace(values=value.values.to("meta")))
            elif isinstance(value, PackedRows):
                value.free_values()
            elif type(value).__module__ == __name__:
                free_weights([value], [])
    for module in modules:
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3) and part.in_channels % 2:
                continue  # see `own_conv3x3`
            if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                weight = part.weight
                part.weight = FreedWeight(weight.detach().to("meta"), weight.requires_grad)


_AnyLinear = _Linear | _LinearPacked | _LinearInt8


def linear(weight: Tensor, bias: Tensor | None, rows: int, int8: bool) -> _AnyLinear:
    if int8:
        return _LinearInt8(weight, bias)
    return (
        _Linear(weight, bias, rows)
        if why_slow_packed(weight.dtype)
        else _LinearPacked(weight, bias)
    )


def conv1x1(conv: nn.Conv2d, rows: int, int8: bool) -> _AnyLinear:
    bias = None if conv.bias is None else conv.bias.detach()
    return linear(conv.weight.detach().flatten(1), bias, rows, int8)


class Enlarge:
    """A transposed convolution whose stride is its kernel: a product, and a rearrangement."""

    def __init__(self, conv: nn.ConvTranspose2d, rows: int, int8: bool) -> None:
        self.side = conv.kernel_size[0]
        weight = conv.weight.detach()  # (I, O, k, k)
        assert conv.bias is not None
        bias = conv.bias.detach().repeat(self.side**2)
        self.product = linear(weight.permute(2, 3, 1, 0).flatten(0, 2), bias, rows, int8)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, h, w, I) to (B, O, k h, k w), channels last."""
        batch, height, width = x.shape[:3]
        parts = self.product(x).view(batch * height, width, self.side, -1)  # (B h, w, k, k O)
        whole = transpose_rows(parts).view(batch, self.side * height, self.side * width, -1)
        return whole.permute(0, 3, 1, 2)


class _Residual:
    """A `ResidualConvUnit`."""

    def __init__(self, unit: ResidualConvUnit, side: int, int8: bool) -> None:
        self.conv1 = conv3x3(unit.conv1, side, int8, relu_input=True, relu=True)
        self.conv2 = conv3x3(unit.conv2, side, int8)

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The unit's output, plus ``other``."""
        return self.conv2(self.conv1(x), x, other)


class Fusion:
    """A `FeatureFusionBlock`."""

    def __init__(self, block: FeatureFusionBlock, side: int, int8: bool) -> None:
        self.unit1 = _Residual(block.resConfUnit1, side, int8)
        self.unit2 = _Residual(block.resConfUnit2, side, int8)
        self.out_conv = conv1x1(block.out_conv, side**2, int8)

    def __call__(self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = self.unit1(skip, x)
        out = self.out_conv(self.unit2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return resize_bilinear(out, size, align_corners=True)


class OneDnnBlock:
    """The products of a `Block`, and its second norm."""

    def __init__(self, block: Block, rows: int) -> None:
        def packed(linear: nn.Linear, activation: str = "none") -> _Linear:
            return _Linear(linear.weight.detach(), linear.bias.detach(), rows, activation)

        self.num_heads = block.attn.num_heads
        self.qkv, self.proj = packed(block.attn.qkv), packed(block.attn.proj)
        self.fc1, self.fc2 = packed(block.mlp.fc1, "gelu"), packed(block.mlp.fc2)
        self.ls1, self.ls2 = block.ls1.gamma.detach(), block.ls2.gamma.detach()
        self.norm2 = Norm(block.norm2)

    @annotate("block")
    def __call__(self, x: Tensor, normed: Tensor, next_norm: Norm) -> tuple[Tensor, Tensor]:
        """The stream and its first norm, to the stream behind the block and its next norm."""
        qkv = self.qkv(normed).unflatten(-1, (3, self.num_heads, -1))
        branch = self.proj(flash_attention_qkvpacked(qkv).flatten(-2))
        x, normed = self.norm2.add(x, branch, self.ls1)
        return next_norm.add(x, self.fc2(self.fc1(normed)), self.ls2)


def row_norm(norm: LayerNorm) -> RowNorm:
    return RowNorm(norm.weight.detach(), norm.bias.detach(), norm.eps)


class FusedBlock:
    """A `Block`: attention, and all that follows it row by row."""

    def __init__(
        self, block: Block, tap: LayerNorm | None, after: Block | None, int8: bool
    ) -> None:
        def packed(linear: nn.Linear) -> Any:
            weight, bias = linear.weight.detach(), linear.bias.detach()
            return Int8Linear(quantize_weight(weight), bias) if int8 else (weight, bias)

        attn, mlp = block.attn, block.mlp
        self.num_heads = attn.num_heads
        parts = (
            packed(attn.proj), block.ls1.gamma, row_norm(block.norm2), packed(mlp.fc1),
            packed(mlp.fc2), block.ls2.gamma, None if tap is None else row_norm(tap),
            None if after is None else row_norm(after.norm1),
            None if after is None else packed(after.attn.qkv),
        )  # fmt: skip
        self.rows = EncoderRows(*parts) if int8 else PackedRows(*parts)

    @annotate("block")
    def __call__(self, x: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The stream and the block's first layer, to the stream, a tap and the next first layer."""
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        if isinstance(self.rows, EncoderRows):
            return encoder_rows_int8(x, attention_int8(qkv).flatten(-2), self.rows)
        return encoder_rows(x, flash_attention_qkvpacked(qkv).flatten(-2), self.rows)


class Norm:
    """A `LayerNorm` of the stream, in the dtype of the weights."""

    def __init__(self, norm: LayerNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach(), norm.bias.detach(), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps).to(self.weight.dtype)

    def add(self, x: Tensor, branch: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
        return add_layer_norm(
            x, branch, gamma, self.weight, self.bias, self.eps, dtype=self.weight.dtype
        )

"""The forward on a CPU with the weights packed once; `DepthAnything.optimize` builds it.

It computes the same function as the modules, for inference only. Weights have the layout in which
oneDNN multiplies them; biases, activations and residual sums of the decoder are added within the
products; everything is channels last from the tokens on; position embeddings are cached by size.
It is built on the ops of `dafast.ops` and on the oneDNN operators that PyTorch has for its own
compiler (`torch.ops.mkldnn`).
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Block, LayerNorm
from ..layers.temporal import FrameCache
from ..ops import (
    add_layer_norm,
    attention_int8,
    bias_gelu,
    conv3x3_int8,
    decoder_tail,
    flash_attention_qkvpacked,
    linear_int8,
    quantize_conv3x3,
    quantize_weight,
    resize_bilinear,
)
from ..profiling import annotate
from .calibration import smoothed_blocks
from .dpt import FRAME_GROUP, FeatureFusionBlock, ResidualConvUnit, activation_name
from .network import DepthNetwork
from .snapshot import Snapshot, why_not_as_built

_GRIDS = 16
"""Sizes whose position embeddings are cached; videos and batches have one, folders a few."""

_DTYPES = (torch.float32, torch.bfloat16)


@functools.cache
def _why_no_onednn() -> str:
    if not torch.backends.mkldnn.is_available():
        return "this build of PyTorch has no oneDNN"
    names = ("_linear_pointwise", "_convolution_pointwise", "_reorder_linear_weight",
             "_reorder_convolution_weight")  # fmt: skip
    missing = [name for name in names if not hasattr(torch.ops.mkldnn, name)]
    return f"this PyTorch has no torch.ops.mkldnn.{missing[0]}" if missing else ""


def why_not_on_this_cpu(dtype: torch.dtype) -> str:
    """The reason why weights of a dtype cannot be packed here, or "" if they can."""
    why = _why_no_onednn()
    if not why and dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN does not multiply bfloat16 on this CPU: use float32"
    return why


def why_not_packed(model: DepthNetwork) -> str:
    """The reason why the weights of a model cannot be packed, or "" if they can."""
    if model.config.bin_centers:
        return "the bins of a metric model are not packed"
    if model.device.type != "cpu":
        return f"weights are packed on a CPU; the model is on {model.device}"
    dtypes = {p.dtype for p in model.parameters()}
    if len(dtypes) > 1 or model.dtype not in _DTYPES:
        return f"packing takes float32 or bfloat16 weights, not {', '.join(map(str, dtypes))}"
    return why_not_on_this_cpu(model.dtype) or why_not_as_built(model)


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


class _LinearInt8:
    """`_Linear` in int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "none") -> None:
        self.weight, self.activation = quantize_weight(weight), activation
        self.bias = weight.new_zeros(len(weight)) if bias is None else bias

    def __call__(self, x: Tensor) -> Tensor:
        out = linear_int8(x, self.weight, self.bias)
        return bias_gelu(out, self.bias, added=True) if self.activation == "gelu" else out


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


def _conv3x3(
    conv: nn.Conv2d, side: int, int8: bool, relu_input: bool = False, relu: bool = False
) -> _Conv3x3 | _Conv3x3Int8:
    if int8 and conv.in_channels % 4 == 0:
        return _Conv3x3Int8(conv, relu_input, relu)
    return _Conv3x3(conv, side, relu_input, relu)


def _linear(
    weight: Tensor, bias: Tensor | None, rows: int, int8: bool, activation: str = "none"
) -> _Linear | _LinearInt8:
    if int8:
        return _LinearInt8(weight, bias, activation)
    return _Linear(weight, bias, rows, activation)


def _conv1x1(conv: nn.Conv2d, rows: int, int8: bool) -> _Linear | _LinearInt8:
    bias = None if conv.bias is None else conv.bias.detach()
    return _linear(conv.weight.detach().flatten(1), bias, rows, int8)


class _Enlarge:
    """A transposed convolution whose stride is its kernel: a product, and a rearrangement."""

    def __init__(self, conv: nn.ConvTranspose2d, rows: int, int8: bool) -> None:
        self.side = conv.kernel_size[0]
        weight = conv.weight.detach()  # (I, O, k, k)
        assert conv.bias is not None
        bias = conv.bias.detach().repeat(self.side**2)
        self.product = _linear(weight.permute(2, 3, 1, 0).flatten(0, 2), bias, rows, int8)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, h, w, I) to (B, O, k h, k w), channels last."""
        parts = self.product(x).unflatten(-1, (self.side, self.side, -1))  # (B, h, w, k, k, O)
        whole = parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole.permute(0, 3, 1, 2)


class _Residual:
    """A `ResidualConvUnit`."""

    def __init__(self, unit: ResidualConvUnit, side: int, int8: bool) -> None:
        self.conv1 = _conv3x3(unit.conv1, side, int8, relu_input=True, relu=True)
        self.conv2 = _conv3x3(unit.conv2, side, int8)

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The unit's output, plus ``other``."""
        return self.conv2(self.conv1(x), x, other)


class _Fusion:
    """A `FeatureFusionBlock`."""

    def __init__(self, block: FeatureFusionBlock, side: int, int8: bool) -> None:
        self.unit1 = _Residual(block.resConfUnit1, side, int8)
        self.unit2 = _Residual(block.resConfUnit2, side, int8)
        self.out_conv = _conv1x1(block.out_conv, side**2, int8)

    def __call__(self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = self.unit1(skip, x)
        out = self.out_conv(self.unit2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return resize_bilinear(out, size, align_corners=True)


class _Block:
    """The products of a `Block`, and its second norm."""

    def __init__(self, block: Block, rows: int, int8: bool) -> None:
        def packed(linear: nn.Linear, activation: str = "none") -> _Linear | _LinearInt8:
            return _linear(linear.weight.detach(), linear.bias.detach(), rows, int8, activation)

        self.num_heads = block.attn.num_heads
        self.attend = attention_int8 if int8 else flash_attention_qkvpacked
        self.qkv, self.proj = packed(block.attn.qkv), packed(block.attn.proj)
        self.fc1, self.fc2 = packed(block.mlp.fc1, "gelu"), packed(block.mlp.fc2)
        self.ls1, self.ls2 = block.ls1.gamma.detach(), block.ls2.gamma.detach()
        self.norm2 = _Norm(block.norm2)

    @annotate("block")
    def __call__(self, x: Tensor, normed: Tensor, next_norm: _Norm) -> tuple[Tensor, Tensor]:
        """The stream and its first norm, to the stream behind the block and its next norm."""
        qkv = self.qkv(normed).unflatten(-1, (3, self.num_heads, -1))
        branch = self.proj(self.attend(qkv).flatten(-2))
        x, normed = self.norm2.add(x, branch, self.ls1)
        return next_norm.add(x, self.fc2(self.fc1(normed)), self.ls2)


class _Norm:
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


class OptimizedForward:
    """`DepthAnything.forward` without gradients, on a CPU, from packed copies of the weights.

    The residual stream is float32 also with bfloat16 weights: more exact, at no cost in time.
    This is a second copy of the weights. It refers to the model's encoder, not to the model, which
    owns it: without a reference cycle, `del model` frees both at once.

    Args:
        model: A model for which `why_not_packed` returns "".
        int8: Whether linear layers, attention and the decoder's convolutions multiply in int8.
        inputs: Calibration images for int8, see `dafast.models.calibration`.
    """

    fp8 = False

    def __init__(
        self, model: DepthNetwork, int8: bool = False, inputs: tuple[Tensor, ...] = ()
    ) -> None:
        self.int8, self.inputs = int8, inputs
        self._packed = Snapshot(model)
        self.encoder = model.pretrained
        self.patch = model.config.patch_size
        self.taps = model.config.out_indices
        # Weights are laid out for the size of the training; any other gives the same results.
        grid = model.config.grid_size
        rows = grid**2
        encoder, head = model.pretrained, model.depth_head
        blocks = _children(encoder.blocks)[: max(self.taps) + 1]
        if int8:
            blocks = smoothed_blocks(model, inputs)
        conv = encoder.patch_embed.proj
        assert conv.bias is not None
        self.patch_embed = _Linear(conv.weight.detach().flatten(1), conv.bias.detach(), rows)
        self.blocks = [_Block(block, rows, int8) for block in blocks]
        self.norms = [_Norm(block.norm1) for block in blocks]
        self.norm = _Norm(encoder.norm)
        self.positions: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()
        self._positions_lock = threading.Lock()

        self.projects = [_conv1x1(project, rows, int8) for project in _children(head.projects)]
        enlarge4, enlarge2, _, shrink = _children(head.resize_layers)
        self.enlarge = [_Enlarge(enlarge4, rows, int8), _Enlarge(enlarge2, rows, int8)]
        # Not packed: oneDNN multiplies small maps (under some 100 pixels of output) in another
        # layout than large ones, and to rearrange packed bfloat16 weights takes it 75 ms (ViT-S).
        self.shrink: Any = functools.partial(
            F.conv2d,
            weight=shrink.weight.detach().contiguous(memory_format=torch.channels_last),
            bias=shrink.bias.detach(),
            stride=2,
            padding=1,
        )
        if int8 and shrink.in_channels % 4 == 0:
            self.shrink = _Conv3x3Int8(shrink)
        scratch = head.scratch
        sides = (4 * grid, 2 * grid, grid, (grid + 1) // 2)
        parts = list(enumerate(sides, 1))
        self.layers = [_conv3x3(getattr(scratch, f"layer{i}_rn"), side, int8) for i, side in parts]
        self.refine = [_Fusion(getattr(scratch, f"refinenet{i}"), side, int8) for i, side in parts]
        self.output_conv1 = _conv3x3(scratch.output_conv1, 2 * sides[0], int8)
        outputs = [scratch.output_conv2]
        outputs += [scratch.sky_output_conv2] if model.config.sky_head else []
        self.tails = [_tail(*_children(output)) for output in outputs]
        self.max_depth = head.max_depth
        self.mixing = head.mixing  # the temporal modules run as they are

    def is_current(self, model: DepthNetwork) -> bool:
        """Whether the model's weights and settings are still those that were packed."""
        return self._packed.is_of(model)

    def is_hooked(self) -> bool:
        """As `Structure.is_hooked`."""
        return self._packed.is_hooked()

    def why_not(self) -> str:
        """Always "": it can serve a call at any time."""
        return ""

    def _position(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """The first token, and the position embeddings of the others: (1, C), (N, C), float32."""
        key = (rows, columns)
        with self._positions_lock:
            if key not in self.positions:
                encoder = self.encoder
                table = encoder.interpolate_pos_embed(rows, columns)[0].float()
                self.positions[key] = (encoder.cls_token[0].float() + table[:1], table[1:])
                if len(self.positions) > _GRIDS:
                    self.positions.popitem(last=False)
            self.positions.move_to_end(key)
            return self.positions[key]

    def _embed(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """Images to tokens (B, 1 + N, C), float32."""
        side = self.patch
        patches = x.unflatten(3, (columns, side)).unflatten(2, (rows, side))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, 3 * 14 * 14)
        first, rest = self._position(rows, columns)
        tokens = x.new_empty((len(x), 1 + rows * columns, first.shape[1]), dtype=torch.float32)
        tokens[:, :1] = first
        torch.add(self.patch_embed(patches), rest, out=tokens[:, 1:])
        return tokens

    @annotate("encoder")
    def encode(self, x: Tensor) -> list[Tensor]:
        """Images to taps (B, rows * columns, C) behind the final norm."""
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        tokens = self._embed(x, rows, columns)
        normed, taps = self.norms[0](tokens), []
        for i, block in enumerate(self.blocks):
            if i in self.taps:
                tokens, tap = block(tokens, normed, self.norm)
                taps.append(tap[:, 1:])
                if i + 1 < len(self.blocks):
                    normed = self.norms[i + 1](tokens)
            else:
                tokens, normed = block(tokens, normed, self.norms[i + 1])
        return taps

    @annotate("head")
    def decode(
        self,
        taps: list[Tensor],
        rows: int,
        columns: int,
        frames: int = 1,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """Taps to (B, outputs, rows * 14, columns * 14); ``frames`` as for `DPTHead.mixing`."""
        mix = self.mixing(frames, cache) or (lambda number, x: x)
        map3, map4 = (self._grid(i, taps[i], rows, columns) for i in (2, 3))
        layer3 = self.layers[2](mix(0, map3.permute(0, 3, 1, 2)))
        layer4 = self.layers[3](mix(1, self.shrink(map4.permute(0, 3, 1, 2))))
        path = mix(2, self.refine[3](layer4, (rows, columns)))
        path = mix(3, self.refine[2](path, (2 * rows, 2 * columns), layer3))
        group = FRAME_GROUP if frames > 1 else len(path)
        parts = zip(*(x.split(group) for x in (*taps[:2], path)), strict=True)
        outs = [self._decode_fine(one, two, part, rows, columns) for one, two, part in parts]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
        return out if self.max_depth is None else out * self.max_depth

    def _grid(self, number: int, tap: Tensor, rows: int, columns: int) -> Tensor:
        return self.projects[number](tap).unflatten(1, (rows, columns))

    def _decode_fine(
        self, tap1: Tensor, tap2: Tensor, path: Tensor, rows: int, columns: int
    ) -> Tensor:
        """The shallow taps and the fused map of the deep ones to the outputs."""
        layer1 = self.layers[0](self.enlarge[0](self._grid(0, tap1, rows, columns)))
        layer2 = self.layers[1](self.enlarge[1](self._grid(1, tap2, rows, columns)))
        path = self.refine[1](path, (4 * rows, 4 * columns), layer2)
        path = self.refine[0](path, (8 * rows, 8 * columns), layer1)
        size = (rows * self.patch, columns * self.patch)
        path = self.output_conv1(path)
        outs = [
            decoder_tail(path, size, *weights, activation=activation)
            for weights, activation in self.tails
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) or clips (B, T, 3, H, W), in the dtype of the weights, to outputs.

        Returns:
            (B, outputs, H, W) or (B * T, outputs, H, W), float32.
        """
        frames = 1
        if x.ndim == 5:
            x, frames = x.flatten(0, 1), x.shape[1]
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        return self.decode(self.encode(x), rows, columns, frames)


def _tail(
    conv: nn.Conv2d, _relu: nn.Module, last: nn.Conv2d, activation: nn.Module
) -> tuple[tuple[Tensor, ...], str]:
    """Weights and activation of one output of the decoder."""
    weights = (conv.weight, conv.bias, last.weight, last.bias)
    return tuple(weight.detach() for weight in weights if weight is not None), (
        activation_name(activation)
    )


def _children(modules: nn.Module) -> list[Any]:
    """The modules of a container; a type checker does not know their class."""
    return list(modules.children())

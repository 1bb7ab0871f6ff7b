"""The forward on a CPU with the weights packed once; `DepthAnything.optimize` builds it.

It computes the same function as the modules, for inference only. What follows attention in a block
passes row by row through all layers; biases, activations and residual sums are added within the
products; everything is channels last from the tokens on; position embeddings are cached by size.
`packed_layers.py` has the layers.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.temporal import FrameCache
from ..ops import decoder_tail, embed_patches, pack_linear
from ..ops.encoder_rows import why_not_rows
from ..profiling import annotate
from .calibration import smoothed_blocks
from .dpt import FRAME_GROUP, activation_name
from .network import DepthNetwork
from .packed_layers import (
    Enlarge,
    FusedBlock,
    Fusion,
    Norm,
    OneDnnBlock,
    conv1x1,
    conv3x3,
    free_weights,
    linear,
    own_conv3x3,
    row_norm,
)
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


class OptimizedForward:
    """`DepthAnything.forward` without gradients, on a CPU, from packed copies of the weights.

    The residual stream is float32 also with bfloat16 weights: more exact, at no cost in time.
    This is a second copy of the weights. It refers to the model's encoder, not to the model, which
    owns it: without a reference cycle, `del model` frees both at once.

    Args:
        model: A model for which `why_not_packed` returns "".
        int8: Whether linear layers, attention and the decoder's convolutions multiply in int8.
        inputs: Calibration images for int8, see `dafast.models.calibration`.
        keep_weights: Whether the modules keep the weights that are packed. If not, those of a layer
            are freed as soon as it is packed, and the modules no longer compute. With int8, and
            where oneDNN multiplies, they stay.
    """

    fp8 = False

    def __init__(
        self,
        model: DepthNetwork,
        int8: bool = False,
        inputs: tuple[Tensor, ...] = (),
        keep_weights: bool = True,
    ) -> None:
        self.int8, self.inputs = int8, inputs
        if keep_weights:  # before packing: a write during it counts as a change
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
        weight = conv.weight.detach().flatten(1)
        self.patch_embed = pack_linear(weight, conv.bias.detach())
        hidden = blocks[0].mlp.fc1.out_features
        self.fused = int8 or not why_not_rows(weight.dtype, hidden, len(weight))
        frees = self.fused and not (int8 or keep_weights)
        if self.fused:
            qkv = blocks[0].attn.qkv
            self.first = linear(qkv.weight.detach(), qkv.bias.detach(), rows, int8)
        self.blocks: list[Any] = []
        for i, block in enumerate(blocks):
            if not self.fused:
                self.blocks.append(OneDnnBlock(block, rows))
                continue
            tap = encoder.norm if i in self.taps else None
            after = blocks[i + 1] if i + 1 < len(blocks) else None
            self.blocks.append(FusedBlock(block, tap, after, int8))
            if frees:
                free_weights([self.first, self.blocks[-1]], [block.attn, block.mlp])
        self.first_norm = row_norm(blocks[0].norm1)
        self.norms = [Norm(block.norm1) for block in blocks]
        self.norm = Norm(encoder.norm)
        self.positions: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._positions_lock = threading.Lock()

        self.projects = [conv1x1(project, rows, int8) for project in _children(head.projects)]
        enlarge4, enlarge2, _, shrink = _children(head.resize_layers)
        self.enlarge = [Enlarge(enlarge4, rows, int8), Enlarge(enlarge2, rows, int8)]
        # Not packed for oneDNN: it multiplies small maps (under some 100 pixels of output) in
        # another layout than large ones, and takes 75 ms to rearrange packed bfloat16 weights.
        self.shrink: Any = own_conv3x3(shrink, int8) or functools.partial(
            F.conv2d,
            weight=shrink.weight.detach().contiguous(memory_format=torch.channels_last),
            bias=shrink.bias.detach(),
            stride=2,
            padding=1,
        )
        scratch = head.scratch
        sides = (4 * grid, 2 * grid, grid, (grid + 1) // 2)
        parts = list(enumerate(sides, 1))
        self.layers = [conv3x3(getattr(scratch, f"layer{i}_rn"), side, int8) for i, side in parts]
        self.refine = [Fusion(getattr(scratch, f"refinenet{i}"), side, int8) for i, side in parts]
        self.output_conv1 = conv3x3(scratch.output_conv1, 2 * sides[0], int8)
        outputs = [scratch.output_conv2]
        outputs += [scratch.sky_output_conv2] if model.config.sky_head else []
        self.tails = [_tail(*_children(output)) for output in outputs]
        self.max_depth = head.max_depth
        self.mixing = head.mixing  # the temporal modules run as they are
        if frees:
            parts_of_head = [*self.projects, *self.enlarge, self.shrink, *self.layers, *self.refine]
            convs = [module for name, module in scratch.named_children() if "conv2" not in name]
            free_weights(
                [*parts_of_head, self.output_conv1], [head.projects, head.resize_layers, *convs]
            )
        if not keep_weights:
            self._packed = Snapshot(model)

    def is_current(self, model: DepthNetwork) -> bool:
        """Whether the model's weights and settings are still those that were packed."""
        return self._packed.is_of(model)

    def is_hooked(self) -> bool:
        """As `Structure.is_hooked`."""
        return self._packed.is_hooked()

    def why_not(self) -> str:
        """Always "": it can serve a call at any time."""
        return ""

    def _position(self, rows: int, columns: int) -> Tensor:
        """The first token, and the position embeddings of the others: (1 + N, C), float32."""
        key = (rows, columns)
        with self._positions_lock:
            if key not in self.positions:
                encoder = self.encoder
                table = encoder.interpolate_pos_embed(rows, columns)[0].float()
                first = encoder.cls_token[0].float() + table[:1]
                self.positions[key] = torch.cat([first, table[1:]])
                if len(self.positions) > _GRIDS:
                    self.positions.popitem(last=False)
            self.positions.move_to_end(key)
            return self.positions[key]

    @annotate("encoder")
    def encode(self, x: Tensor) -> list[Tensor]:
        """Images to taps (B, rows * columns, C) behind the final norm."""
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        positions = self._position(rows, columns)
        tokens, normed = embed_patches(x, self.patch_embed, positions, self.first_norm)
        taps = []
        if self.fused:
            qkv: Any = self.first(normed)
            for block in self.blocks:
                tokens, tap, qkv = block(tokens, qkv)
                taps += [] if tap is None else [tap[:, 1:]]
            return taps
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

"""The forward with the encoder's linear layers in e4m3; `DepthAnything.optimize` builds it.

The LayerNorms and GELU write e4m3 with a scale for each token themselves; only the result of
attention, whose heads are computed apart, is rounded in a pass of its own. Attention, the residual
stream and the decoder stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Block, LayerNorm, LayerScale
from ..layers.attention import attend
from ..ops import Fp8Rows, add_layer_norm_fp8, linear_fp8, quantize_fp8
from ..ops.quantize_fp8 import why_no_fp8
from ..profiling import annotate
from .calibration import smoothed_blocks
from .network import DepthNetwork
from .snapshot import Snapshot

_T = TypeVar("_T")


def why_not_fp8(model: DepthNetwork) -> str:
    """The reason why a model cannot run in fp8, or "" if it can."""
    if why := why_no_fp8(model.device):
        return f"{why}; fp8='emulate' computes the same results slowly, to measure their accuracy"
    if model.dtype != torch.bfloat16:
        return f"fp8 takes a model in bfloat16, not {model.dtype}: load it with dtype='bfloat16'"
    return ""


class _Fp8Linear:
    """(..., K) in e4m3 to (..., N) in the dtype of the weights."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.bias = quantize_fp8(linear.weight.detach()), linear.bias.detach()

    def __call__(self, x: Fp8Rows) -> Tensor:
        return linear_fp8(x, self.weight, self.bias, dtype=self.bias.dtype)


class _Fp8Norm:
    """A `LayerNorm` that writes e4m3."""

    def __init__(self, norm: LayerNorm) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach(), norm.bias.detach(), norm.eps

    def __call__(self, x: Tensor) -> Fp8Rows:
        return quantize_fp8(F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps))

    def add(self, x: Tensor, branch: Tensor, scale: LayerScale) -> tuple[Tensor, Fp8Rows]:
        """As `LayerNorm.add`."""
        return add_layer_norm_fp8(x, branch, scale.gamma, self.weight, self.bias, self.eps)


class Fp8Block:
    """A `Block` whose linear layers are e4m3.

    Args:
        block: With the weights; a smoothed one.
    """

    def __init__(self, block: Block) -> None:
        self.num_heads = block.attn.num_heads
        self.norm1, self.norm2 = _Fp8Norm(block.norm1), _Fp8Norm(block.norm2)
        self.qkv, self.proj = _Fp8Linear(block.attn.qkv), _Fp8Linear(block.attn.proj)
        self.fc1, self.fc2 = _Fp8Linear(block.mlp.fc1), _Fp8Linear(block.mlp.fc2)
        self.ls1, self.ls2 = block.ls1, block.ls2

    @annotate("block")
    def __call__(
        self,
        x: Tensor,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int = 0,
        *,
        normed: Fp8Rows | None = None,
        next_norm: Any,
    ) -> tuple[Tensor, Any]:
        """As `Block.forward`, with the next norm."""
        qkv = self.qkv(self.norm1(x) if normed is None else normed)
        mixed = attend(qkv.unflatten(-1, (3, self.num_heads, -1)), cu_seqlens, max_seqlen)
        x, normed = self.norm2.add(x, self.proj(quantize_fp8(mixed)), self.ls1)
        branch = self.fc2(quantize_fp8(self.fc1(normed), gelu=True))
        return next_norm.add(x, branch, self.ls2)


class Fp8Forward:
    """`DepthNetwork.forward` without gradients, from quantised copies of the encoder's weights.

    It has no reference to the model, which owns it. On a GPU it does not look at the values of
    weights, which would wait for the device: it sees what PyTorch counts (`Tensor._version`),
    other memory, and training.

    Args:
        model: A model as its configuration builds it.
        inputs: Calibration images, see `dafast.models.calibration`.
        emulated: Whether the references may serve, see `optimize`.
    """

    int8 = False

    def __init__(self, model: DepthNetwork, inputs: Sequence[Tensor], emulated: bool) -> None:
        self.inputs = inputs if isinstance(inputs, tuple) else tuple(inputs)
        self.fp8: bool | str = "emulate" if emulated else True
        self._snapshot = Snapshot(model)
        self._expired = False
        with torch.inference_mode(False), torch.no_grad():
            blocks = smoothed_blocks(model, inputs)
            self.blocks = [Fp8Block(block) for block in blocks]

    def is_current(self, model: DepthNetwork) -> bool:
        """Whether the model's weights and settings are still those that were quantised."""
        return not self._expired and self._snapshot.is_of(model)

    def is_hooked(self) -> bool:
        """As `Structure.is_hooked`."""
        return self._snapshot.is_hooked()

    def why_not(self) -> str:
        """Always "": it can serve a call at any time."""
        return ""

    def expire(self) -> None:
        """Has the weights quantised again: training may change them uncounted."""
        self._expired = True

    def run(
        self, forward: Callable[[Tensor], Any], _kind: Any,
        fill: Callable[[Tensor | None], Tensor], read: Callable[[Any], _T],
    ) -> _T:  # fmt: skip
        """As `GraphedForward.run`, without graphs."""
        return read(forward(fill(None)))

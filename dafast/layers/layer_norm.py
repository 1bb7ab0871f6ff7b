"""LayerNorm that can take the residual add before it along."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..devices import is_autocast_on
from ..ops import add_layer_norm
from .layer_scale import LayerScale


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` of DINOv2 (eps 1e-6), which can be fused with what precedes it.

    Args:
        embed_dim: Width C of the tokens.
        eps: Added to the variance.
        feeds_product: Whether only a matrix product reads the result. Under autocast `add` then
            returns it in the dtype of products: the same values, without a pass to convert them.
    """

    def __init__(self, embed_dim: int, eps: float = 1e-6, *, feeds_product: bool = False) -> None:
        super().__init__(embed_dim, eps=eps)
        self.feeds_product = feeds_product

    def add(self, x: Tensor, branch: Tensor, scale: LayerScale) -> tuple[Tensor, Tensor]:
        """Returns s = x + scale(branch) and the LayerNorm of s, each (B, N, C)."""
        dtype, device = None, x.device.type
        autocast = is_autocast_on(device)
        if self.feeds_product and autocast:
            dtype = torch.get_autocast_dtype(device)
        return add_layer_norm(x, branch, scale.gamma, self.weight, self.bias, self.eps, dtype=dtype)

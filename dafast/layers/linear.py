"""Linear layers, with products of dafast's own where they are faster."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.linear import linear, serves_linear


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of this kind, without hooks."""
    hooks = (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    return type(module) is kind and not hooks


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, by the kernel of `dafast.ops.linear` where it serves a plain linear layer.

    Args:
        layer: Any module; only a `torch.nn.Linear` without hooks is not called.
        x: (..., K).
    """
    if not isinstance(layer, nn.Linear) or not is_plain(layer, nn.Linear):
        return layer(x)
    product = linear if serves_linear(x, layer.weight, layer.bias) else F.linear
    return product(x, layer.weight, layer.bias)

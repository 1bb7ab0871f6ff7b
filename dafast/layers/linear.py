"""Linear layers, with products of dafast's own where they are faster."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.linear import linear_layer


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of this kind, without hooks."""
    hooks = (
        module._forward_hooks or module._forward_pre_hooks
        or module._backward_hooks or module._backward_pre_hooks
    )  # fmt: skip
    return type(module) is kind and not hooks


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, by `dafast.ops.linear.linear_layer` for a plain linear layer.

    Args:
        layer: Any module; only a `torch.nn.Linear` without hooks is not called.
        x: (..., K).
    """
    if not isinstance(layer, nn.Linear) or not is_plain(layer, nn.Linear):
        return layer(x)
    return linear_layer(x, layer.weight, layer.bias)

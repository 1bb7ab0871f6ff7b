"""Convolutions with what follows them in one pass, where a kernel serves that."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..devices import is_autocast_on
from ..ops.bias_relu_add import bias_relu_add, serves_convolutions
from ..ops.conv3x3 import conv3x3, serves_conv3x3
from ..ops.conv_transpose import conv_transpose_layer
from ..ops.linear import linear_layer
from .linear import is_plain


def convolve(
    conv: nn.Module,
    x: Tensor,
    residual: Tensor | None = None,
    other: Tensor | None = None,
    *,
    relu_input: bool = False,
    relu: bool = False,
) -> Tensor:
    """other + (residual + conv(x)), then a ReLU if asked.

    Where the kernel of `conv3x3` serves, a 3x3 convolution takes its ReLU and residuals along.

    PyTorch adds a convolution's bias in a pass of its own on a GPU. Where the kernel of
    `bias_relu_add` serves, this pass also adds the residuals and applies the ReLU, and a 1x1
    convolution in 16 bits is a product, which adds the bias itself.

    Args:
        conv: A convolution, called if it is no plain `torch.nn.Conv2d`.
        x: (B, C, h, w).
        residual: Of the shape of the output.
        other: A second residual; only with ``residual``.
        relu_input: Whether negative values of ``x`` count as 0.
        relu: Whether negative values become 0.
    """
    if takes_relu(conv, x):
        maps: dict[str, Any] = {"add": residual, "other": other}
        out = conv3x3(x, conv.weight, conv.bias, **maps, relu_input=relu_input)  # type: ignore
        return F.relu(out) if relu else out
    x = F.relu(x) if relu_input else x
    if residual is None and not relu and _trains_as_product(conv, x):
        return _as_product(x, conv.weight.flatten(1), conv.bias)  # type: ignore
    if is_plain(conv, nn.Conv2d) and conv.bias is not None:
        assert isinstance(conv, nn.Conv2d)
        if serves_convolutions(x, conv.bias, residual, other):
            if residual is None and not relu and _is_product(conv, x):
                return _as_product(x, conv.weight.flatten(1), conv.bias)
            out = conv._conv_forward(x, conv.weight, None)
            return bias_relu_add(out, conv.bias, residual, other, relu=relu)
    out = conv(x)
    for term in (residual, other):
        if term is not None:
            out = term + out
    return F.relu(out) if relu else out


def takes_relu(conv: nn.Module, x: Tensor) -> bool:
    """Whether `convolve` computes a ReLU of its input, (B, C, h, w), within the convolution."""
    return (
        isinstance(conv, nn.Conv2d)
        and is_plain(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and serves_conv3x3(x, conv.weight, conv.bias)
    )


def _as_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Rows: `F.linear` adds the bias in a pass of its own to what is not contiguous, as the patch
    # tokens of a batch, from between which the cls tokens are left out.
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    out = linear_layer(rows, weight, bias).view(len(x), *x.shape[2:], len(weight))
    return out.permute(0, 3, 1, 2)


def _is_product(conv: nn.Conv2d, x: Tensor) -> bool:
    # In float32 convolutions use TF32 by default and products do not.
    half = x.dtype != torch.float32 or is_autocast_on(x.device.type)
    return half and conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1


def _trains_as_product(conv: nn.Module, x: Tensor) -> bool:
    # PyTorch's convolution on a CPU copies maps that are not contiguous, image by image.
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and x.stride(1) == 1
        and not is_autocast_on("cpu")
        and isinstance(conv, nn.Conv2d)
        and is_plain(conv, nn.Conv2d)
        and conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and torch.is_grad_enabled()
        and (x.requires_grad or conv.weight.requires_grad)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def enlarge(resize: nn.Module, x: Tensor) -> Tensor:
    """``resize(x)``; as a product where it is a transposed convolution whose stride is its kernel.

    Args:
        resize: Any module.
        x: (B, C, h, w).
    """
    if (
        isinstance(resize, nn.ConvTranspose2d)
        and is_plain(resize, nn.ConvTranspose2d)
        and resize.bias is not None
        and resize.stride == resize.kernel_size
        and resize.kernel_size[0] == resize.kernel_size[1]
        and resize.padding == resize.output_padding == (0, 0)
        and resize.dilation == (1, 1)
        and resize.groups == 1
        and _keeps_dtype(x)
    ):
        return conv_transpose_layer(x, resize.weight, resize.bias)
    return resize(x)


def _keeps_dtype(x: Tensor) -> bool:
    """Whether autocast, if it is on, leaves a map as it is."""
    device = x.device.type
    return not is_autocast_on(device) or x.dtype == torch.get_autocast_dtype(device)

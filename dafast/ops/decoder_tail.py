"""The decoder's tail: upsampling to the image's resolution, then two convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..devices import without_autocast
from . import _extension, _triton
from ._dispatch import Op, wrong_dtype
from ._kernel_op import KernelOp
from .resize_bilinear import resize_bilinear_reference

ACTIVATIONS = ("relu", "sigmoid", "exp")
"""Their order is that of the kernels' codes."""
_CPP_CHANNELS = 16  # the C++ kernel takes a multiple
_MAX_HIDDEN = 32  # of them eight tiles fit in the registers of one program
_TOO_MANY = f"takes up to {_MAX_HIDDEN} hidden channels, not {{}}"


def decoder_tail_reference(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    activation: str = "relu",
) -> Tensor:  # fmt: skip
    """Specification of `decoder_tail`; as in the model, only the last convolution is float32.

    Other backends are compared with it in float64.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    with without_autocast(x.device):
        x = resize_bilinear_reference(x, size, align_corners=True, compute=x.dtype)
        x = F.relu(F.conv2d(x, weight1.to(x.dtype), bias1.to(x.dtype), padding=1))
        x = F.conv2d(x.to(compute), weight2.to(compute), bias2.to(compute))
    return {"relu": torch.relu, "sigmoid": torch.sigmoid, "exp": torch.exp}[activation](x)


_launch = _triton.launcher("decoder_tail", "decoder_tail_fwd")


def _cpp_forward(x: Tensor, height: int, width: int, *args: Any) -> Tensor:
    weight1, bias1, weight2, bias2, activation = args
    weight1 = weight1.to(x.dtype)
    missing = -x.shape[1] % _CPP_CHANNELS
    if missing:  # zeros, with weights of zero
        x, weight1 = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (x, weight1))
    x = x.contiguous(memory_format=torch.channels_last)
    if x.stride(1) != 1:  # with one channel or one pixel other strides are channels_last, too
        x = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
    out = torch.empty((len(x), 1, height, width), dtype=torch.float32, device=x.device)
    parameters = (p.float().contiguous() for p in (bias1, weight2, bias2))
    torch.ops.dafast_C.decoder_tail(x, out, weight1.contiguous(), *parameters, activation)
    return out


_op = KernelOp(
    "decoder_tail(Tensor x, SymInt height, SymInt width, Tensor weight1, Tensor bias1,"
    " Tensor weight2, Tensor bias2, int activation, str backend) -> Tensor",
    fake=lambda x, height, width, *_: x.new_empty(
        (x.shape[0], 1, height, width), dtype=torch.float32
    ),
    triton=lambda x, height, width, *args: _launch(x, (height, width), *args),
    cpp=_cpp_forward,
)


def _backend(name: str) -> Callable[..., Tensor]:
    def run(x: Tensor, size: tuple[int, int], *args: Any) -> Tensor:
        *parameters, activation = args
        return _op(x, size[0], size[1], *parameters, ACTIVATIONS.index(activation), name)

    return run


def _limits(x: Tensor, _size: Any, *args: Any) -> str:
    if reason := wrong_dtype(x.dtype):
        return reason
    hidden = args[0].shape[0]
    return "" if hidden <= _MAX_HIDDEN else _TOO_MANY.format(hidden)


def _cpp_limits(x: Tensor, *args: Any) -> str:
    if x.dtype == torch.float16:
        return "takes float32 and bfloat16 on a CPU, not torch.float16"
    return _limits(x, *args)


def _triton_limits(x: Tensor, *args: Any) -> str:
    if reason := _limits(x, *args):
        return reason
    steps = zip(x.shape[1:], x.stride()[1:], strict=True)
    if sum((n - 1) * stride for n, stride in steps) >= 2**31:
        return "takes maps whose elements lie less than 2^31 apart within an image"
    return ""


def _triton_unasked(x: Tensor, *_: Any) -> str:
    # cuDNN's, in TF32 unless `torch.backends.cudnn` says otherwise; without it twice as fast.
    return "in float32 PyTorch's own convolutions are faster" if x.dtype == torch.float32 else ""


_decoder_tail = Op(
    "decoder_tail",
    decoder_tail_reference,
    {
        "triton": _triton.backend(
            _backend("triton"), _triton_limits, _triton_unasked, backward=False
        ),
        "cpp": _extension.backend(
            "cpp", "decoder_tail", _backend("cpp"), _cpp_limits, backward=False
        ),
    },
)


def decoder_tail(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> Tensor:  # fmt: skip
    """Upsamples bilinearly (corners aligned), then conv3x3, ReLU, conv1x1 to one channel.

    The end of the DPT decoder (`output_conv2` of Depth Anything). Without gradients one kernel
    does all of it, and the upsampled map is never in memory. Both convolutions keep the size; the
    3x3 pads the upsampled map with zeros.

    Args:
        x: Feature map (B, C, h, w), float16, bfloat16, float32 or float64; any strides, read in
            place on a GPU where C has stride 1 (channels last).
        size: Height and width of the output; larger or smaller than (h, w).
        weight1: Of the 3x3 convolution, (N, C, 3, 3); used in ``x``'s dtype.
        bias1: (N,).
        weight2: Of the 1x1 convolution, (1, N, 1, 1); used in float32.
        bias2: (1,).
        activation: Of the output, ``"relu"``, ``"sigmoid"`` or ``"exp"``.

    Returns:
        (B, 1, *size), float32 (float64 for a float64 map).

    Raises:
        ValueError: If shapes, dtypes or ``activation`` do not fit.
    """
    channels, hidden = (x.shape[1] if x.ndim == 4 else -1), weight1.shape[0]
    expected = [(hidden, channels, 3, 3), (hidden,), (1, hidden, 1, 1), (1,)]
    given = [tuple(t.shape) for t in (weight1, bias1, weight2, bias2)]
    if given != expected:
        raise ValueError(
            "decoder_tail needs x (B, C, h, w), weight1 (N, C, 3, 3), bias1 (N,), "
            f"weight2 (1, N, 1, 1) and bias2 (1,); got {tuple(x.shape)} and {given}"
        )
    if not x.is_floating_point():
        raise ValueError(f"floating point expected; got {x.dtype}")
    if len(size) != 2:
        raise ValueError(f"size must be (height, width); got {tuple(size)}")
    if 0 in weight1.shape or 0 in x.shape[1:] or size[0] < 1 or size[1] < 1:
        raise ValueError(
            f"no side may be empty; got {tuple(x.shape)} to {tuple(size)}, {hidden} hidden channels"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return _decoder_tail(x, size, weight1, bias1, weight2, bias2, activation)

"""The decoder's tail: upsampling to the image's resolution and the two convolutions behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _extension, _triton
from ._dispatch import Backend, Op, _forced_backend
from ._kernel_op import kernel_op

ACTIVATIONS = ("relu", "sigmoid")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_NO_BACKWARD = "has no backward; call it under torch.no_grad()"
_CPP_CHANNELS = 16  # the C++ kernel takes a multiple
_MAX_HIDDEN = 32  # eight tiles with that many channels have to fit in the registers of one program


def decoder_tail_reference(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> Tensor:  # fmt: skip
    """Specification of `decoder_tail`; as the model has it, only the last convolution is float32.

    In float64 it is what other backends are compared with.
    """
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)
        x = F.relu(F.conv2d(x, weight1.to(x.dtype), bias1.to(x.dtype), padding=1))
        x = F.conv2d(x.to(compute), weight2.to(compute), bias2.to(compute))
    return x.sigmoid() if activation == "sigmoid" else x.relu()


@kernel_op("dafast::decoder_tail")
def _op(
    x: Tensor, height: int, width: int,
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, sigmoid: bool, backend: str,
) -> Tensor:  # fmt: skip
    if backend == "cpp":
        return _cpp_fwd(x, (height, width), weight1, bias1, weight2, bias2, sigmoid)
    from dafast.kernels.decoder_tail import decoder_tail_fwd

    return decoder_tail_fwd(x, (height, width), weight1, bias1, weight2, bias2, sigmoid)


@_op.register_fake
def _(
    x: Tensor, height: int, width: int,
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, sigmoid: bool, backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], 1, height, width), dtype=torch.float32)


def _cpp_fwd(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, sigmoid: bool,
) -> Tensor:  # fmt: skip
    weight1 = weight1.to(x.dtype)
    missing = -x.shape[1] % _CPP_CHANNELS
    if missing:  # zeros, and weights of zero for them
        x, weight1 = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (x, weight1))
    x = x.contiguous(memory_format=torch.channels_last)
    if x.stride(1) != 1:  # with one channel or one pixel PyTorch calls other strides that, too
        x = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
    out = torch.empty((len(x), 1, *size), dtype=torch.float32, device=x.device)
    torch.ops.dafast_C.decoder_tail(
        x, out, weight1.contiguous(), *(p.float().contiguous() for p in (bias1, weight2, bias2)),
        sigmoid,
    )  # fmt: skip
    return out


def _cpp_supports(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> tuple[bool, str]:  # fmt: skip
    tensors = (x, weight1, bias1, weight2, bias2)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False, _NO_BACKWARD
    if x.dtype not in (torch.float32, torch.bfloat16):
        return False, f"takes float32 and bfloat16 on a CPU, not {x.dtype}"
    if len(weight1) > _MAX_HIDDEN:
        return False, f"takes up to {_MAX_HIDDEN} hidden channels, not {len(weight1)}"
    return _extension.supports("cpp", "decoder_tail", *tensors)


def _cpp_backend(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> Tensor:  # fmt: skip
    height, width = size
    sigmoid = activation == "sigmoid"
    return _op(x, height, width, weight1, bias1, weight2, bias2, sigmoid, "cpp")


def _triton_supports(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> tuple[bool, str]:  # fmt: skip
    tensors = (x, weight1, bias1, weight2, bias2)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False, _NO_BACKWARD
    if x.dtype not in _DTYPES:
        return False, f"takes float16, bfloat16 and float32, not {x.dtype}"
    if len(weight1) > _MAX_HIDDEN:
        return False, f"takes up to {_MAX_HIDDEN} hidden channels, not {len(weight1)}"
    if (
        sum((n - 1) * stride for n, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
        >= 2**31
    ):
        return False, "takes maps whose elements lie less than 2^31 apart within an image"
    ok, reason = _triton.supports(*tensors)
    if ok and x.dtype == torch.float32 and _forced_backend() != "triton":
        # cuDNN's, in TF32 unless `torch.backends.cudnn` says otherwise; without it twice as fast.
        return False, "in float32 PyTorch's own convolutions serve"
    return ok, reason


def _triton_backend(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> Tensor:  # fmt: skip
    height, width = size
    return _op(x, height, width, weight1, bias1, weight2, bias2, activation == "sigmoid", "triton")


_decoder_tail = Op(
    "decoder_tail",
    decoder_tail_reference,
    {
        "triton": Backend(_triton_backend, _triton_supports),
        "cpp": Backend(_cpp_backend, _cpp_supports),
    },
)


def decoder_tail(
    x: Tensor, size: tuple[int, int],
    weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor,
    *, activation: str = "relu",
) -> Tensor:  # fmt: skip
    """Upsamples bilinearly (corners aligned), then conv3x3, ReLU, conv1x1 to one channel.

    The end of the DPT decoder (`output_conv2` of Depth Anything). Without gradients one kernel does
    it all, and the upsampled map is never in memory. Both convolutions pad such that
    the size stays; the 3x3 pads the upsampled map with zeros.

    Args:
        x: Feature map (B, C, h, w), float16, bfloat16, float32 or float64; any strides, read in
            place on a GPU where C has stride 1 (channels last).
        size: Height and width of the output; larger or smaller than (h, w).
        weight1: Of the 3x3 convolution, (N, C, 3, 3); used in ``x``'s dtype.
        bias1: (N,).
        weight2: Of the 1x1 convolution, (1, N, 1, 1); used in float32.
        bias2: (1,).
        activation: Of the output, ``"relu"`` or ``"sigmoid"``.

    Returns:
        (B, 1, *size), float32 (float64 for a float64 map).

    Raises:
        ValueError: If shapes, dtypes or ``activation`` do not fit.
    """
    channels, hidden = (x.shape[1] if x.ndim == 4 else -1), len(weight1)
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
    if min(*size, *x.shape[1:], hidden) < 1:
        raise ValueError(
            f"no side may be empty; got {tuple(x.shape)} to {tuple(size)}, {hidden} hidden channels"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    return _decoder_tail(x, size, weight1, bias1, weight2, bias2, activation=activation)

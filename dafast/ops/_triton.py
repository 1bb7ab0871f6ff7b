"""Whether the Triton kernels can serve a call; without importing Triton where they cannot."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, NoReturn

import torch
from torch import Tensor

from ._dispatch import _forced_backend, why_transformed
from ._kernel_op import KernelOp

MIN_CAPABILITY = (8, 0)
"""Oldest NVIDIA compute capability that the kernels are compiled for (Ampere)."""


def _cpu_reason() -> str:
    """Why Triton cannot run on CPU tensors, an empty string where it can.

    It can in its interpreter (``TRITON_INTERPRET=1`` set before Triton is imported), and under a
    driver that runs compiled kernels on the CPU.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'dafast[triton]'"
    import triton

    if triton.knobs.runtime.interpret:
        return ""
    try:
        device = triton.runtime.driver.active.get_active_torch_device()
    except RuntimeError:  # no active driver
        device = None
    if device is not None and device.type == "cpu":
        return ""
    return "its kernels run on a GPU; on CPU tensors only with TRITON_INTERPRET=1"


@functools.cache
def _gpu_reason(index: int) -> str:
    """Why Triton cannot run on this GPU, an empty string where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install 'dafast[triton]'"
    capability = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        return "needs compute capability {}.{}; the GPU has {}.{}".format(
            *MIN_CAPABILITY, *capability
        )
    return ""


def _is_full_float32() -> bool:
    # Not by get_float32_matmul_precision, which raises where a newer setting has been used.
    return torch.backends.cuda.matmul.fp32_precision not in ("tf32", "bf16")


# torch.compile takes them as they are while tracing; see `_dispatch._forced_backend`.
_cpu_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
_is_full_float32._dynamo_marked_constant = True  # type: ignore[attr-defined]
_gpu_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_missing() -> str:
    """Returns why no call can be served on a GPU here; an empty string if one can."""
    return _gpu_reason(0) if torch.cuda.is_available() else "PyTorch sees no CUDA GPU here"


def no_second_derivative(backward_op: KernelOp, name: str) -> None:
    """Makes differentiating the gradients of the op ``name`` fail with a remedy."""

    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"dafast.ops.{name}: its kernels have no second derivative; run the forward "
            "within dafast.use_backend('reference'), which has one"
        )

    backward_op.register_autograd(backward)


def why_not_unasked(x: Tensor) -> str:
    """Why attention's kernels are not taken unless they are asked for by name.

    In float32 that is not TF32 there are no tensor cores. On an H100 PyTorch's own attention is
    three to six times as fast then.

    Returns:
        The reason, an empty string if they are to be taken, or ``use_backend("triton")`` asks.
    """
    if x.dtype != torch.float32 or _forced_backend() == "triton" or not _is_full_float32():
        return ""
    return "in float32 at full precision PyTorch's own kernels are faster"


def supports(*tensors: Tensor) -> tuple[bool, str]:
    """Whether Triton can serve these tensors, as far as device and installation go.

    On CPU tensors it serves only when `dafast.use_backend` asks for it: interpreted kernels are
    thousands of times slower than any other backend.

    Returns:
        Whether it can, and why not.
    """
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return False, f"needs all tensors on one device; got {sorted(map(str, devices))}"
    reason = why_transformed(*tensors)
    if reason:
        return False, reason
    device = tensors[0].device
    if device.type == "cuda":
        reason = _gpu_reason(device.index)
    elif device.type == "cpu":
        if _forced_backend() != "triton":
            return False, "on a CPU its kernels run interpreted, and only when asked for by name"
        reason = _cpu_reason()
    else:
        reason = f"runs on CUDA and ROCm GPUs; the tensors are on {device}"
    return not reason, reason

"""A case: inputs of an op, which the benchmarks time and check.

A case makes fresh inputs from a seed. Its ``flops`` and ``bytes`` are the least that the forward
needs: floating-point operations, and bytes that it must read and write once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: Name in `dafast.ops`.
        label: Shape in words.
        make: Takes (seed, dtype, device) and returns the positional arguments.
        call: The public function as it is benchmarked.
        differentiable: Positions of the arguments that get a gradient.
        flops: Floating-point operations of the forward.
        bytes: Takes the element size, returns the bytes that the forward must move.
        dtypes: Dtypes that the op is used with.
        tolerance: Largest accepted error over max |reference|, per dtype.
        gpu_only: Whether it is too large to be timed on a CPU.
        outliers: Fraction of a gradient's values whose error does not count.
        e4m3: Whether its kernels need a GPU with e4m3.
    """

    op: str
    label: str
    make: Callable[[int, torch.dtype, torch.device], tuple[Any, ...]]
    call: Callable[..., Any]
    differentiable: tuple[int, ...]
    flops: float
    bytes: Callable[[int], float]
    dtypes: tuple[torch.dtype, ...]
    tolerance: dict[torch.dtype, float]
    gpu_only: bool = False
    outliers: float = 0.0
    e4m3: bool = False

    def name(self, dtype: torch.dtype) -> str:
        """Op, shape and dtype in one string."""
        return f"{self.op}|{self.label}|{str(dtype).removeprefix('torch.')}"

    def forward(
        self, arguments: tuple[Any, ...], call: Callable[..., Any] | None = None
    ) -> Callable[[], Any]:
        """Returns a function that runs the forward of ``call`` (default: `call` of the case)."""
        call = call or self.call

        def run() -> Any:
            with torch.no_grad():
                return call(*arguments)

        return run

    def forward_backward(
        self, arguments: tuple[Any, ...], call: Callable[..., Any] | None = None
    ) -> Callable[[], tuple[torch.Tensor, ...]]:
        """Returns a function that runs both passes and returns gradients of `differentiable`."""
        call = call or self.call
        leaves = [arguments[i].detach().requires_grad_() for i in self.differentiable]
        full = list(arguments)
        for i, leaf in zip(self.differentiable, leaves, strict=True):
            full[i] = leaf
        cotangent: list[torch.Tensor] = []

        def run() -> tuple[torch.Tensor, ...]:
            out = call(*full)
            outputs = out if isinstance(out, tuple) else (out,)
            if not cotangent:  # the gradient of a sum would have stride 0
                cotangent.extend(torch.ones_like(output) for output in outputs)
            return torch.autograd.grad(outputs, leaves, cotangent)

        return run

    def run(self, arguments: tuple[Any, ...]) -> None:
        """Runs the forward once, and the backward if the op has one."""
        self.forward_backward(arguments)() if self.differentiable else self.forward(arguments)()


HALF = (torch.float16, torch.bfloat16)
ALL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLOAT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}

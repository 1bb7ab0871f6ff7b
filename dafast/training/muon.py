"""Muon for processors that do not multiply bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``, computed in float32.

    torch orthogonalizes in bfloat16. A CPU without bfloat16 instructions emulates it: with AVX2
    the step of a block of `nano` took 20 times as long as in float32 (724 and 36 ms), more than
    the gradients of 32 pictures. The state is that of torch's class. The parameters are plain
    tensors, not sharded ones.

    Args:
        params: Matrices (rows, columns), or groups of them.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step with the gradients of the parameters; those without one stay as they are."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                if group["nesterov"]:
                    mean = parameter.grad.lerp(mean, momentum)
                update = orthogonalize(
                    mean, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update, alpha=-rate * 0.2 * max(parameter.shape) ** 0.5)


def orthogonalize(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Moves all singular values towards 1, by Newton-Schulz iterations (Jordan et al. 2024).

    Args:
        matrix: (M, N), floating point; the computation is in its dtype.
        coefficients: Of the odd polynomial of degree 5 that each iteration applies to the
            singular values.
        steps: Number of iterations.
        eps: Smallest Frobenius norm that the matrix is divided by.

    Returns:
        A matrix (M, N) with the singular vectors of ``matrix``.
    """
    a, b, c = coefficients
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T

"""One way to compare a backend of an op with its specification, outputs and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from dafast.ops import use_backend
from tests.tolerances import TOLERANCES

Upstream = Sequence[torch.Tensor] | Callable[..., Sequence[torch.Tensor]]


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills fresh memory with NaN, or a large integer, so that unwritten elements show."""
    owners = (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    )
    for owner, name in owners:
        original = getattr(owner, name)

        def empty(*args: Any, _original: Callable = original, **kwargs: Any) -> torch.Tensor:
            out = _original(*args, **kwargs)
            if out.is_floating_point():
                return out.fill_(float("nan"))
            return out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).max // 2)

        monkeypatch.setattr(owner, name, empty)


def evaluate(
    function: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    upstream: Upstream | None = None,
    **options: Any,
) -> list[torch.Tensor]:
    """The outputs of ``function(*inputs, **options)``, then the gradient of every input.

    Args:
        function: Returns a tensor or a tuple of tensors.
        inputs: Tensors; all of them get a gradient, which is zero where the outputs do not
            depend on one.
        upstream: Gradients of the outputs in this order, or a function that makes them from the
            outputs; ones by default. They are moved to the device
            and the dtype of their output.
        options: Keyword arguments of ``function``.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = function(*leaves, **options)
    outputs = result if isinstance(result, tuple) else (result,)
    if upstream is None:
        upstream = [torch.ones_like(output) for output in outputs]
    elif callable(upstream):
        upstream = upstream(*outputs)
    upstream = [g.to(x.device, x.dtype) for g, x in zip(upstream, outputs, strict=True)]
    grads = torch.autograd.grad(
        outputs, leaves, upstream, allow_unused=True, materialize_grads=True
    )
    return [*(output.detach() for output in outputs), *grads]


def run(
    backend: str,
    op: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    upstream: Upstream | None = None,
    **options: Any,
) -> list[torch.Tensor]:
    """`evaluate` with a backend of `dafast.ops`."""
    with use_backend(backend):
        return evaluate(op, inputs, upstream, **options)


def exact(
    op: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    upstream: Upstream | None = None,
    **options: Any,
) -> list[torch.Tensor]:
    """`evaluate` by the specification in float64."""
    if upstream is not None and not callable(upstream):
        upstream = [g.double() for g in upstream]
    return run("reference", op, [x.double() for x in inputs], upstream, **options)


def assert_within(
    got: torch.Tensor,
    exact: torch.Tensor,
    eager: torch.Tensor | None = None,
    *,
    steps: float = 1.0,
    scale: float | torch.Tensor = 0.0,
    slack: float = 0.0,
    dtype: torch.dtype | None = None,
    name: str = "result",
) -> None:
    """Bounds the largest error of a result.

    The bound is twice the error of PyTorch's own path in the same dtype, plus ``steps`` times
    the tolerance of the dtype, as a multiple of the largest exact value, plus ``slack``.

    Args:
        got: The result, which must have the shape of ``exact``.
        exact: The specification in float64.
        eager: The result of PyTorch's own path, in the dtype of ``got``.
        steps: Roundings of the dtype that are allowed.
        scale: Size of the terms of a sum that can cancel: the multiple is at least of this.
        slack: Allowed error that has nothing to do with the dtype.
        dtype: The one whose tolerance counts; that of ``got`` by default.
        name: What the result is, for the message.
    """
    assert got.shape == exact.shape, f"{name}: {tuple(got.shape)}, not {tuple(exact.shape)}"
    if not got.numel():
        return
    largest = max(float(exact.abs().max()), float(scale))
    bound = steps * TOLERANCES[dtype or got.dtype].op * largest + slack
    if eager is not None:
        assert eager.dtype == got.dtype, f"{name}: {got.dtype}, not {eager.dtype}"
        bound += 2 * float((eager.double() - exact).abs().max())
    error = float((got.double() - exact).abs().max())
    assert error <= bound, f"{name}: off by {error:.2e}, more than {bound:.2e}"


def assert_all_within(
    got: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
    eager: Sequence[torch.Tensor] | None = None,
    *,
    names: Sequence[str] = (),
    **bounds: Any,
) -> None:
    """`assert_within` for outputs and gradients, which `evaluate` returns in one list."""
    names = names or [f"result {i}" for i in range(len(got))]
    for i, (value, wanted, name) in enumerate(zip(got, exact, names, strict=True)):
        assert_within(value, wanted, None if eager is None else eager[i], name=name, **bounds)


def assert_equal(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    """Outputs and gradients that are the same to the bit, NaN where NaN is expected."""
    for value, wanted in zip(got, expected, strict=True):
        assert value.dtype == wanted.dtype
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)

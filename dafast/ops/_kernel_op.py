"""Custom ops that plain eager calls bypass.

`torch.compile`, `torch.func`, fake tensors and the like need a `torch.library` op. Its overhead,
15 us forward and more backward, is as long as many a kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor


class KernelOp:
    """A custom op ``dafast::<name>``, called directly where nothing has to be traced.

    Args:
        schema: Of the op, as `torch.library` writes it; ``SymInt`` for every size. With several
            ``kernels`` its last argument is ``str backend``.
        fake: Takes the op's arguments, returns uninitialised results of the right kind.
        kernels: By the name of their backend. Each takes the op's arguments without ``backend``,
            changes none of them, and returns new tensors. A single one, without a ``backend`` in
            the schema, takes all arguments.
    """

    def __init__(
        self, schema: str, fake: Callable[..., Any], **kernels: Callable[..., Any]
    ) -> None:
        self.name, rest = schema.split("(", 1)
        if "str backend)" in schema:
            self.fn: Callable[..., Any] = lambda *args: kernels[args[-1]](*args[:-1])
        else:
            (self.fn,) = kernels.values()
        self.kernels = kernels if "str backend)" in schema else None
        self.op = torch.library.custom_op(
            f"dafast::{self.name}", self.fn, mutates_args=(), schema=f"({rest}"
        )
        self.op.register_fake(fake)
        self._function: type[torch.autograd.Function] | None = None

    def register_autograd(
        self, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
    ) -> None:
        """As `torch.library.CustomOpDef.register_autograd`."""
        self.op.register_autograd(backward, setup_context=setup_context)
        if setup_context is None:
            return
        fn = self.fn

        def forward(ctx: Any, *args: Any) -> Any:
            out = fn(*args)
            setup_context(ctx, args, out)
            return out

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        # Seen in graphs and profiles.
        self._function = type(self.name, (torch.autograd.Function,), members)

    def differentiate_by(
        self,
        backward_op: KernelOp,
        keep: Callable[[tuple[Any, ...], Any], tuple[Any, ...]],
        outputs: int = 1,
        finish: Callable[..., tuple[Tensor, ...]] | None = None,
    ) -> None:
        """Registers an op that computes the gradients; it has no derivative itself.

        Args:
            backward_op: Takes the gradients of the outputs and what ``keep`` returns; returns those
                of the first inputs.
            keep: Takes inputs and outputs; returns tensors, then other values.
            outputs: How many outputs have a gradient; the others are statistics.
            finish: Turns the results of ``backward_op`` into one gradient for each input.
        """

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            # Loops, not comprehensions, which are calls of their own up to Python 3.11.
            kept, first, dtypes = keep(inputs, output), 0, []
            for x in kept:
                if x is not None and not isinstance(x, Tensor):
                    break
                first += 1
            for x in inputs:
                dtypes.append(x.dtype if isinstance(x, Tensor) else None)
            ctx.save_for_backward(*kept[:first])
            ctx.options, ctx.dtypes = kept[first:], dtypes
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[outputs:])
            ctx.set_materialize_grads(False)

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            grads = grads[:outputs]
            cast: list[Tensor | None] = [None] * len(ctx.dtypes)
            for grad in grads:
                if grad is not None:
                    break
            else:
                return tuple(cast)
            results = backward_op(*grads, *ctx.saved_tensors, *ctx.options)
            results = results if isinstance(results, tuple) else (results,)
            results = finish(*results) if finish else results
            for i, result in enumerate(results):
                cast[i] = result.to(ctx.dtypes[i])
            return tuple(cast)

        self.register_autograd(backward, setup_context)
        backward_op.refuse_derivative(self.name)

    def refuse_derivative(self, name: str) -> None:
        """Makes a derivative of this op, which is the backward of ``name``, an error."""

        def no_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
            raise NotImplementedError(
                f"dafast.ops.{name}: its kernels have no second derivative; run the forward "
                "within dafast.use_backend('reference'), which has one"
            )

        self.register_autograd(no_second_derivative)

    def __call__(self, *args: Any) -> Any:
        functorch = torch._C._functorch
        if (
            torch.compiler.is_dynamo_compiling()
            or torch._C._len_torch_dispatch_stack() != 0
            or functorch.peek_interpreter_stack() is not None
            or torch._C._get_tracing_state() is not None
        ):
            return self.op(*args)
        gradient = False
        for arg in args:
            for x in arg if type(arg) is list else (arg,):  # of images, for example
                if not isinstance(x, Tensor):
                    continue
                if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
                    return self.op(*args)
                if functorch.is_legacy_batchedtensor(x):  # of is_grads_batched
                    return self.op(*args)
                gradient = gradient or x.requires_grad
        # Only eager autograd records this call.
        if gradient and torch.is_grad_enabled():
            return (self._function.apply if self._function else self.op)(*args)
        return self.kernels[args[-1]](*args[:-1]) if self.kernels else self.fn(*args)

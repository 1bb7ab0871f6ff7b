"""Custom ops that plain eager calls go around.

`torch.compile`, `torch.func`, fake tensors and the like need a `torch.library` op. What one costs
on the way to its kernel, 15 us forward and more backward, is as much as many a kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _is_plain(args: tuple[Any, ...]) -> bool:
    """Whether nothing but eager autograd looks at this call."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and all(
            (type(x) is Tensor or type(x) is torch.nn.Parameter)
            and not torch._C._functorch.is_legacy_batchedtensor(x)  # of is_grads_batched
            for x in args
            if isinstance(x, Tensor)
        )
    )


class KernelOp:
    """A custom op, called directly where nothing has to be traced.

    Args:
        name: With its namespace, as `torch.library.custom_op` takes it.
        fn: Calls the kernels. Changes none of its arguments, returns new tensors.
    """

    def __init__(self, name: str, fn: Callable[..., Any]) -> None:
        self.name, self.fn = name, fn
        self.op = torch.library.custom_op(name, fn, mutates_args=())
        self.register_fake = self.op.register_fake
        self._function: type[torch.autograd.Function] | None = None

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None] | None = None
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
        self._function = type(self.name.split("::")[1], (torch.autograd.Function,), members)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _is_plain(args):
            return self.op(*args)
        if torch.is_grad_enabled() and any(x.requires_grad for x in args if isinstance(x, Tensor)):
            return (self._function.apply if self._function else self.op)(*args)
        return self.fn(*args)


def kernel_op(name: str) -> Callable[[Callable[..., Any]], KernelOp]:
    """Decorator that makes a `KernelOp`."""
    return lambda fn: KernelOp(name, fn)

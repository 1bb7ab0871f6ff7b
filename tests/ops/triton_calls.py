"""Counts the Python calls of launches and the compilations of kernels; `python -m` writes JSON.

A process of its own, because Triton's interpreter is on in that of the tests. Nothing is compiled:
a stub stands for what the compiler makes, and another one for the driver's launch.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import torch
import triton
from dafast.kernels import runtime
from triton.runtime.jit import JITFunction

import dafast
from bench.registry import SMALL_CASES, Case
from bench.static import recording
from dafast import ops

COUNTED = (
    str(Path(dafast.__file__).parent), str(Path(runtime.__file__).parent),
    str(Path(triton.__file__).parent), str(Path(torch.cuda.__file__).parent), "<string>",
)  # fmt: skip
"""Files whose functions are counted, and what Triton compiles to bind arguments."""

compiled: Counter[str] = Counter()


def _do_compile(self: JITFunction, key: str, signature: Any, device: int, *_: Any) -> Any:
    compiled[self.fn.__name__] += 1
    made = SimpleNamespace(
        run=lambda *_: None, function=None, packed_metadata=None, launch_metadata=lambda *_: None
    )
    self.device_caches[device][0][key] = made
    return made


def count(call: Callable[[], Any]) -> int:
    """Calls of Python functions once everything is imported and cached."""
    call()
    call()
    seen = 0

    def look(frame: FrameType, event: str, _arg: Any) -> None:
        nonlocal seen
        seen += event == "call" and frame.f_code.co_filename.startswith(COUNTED)

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def calls_of(case: Case) -> tuple[int, int]:
    """Calls of the forward, and with the backward; 0 without one."""
    arguments = list(case.make(0, torch.bfloat16, torch.device("cpu")))
    with torch.no_grad():
        forward = count(lambda: case.call(*arguments))
    if not case.differentiable:
        return forward, 0
    for i in case.differentiable:
        arguments[i] = arguments[i].detach().requires_grad_()

    def both() -> None:
        out = case.call(*arguments)
        outputs = out if isinstance(out, tuple) else (out,)
        sum(x.float().sum() for x in outputs if x.requires_grad).backward()

    return forward, count(both)


def count_compilations(rows: tuple[int, ...]) -> dict[str, int]:
    """Compilations by kernel, as the number of rows varies."""
    for n in rows:
        x, other = torch.randn(2, 1, n, 384).requires_grad_()
        vector = torch.randn(384).requires_grad_()
        for out in (
            ops.add_layer_norm(x, other, vector, vector, vector)[1],
            ops.bias_gelu(x, vector),
            ops.feature_alignment_loss(x, other.detach()),
        ):
            out.sum().backward()
    return dict(compiled)


if __name__ == "__main__":
    JITFunction._do_compile = _do_compile
    with recording("sm_90"):
        compilations = count_compilations((1370, 1376, 1, 21920))  # before anything is compiled
        cases = {case.op: case for case in reversed(SMALL_CASES)}  # the first of each op
        backends = ops.available_backends()
        calls = {op: calls_of(case) for op, case in cases.items() if "triton" in backends[op]}
        print(json.dumps([calls, compilations]))

"""NVTX ranges for Nsight Systems: on with ``DAFAST_NVTX=1`` and the package nvtx, else no-ops."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .optional import MissingPackageError, why_no_module

P = ParamSpec("P")
R = TypeVar("R")

ENABLED = os.environ.get("DAFAST_NVTX", "0") not in ("", "0")
"""Whether ranges are recorded; fixed at import, so that functions stay undecorated if not."""

if ENABLED and (_why := why_no_module("nvtx")):
    raise MissingPackageError(
        f"DAFAST_NVTX is set, which needs nvtx: pip install 'dafast[profile]' ({_why})"
    )


def annotate(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: a range of this name, in the domain ``dafast``, around every call.

    Returns the function itself if ranges are off. Code that `torch.compile` traces gets no range,
    which would break its graph.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if not ENABLED:
            return function
        import nvtx
        import torch

        @functools.wraps(function)
        def annotated(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            with nvtx.annotate(name, domain="dafast"):
                return function(*args, **kwargs)

        return annotated

    return decorate

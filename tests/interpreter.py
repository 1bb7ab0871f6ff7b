"""Triton's interpreter, made faster for the tests."""

from __future__ import annotations

import contextlib
from typing import Any


def patch_language_once_per_launch() -> None:
    """Spares the interpreter most of its time.

    It replaces the functions of ``triton.language`` in every call of a device function, and
    looks through all of the module for that; those of the launch are still in place. Does
    nothing with a Triton that is built differently.
    """
    with contextlib.suppress(ImportError, AttributeError):
        import triton.language as tl
        from triton.runtime import interpreter

        launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
        scope_type = interpreter._LangPatchScope
        languages = frozenset((id(tl), id(tl.core)))
        patched: set[frozenset[int]] = set()

        def launch_once(self: Any, *args: Any, **kwargs: Any) -> Any:
            patched.clear()
            try:
                return launch(self, *args, **kwargs)
            finally:
                patched.clear()

        def patch_once(function: Any) -> Any:
            modules = frozenset(map(id, function.__globals__.values())) & languages
            if modules in patched:
                return scope_type()
            patched.add(modules)
            return patch(function)

        interpreter.GridExecutor.__call__ = launch_once
        interpreter._patch_lang = patch_once

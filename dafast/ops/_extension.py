"""Lazy import of the compiled extension ``dafast._C``, and why it is missing where it is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from types import ModuleType

logger = logging.getLogger("dafast")

HOW_TO_BUILD = (
    "with torch, pybind11, ninja and a C++ compiler present, reinstall dafast with "
    "`pip install --no-build-isolation`; -v shows what the compiler says"
)


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Returns the module, or None and the reason; tried once in a process."""
    if importlib.util.find_spec("dafast._C") is None:
        return None, f"the C++ extension was not built ({HOW_TO_BUILD})"
    import torch  # noqa: F401  (the extension links against the libraries that this loads)

    try:
        return importlib.import_module("dafast._C"), ""
    except (ImportError, OSError, RuntimeError) as error:
        # Built against a newer PyTorch than the one that runs, or for another system.
        reason = (
            f"the C++ extension is there but does not load: {error}; rebuild it: {HOW_TO_BUILD}"
        )
        logger.warning("dafast: %s", reason)
        return None, reason


def load() -> ModuleType | None:
    """Returns ``dafast._C``, imported on the first call, or None where it is not to be had.

    Importing it registers the ops ``torch.ops.dafast_C.*``.
    """
    return _load()[0]


def why_missing() -> str:
    """Returns why `load` gives None, with what to do about it; an empty string if it does not."""
    return _load()[1]

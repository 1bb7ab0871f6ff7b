"""Optional packages: importable, missing, or installed and broken."""

from __future__ import annotations

import importlib
import sys

from .files import explain_kind


class MissingPackageError(ImportError):
    """An optional package cannot be used; the message names the extra that installs it."""


_BROKEN: dict[str, str] = {}
"""Modules whose import failed in this process, with the reason."""


def why_no_module(*names: str) -> str:
    """Imports modules of optional packages, and returns why one of them cannot be used.

    A package whose import raises any exception counts as missing. From then on other libraries see
    it as missing too: importing it raises a `ModuleNotFoundError`.

    Args:
        *names: The modules, for example ``"h5py"`` or ``"scipy.io"``.

    Returns:
        The reason for the first that cannot be imported; "" if all of them are imported.
    """
    for name in names:
        package = name.partition(".")[0]
        if package in _BROKEN or name in _BROKEN:
            return _BROKEN.get(package) or _BROKEN[name]
        try:
            importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit, and a panic of an extension in Rust
            if isinstance(error, ModuleNotFoundError) and error.name == package:
                return f"{package} is not installed"
            reason = f"{package} is installed, but its import fails ({explain_kind(error)})"
            if package not in sys.modules:
                _BROKEN[package] = reason
                sys.modules[package] = None  # type: ignore[assignment]
            return _BROKEN.setdefault(name, reason)
    return ""

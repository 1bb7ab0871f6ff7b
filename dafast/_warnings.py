"""Classes of the warnings that dafast gives, and whether they are wanted.

A warning is something that a caller can act on; the logger ``"dafast"`` has only events, such as a
download that is tried again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Literal


class DafastWarning(UserWarning):
    """Base of all warnings of dafast; `warnings.filterwarnings` hides them or makes them errors."""


class LicenseWarning(DafastWarning):
    """Published weights whose license forbids some uses."""


class WeightsWarning(DafastWarning):
    """Weights that are read on an assumption, in part or not at all, or give no finite output."""


class DataWarning(DafastWarning):
    """Photos, cameras, labels or data sets that are incomplete or probably not as intended."""


class PerformanceWarning(DafastWarning):
    """Something that costs time and no accuracy."""


_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def is_quiet() -> bool:
    """Whether only errors are wanted: ``-q``, or a level of the logger ``"dafast"`` above warnings.

    Progress is not shown then.
    """
    return not logging.getLogger("dafast").isEnabledFor(logging.WARNING)


def warn(category: type[DafastWarning], text: str) -> None:
    """Warns at the line outside of dafast that called it."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


_filtering = threading.RLock()


@contextlib.contextmanager
def filtered(action: Literal["ignore", "error"]) -> Iterator[None]:
    """Hides all warnings within the block, or makes them errors.

    Python's filters belong to the process: without the lock, two threads in `catch_warnings` can
    leave the filter of a block behind.
    """
    with _filtering, warnings.catch_warnings():
        warnings.simplefilter(action)
        yield

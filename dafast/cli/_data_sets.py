"""Names of data sets on the command line."""

from __future__ import annotations

from pathlib import Path

from ..data.readers import NAMES, PICTURE_NAMES  # only names: no reader is imported
from ._common import CommandError

ALL_NAMES = (*NAMES, *PICTURE_NAMES)
"""The data sets that are read as they are published."""

NO_DEPTH = "--min-depth is for pictures with depth: a list, or a labeled data set"
"""Message for an option that the source cannot use."""


def check_name(name: str | None, source: Path, others: tuple[str, ...] = ()) -> None:
    """Checks the name of a data set and its path.

    Args:
        name: The data set, or None if only a path was given.
        source: Its path.
        others: More names that the command knows.

    Raises:
        CommandError: If there is no data set of this name, if it is given without a path, or if
            there is nothing at the path.
    """
    known = (*ALL_NAMES, *others)
    if name and name not in known:
        raise CommandError(f"no data set {name!r}; there are: {', '.join(known)}")
    if not name and str(source) in known and not source.exists():
        raise CommandError(f"{source}: missing path. Give the path after the name")
    if not source.exists():
        a_name = not name and str(source) == source.stem  # what a mistyped data set looks like
        others_are = f", and no data set; there are: {', '.join(known)}" if a_name else ""
        raise CommandError(f"{source}: no such file or folder{others_are}")

"""Writes the library's log and warnings to stderr; ``-v`` and ``-q``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from .._warnings import DafastWarning, is_quiet

logger = logging.getLogger("dafast")


class _StderrHandler(logging.StreamHandler):
    """Writes to the stderr of the moment, which may change after the handler was made."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Adds ``-v`` and ``-q`` to a parser and to those of its commands.

    A parser that leaves all options to another one (`dafast train`) takes none;
    `take_verbosity` reads them.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                add_verbosity(command)
    if "-" not in parser.prefix_chars:
        return
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=argparse.SUPPRESS,
        help="show more of what the library does; -vv shows all",
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show no progress and no warnings, only errors and results",
    )


def take_verbosity(options: Sequence[str], args: argparse.Namespace) -> list[str]:
    """Moves ``-v`` and ``-q`` from the options of `dafast train` to `args`; returns the others."""
    rest = []
    for option in options:
        if option in ("-v", "-vv", "--verbose"):
            args.verbose += 2 if option == "-vv" else 1
        elif option in ("-q", "--quiet"):
            args.quiet = True
        else:
            rest.append(option)
    set_level(args)
    return rest


def set_level(args: argparse.Namespace) -> None:
    """Sets the level of the log; without ``-v`` and ``-q`` a program's own level stays."""
    if args.quiet:
        logger.setLevel(logging.ERROR)
    elif args.verbose:
        logger.setLevel(logging.INFO if args.verbose == 1 else logging.DEBUG)


def tell(text: str) -> None:
    """Prints a line of progress to stderr, unless ``-q`` was given."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows the library's messages and warnings on stderr within the block, one line for each."""
    handler, level, show = _StderrHandler(), logger.level, warnings.showwarning

    def show_own(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
        if issubclass(category, DafastWarning):
            logger.warning("%s", message)
        else:
            show(message, category, *rest, **options)

    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_own
            # After the filters of the user, and also what an earlier command warned of.
            warnings.simplefilter("always", DafastWarning, append=True)
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

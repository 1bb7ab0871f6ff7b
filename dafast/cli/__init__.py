"""The command ``dafast``.

Each command has a file with its parser (`add_parser`) and the function that runs it. Only the
standard library is imported until a command runs, so that ``dafast --help`` answers at once. Exit
codes: 0 done, 1 something failed, 2 a mistake in the command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from .._version import __version__
from . import data, doctor, evaluate, label, run, synth, train
from ._common import CommandError

DESCRIPTION = "Depth Anything, fast and trainable: depth from one photo."

COMMANDS = (run, doctor, synth, data, label, train, evaluate)
"""The modules of the commands, in the order of the help text."""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="dafast", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"dafast {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        argv: Arguments after the program's name; those of the process by default.
    """
    args = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may not be text that the terminal or the log can show.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = args.function(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("dafast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output has gone (`| head`). Python would complain again on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.traceback:
            raise
        if isinstance(error, CommandError | OSError | ValueError | TypeError):
            print(f"dafast: error: {error}", file=sys.stderr)
        else:
            print(
                f"dafast: error: {type(error).__name__}: {error}\n"
                "dafast: `dafast --traceback ...` shows where it came from",
                file=sys.stderr,
            )
        return 1

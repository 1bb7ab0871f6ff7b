"""The command ``dafast``.

Each command has a file with its parser (`add_parser`) and the function that runs it. Only the
standard library is imported until a command runs, so that ``dafast --help`` answers at once. Exit
codes: 0 done, 1 something failed, 2 a mistake in the command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence

from .._version import __version__
from ..files import FULL, explain
from ._common import remove_empty_folders
from ._log import add_verbosity, log_to_stderr, set_level
from ._process import interrupted, open_streams, silence, watch_interrupts, write_lines

DESCRIPTION = "Depth Anything, fast and trainable: depth from one photo."


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    from . import (  # isort: skip
        calibrate, data, doctor, evaluate, export, label, models, parallax, run, serve, stereo,
        synth, train, video,
    )  # fmt: skip

    parser = argparse.ArgumentParser(prog="dafast", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"dafast {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show the Python traceback of an error"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        run, stereo, parallax, video, doctor, models, synth, data, label, train, evaluate,
        calibrate, export, serve,
    ):  # fmt: skip
        command.add_parser(commands)
    add_verbosity(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        argv: Arguments after the program's name; those of the process by default.
    """
    open_streams()
    args = argparse.Namespace(traceback=False, verbose=0, quiet=False, is_process=argv is None)
    try:
        with watch_interrupts(), log_to_stderr():
            build_parser().parse_args(argv, args)
            set_level(args)
            code = args.function(args)
            sys.stdout.flush()
    except BaseException as error:
        code = _report(error, args.traceback)
    finally:
        remove_empty_folders()
    if argv is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the end of the process
    return code


def _report(error: BaseException, traceback: bool) -> int:
    """Says why a command ended, and returns its exit code."""
    if isinstance(error, KeyboardInterrupt) or interrupted():
        exec("")  # or Python ends with a signal if the interrupt came within `exec` of a text
        return _say("dafast: interrupted", 130)
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, OSError) and not error.filename and error.errno in (errno.EPIPE, *FULL):
        silence(sys.stdout)
        if error.errno == errno.EPIPE:  # the reader of the output has gone (`| head`)
            return 1
        return _say(f"dafast: error: cannot write the output: {error.strerror}", 1)
    if traceback or not isinstance(error, Exception):
        raise error
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return _say(
            "dafast: error: this needs PyTorch, which is not installed; without it "
            "`dafast run --model FILE.onnx` predicts with files of `dafast export`",
            1,
        )
    # The layout that a folder should have takes several lines.
    text = str(error).strip() if "\n" in str(error) else explain(error)
    # Exceptions of dafast are written for users.
    own = type(error).__module__.startswith("dafast.")
    if own or isinstance(error, OSError | ValueError | TypeError | MemoryError):
        return _say(f"dafast: error: {text}", 1)
    return _say(
        f"dafast: error: {type(error).__name__}: {text}\n"
        "dafast: `dafast --traceback ...` shows where it came from",
        1,
    )


def _say(text: str, code: int) -> int:
    try:
        write_lines(text, sys.stderr)
    except OSError:  # a log on a full disk, or a reader that has gone
        silence(sys.stderr)
    return code

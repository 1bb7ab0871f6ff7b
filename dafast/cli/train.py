"""``dafast train``: train or fine-tune a model; every setting is an option."""

from __future__ import annotations

import argparse

from ._common import CommandError
from ._log import take_verbosity


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a model",
        add_help=False,
        # No argument is an option to this parser: all go to the parser of the settings, which
        # needs tyro and PyTorch and is made only when the command runs.
        prefix_chars="\0",
    )
    parser.add_argument("options", nargs="*")
    parser.set_defaults(function=train)


def train(args: argparse.Namespace) -> int:
    """Runs ``dafast train``."""
    import multiprocessing
    import signal

    from ..data.shards import ShardError
    from ..distributed import distributed_session
    from ..files import DiskFullError
    from ..training.command import parse_args
    from ..training.config import ConfigError
    from ..training.loop import train as run
    from ..training.run import TooManyBadStepsError
    from ..training.state import TrainingStateError

    expected = (ConfigError, ShardError, TrainingStateError, DiskFullError, TooManyBadStepsError)
    try:
        config = parse_args(take_verbosity(args.options, args))
        with distributed_session() as world:
            run(config, world)
        return 0
    except expected as error:
        if args.traceback:
            raise
        raise CommandError(message(error)) from None
    except Exception:
        args.traceback = True  # an unforeseen error in a long run needs its traceback
        raise
    finally:
        # The loader's processes leave SIGTERM to this one. After an error Python would send it to
        # them at its exit and wait for them endlessly.
        if left := multiprocessing.active_children():
            if hasattr(signal, "SIGCHLD"):  # PyTorch's handler would report them
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for process in left:
                process.kill()


def message(error: Exception) -> str:
    """The text of an error, without the traceback that a loader process puts in front of it."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text

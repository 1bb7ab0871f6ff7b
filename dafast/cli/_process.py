"""The process of a command: its standard streams, and Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

_pressed: list[int] = []


def interrupted() -> bool:
    """Whether Ctrl-C was pressed since the command began, also if a library swallowed it."""
    return bool(_pressed)


@contextlib.contextmanager
def watch_interrupts() -> Iterator[None]:
    """Notes Ctrl-C for `interrupted` within the block, and raises `KeyboardInterrupt` as usual."""
    _pressed.clear()
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        _pressed.append(number)
        spec = getattr(sys.modules.get("torch"), "__spec__", None)
        if getattr(spec, "_initializing", False):
            # An exception within its C++ would abort the process. Nothing is written yet.
            os.write(2, b"dafast: interrupted\n")
            os._exit(130)
        raise KeyboardInterrupt

    # Leave it to a program that has its own handler, or that ignores it.
    ours = before is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def open_streams() -> None:
    """Prepares the standard streams: those that were closed (``2>&-``) go nowhere.

    Otherwise the next opened file would get their number, and with it the output of libraries.
    Each line is one write, also with ``PYTHONUNBUFFERED``: the processes of torchrun share a pipe,
    and text and end of line in two writes would merge the lines of two processes.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name may not be text that the terminal or the log can show.
            stream.reconfigure(errors="backslashreplace", line_buffering=True, write_through=False)


def write_lines(text: str, stream: TextIO) -> None:
    """Writes one or more lines at once; `print` would write their last end of line separately."""
    stream.write(f"{text}\n")
    stream.flush()


def silence(stream: TextIO) -> None:
    """Discards a stream's remaining output: Python would complain about it on exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

"""Starts processes that end with the server, not before it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def start_process(
    target: Callable[..., None], *arguments: Any, duplex: bool = True, name: str
) -> tuple[BaseProcess, Connection]:
    """Starts a process that SIGINT and SIGTERM do not end.

    Ctrl-C in a terminal and service managers signal all processes of a group. The server then
    finishes its work with these processes, and kills them at the end. The signals are blocked from
    the first instruction on: a handler would be set only after the imports.

    Args:
        target: Called in the process with a connection and the arguments.
        *arguments: See ``target``.
        duplex: Whether the process also receives.
        name: Name of the process.

    Returns:
        The process and the server's end of the connection.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex)
    process = context.Process(
        target=_run, args=(target, theirs, *arguments), daemon=True, name=name
    )
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # its start would unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()  # it inherits the mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    else:
        process.start()
    theirs.close()
    return process, ours


def _run(target: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    for each in _SIGNALS:  # where they cannot be blocked
        signal.signal(each, signal.SIG_IGN)
    target(connection, *arguments)

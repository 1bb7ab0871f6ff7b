"""Starts processes that end with the server, not before it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from .channel import Channel, open_channel

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def start_process(
    target: Callable[..., None], *arguments: Any, name: str
) -> tuple[BaseProcess, Channel]:
    """Starts a process that SIGINT and SIGTERM do not end.

    Ctrl-C in a terminal and service managers signal all processes of a group. The server then
    finishes its work with these processes, and kills them at the end. The signals are blocked from
    the first instruction on: a handler would be set only after the imports.

    Args:
        target: Called in the process with its channel and the arguments.
        *arguments: See ``target``.
        name: Name of the process.

    Returns:
        The process and the server's end of the channel.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = open_channel()
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


def _run(target: Callable[..., None], channel: Channel, *arguments: Any) -> None:
    for each in _SIGNALS:  # where they cannot be blocked
        signal.signal(each, signal.SIG_IGN)
    target(channel, *arguments)

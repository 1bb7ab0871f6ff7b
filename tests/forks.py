"""Processes that start with what this one has imported: a new Python needs seconds for that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist


class Fork:
    """A copy of this process that runs a function, and what it prints.

    Args:
        function: Returns an exit code, or None for 0.
        environment: Changes of the environment.
    """

    def __init__(self, function: Callable[[], int | None], environment: Mapping[str, str]) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("needs fork")
        self.returncode: int | None = None
        # Closed with this object.
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.pid = os.fork()
        if not self.pid:
            os.dup2(self._out.fileno(), 1)
            os.dup2(self._err.fileno(), 2)
            os.environ.update(environment)
            _run_and_leave(function)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        """Waits for its end; the exit code, or None if it still runs."""
        deadline = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.returncode

    def end(self, number: int = signal.SIGKILL) -> int:
        """Sends a signal, unless it has ended; waits for its end and returns the exit code."""
        if self.poll() is None:
            os.kill(self.pid, number)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode or 0

    @property
    def stdout(self) -> str:
        return self._read(self._out.fileno())

    @property
    def stderr(self) -> str:
        return self._read(self._err.fileno())

    @staticmethod
    def _read(file: int) -> str:
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _run_and_leave(function: Callable[[], int | None]) -> NoReturn:
    """Runs it with fresh streams and ends this process, without what pytest has at its exit."""
    code = 1
    try:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)  # the threads of OpenMP are not in the copy
        code = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def ranks(
    function: Callable[[], int | None], count: int, *, fails: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a function in processes of one group, with the environment that torchrun sets.

    Args:
        function: Runs in each of them; it returns an exit code, or None for 0.
        count: Number of processes.
        fails: Whether one has to fail; the others are then ended.
        environment: Further variables.

    Returns:
        What all of them have printed, in the order of their ranks.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "CUDA_VISIBLE_DEVICES": "",  # not usable after a fork
        **environment,
    }
    processes = [
        Fork(function, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    deadline = time.monotonic() + 300  # a machine busy with other work takes ten times as long
    while None in (codes := [process.poll() for process in processes]):
        if any(codes) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    for process in processes:
        process.end()
    out, err = "".join(p.stdout for p in processes), "".join(p.stderr for p in processes)
    failed = any(process.returncode for process in processes)
    assert failed == fails, out + err
    return subprocess.CompletedProcess([], int(failed), out, err)

"""Processes that start with what this one has imported: a new Python needs seconds for that."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist

_STUCK = 240  # seconds after which a copy prints where its threads are


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
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.pid = os.fork()
        if not self.pid:
            os.environ.update(environment)
            _run_and_leave(function, self._out.fileno(), self._err.fileno())

    def __del__(self) -> None:
        self._out.close()
        self._err.close()

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


def _run_and_leave(function: Callable[[], int | None], out: int, err: int) -> NoReturn:
    """Runs it with fresh streams and ends this process, without what pytest has at its exit."""
    code = 1
    # Garbage of this process stays: a process group, for example, waits for threads when it is
    # freed, and they are not in the copy.
    gc.freeze()
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        faulthandler.dump_traceback_later(_STUCK, file=err)  # where it waits
        torch.set_num_threads(1)  # the threads of OpenMP are not in the copy
        code = function() or 0
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
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


def python(arguments: Sequence[str]) -> int:
    """What ``python ARGUMENTS`` does: a script or ``-m MODULE``, and its arguments."""
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


# Passes its arguments, folder, environment and streams on, and ends with the code that comes back.
_CLIENT = """import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv.pop(1))
message = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [message], [1, 2])
server.shutdown(socket.SHUT_WR)
sys.exit(int(server.recv(10) or 1))
"""


def run_script(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a program whose ``$PYTHON`` is a copy of this process.

    Args:
        command: The program and its arguments.
        environment: All variables; ``PYTHON`` is added.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    running: dict[int, socket.socket] = {}
    # A folder of its own, for the path of a socket has about a hundred characters.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address, client = f"{folder}/socket", Path(folder, "python")
        Path(folder, "client.py").write_text(_CLIENT)
        client.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -SE {folder}/client.py {address} "$@"'
        )
        client.chmod(0o755)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            server.bind(address)
            server.listen()
            server.settimeout(0.01)
            given = {**environment, "PYTHON": str(client)}
            process = subprocess.Popen(command, env=given, stdout=out, stderr=err)
            deadline = time.monotonic() + 280
            while process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    running[_serve(connection)] = connection
                for pid in list(running):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        with running.pop(pid) as connection:
                            connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
            process.kill()
            texts = [os.pread(f.fileno(), 1 << 24, 0).decode() for f in (out, err)]
    return subprocess.CompletedProcess(command, process.wait(), *texts)


def _serve(connection: socket.socket) -> int:
    """Starts what a client asked for; its process."""
    connection.settimeout(60)
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    arguments, folder, environment = json.loads(message)
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.executable = environment["PYTHON"]  # of what it starts itself
        _run_and_leave(lambda: python(arguments), *streams)
    for stream in streams:
        os.close(stream)
    return pid

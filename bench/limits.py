"""Limits processes to a number of processors, as a container does: control groups of Linux."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds


class LimitError(RuntimeError):
    """The system does not let this process make control groups."""


@contextlib.contextmanager
def limited(processes: Iterable[int], cpus: float) -> Iterator[None]:
    """Limits processes, together, to ``cpus`` processors in the block; 0 is no limit.

    It needs the right to make a control group, which root has outside of most containers.

    Args:
        processes: Their ids.
        cpus: For example 1.5: 150 ms of processor time in every 100 ms.

    Raises:
        LimitError: If the system does not allow it, with the reason.
    """
    if not cpus:
        yield
        return
    second = (_ROOT / "cgroup.controllers").exists()  # version 2 of the interface
    parent = _ROOT if second else _ROOT / "cpu"
    group = parent / f"dafast-bench-{os.getpid()}"
    ids = [str(process) for process in processes]
    try:
        group.mkdir()
        try:
            quota = round(cpus * _PERIOD)
            if second:
                (group / "cpu.max").write_text(f"{quota} {_PERIOD}")
            else:
                (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
            for process in ids:
                (group / "cgroup.procs").write_text(process)
        except OSError:
            _remove(group, ids)
            raise
    except OSError as error:
        raise LimitError(
            f"--cpus needs the right to make a control group in {parent}: {error}"
        ) from None
    try:
        yield
    finally:
        _remove(group, ids)


def _remove(group: Path, processes: Iterable[str]) -> None:
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended, or was never in the group
            (group.parent / "cgroup.procs").write_text(process)
    group.rmdir()

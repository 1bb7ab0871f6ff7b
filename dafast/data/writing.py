"""Writing shards: by one process, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def claim(target: Path) -> Iterator[BinaryIO | None]:
    """An empty file that becomes `target` when the block ends well.

    Gives None where `target` is there, or another process has claimed it. The claim is a lock on
    the temporary file, so the system releases it however a process ends.
    """
    import fcntl  # POSIX alone

    temporary = target.with_name(f".{target.name}.part")
    if target.exists():
        yield None
        return
    with open(os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        # Whoever had the lock may have renamed or removed the file since it was opened.
        if not _is_still(file, temporary):
            yield None
            return
        if target.exists():
            temporary.unlink()
            yield None
            return
        try:
            file.truncate(0)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _is_still(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Adds the files of a sample, by suffix. The same ones give the same bytes."""
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size, info.mode = len(content), 0o644
        tar.addfile(info, io.BytesIO(content))


def _failures_path(target: Path) -> Path:
    return target.with_suffix(".failures.jsonl")


def write_failures(target: Path, failures: list[tuple[str, str]]) -> None:
    """Keeps (key, reason) of what a shard lacks in `NAME.failures.jsonl` beside it."""
    path = _failures_path(target)
    if not failures:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in failures]
    path.write_text("".join(lines))


def read_failures(target: Path) -> list[tuple[str, str]]:
    """What `write_failures` kept of a shard."""
    path = _failures_path(target)
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["key"], line["reason"]) for line in lines]

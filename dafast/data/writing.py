"""Writing shards: by one process, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from dafast.data.disk import writing
from dafast.data.remote import exists, is_remote, read_text, remove, upload, write_text


@contextlib.contextmanager
def claim(target: Path) -> Iterator[BinaryIO | None]:
    """An empty file that becomes `target` when the block ends well.

    Gives None where `target` is there, or another process has claimed it. The claim is a lock on
    the temporary file, so the system releases it however a process ends. Behind a URL there are no
    locks: the file is written here and then put there, and of two that write it the later stays.

    Raises:
        RemoteError: If a URL cannot be written; the files that are there stay.
        DiskFullError: If there is no room for the file; those that are there stay.
    """
    if is_remote(target):
        if exists(target):
            yield None
            return
        spooled = f"{target}, which is first written in {tempfile.gettempdir()} (TMPDIR)"
        with tempfile.NamedTemporaryFile(prefix="dafast-") as spool:
            with writing(spooled):
                yield cast(BinaryIO, spool)
                spool.flush()
            upload(Path(spool.name), target)
        return
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
            with writing(target):
                file.truncate(0)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it no other process is at a file that several of them write anew.

    The lock is on a file beside it, which its holder removes. Behind a URL there are no locks.
    """
    if is_remote(path):
        yield
        return
    import fcntl  # POSIX alone

    beside = path.with_name(f".{path.name}.lock")
    while True:
        with open(beside, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(file, beside):  # the holder before has removed it: take the new one
                continue
            try:
                yield
            finally:
                beside.unlink(missing_ok=True)
            return


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
    if failures:
        lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in failures]
        write_text(path, "".join(lines))
    else:
        remove(path)


def read_failures(target: Path) -> list[tuple[str, str]]:
    """What `write_failures` kept of a shard."""
    path = _failures_path(target)
    if not exists(path):
        return []
    lines = [json.loads(line) for line in read_text(path).splitlines()]
    return [(line["key"], line["reason"]) for line in lines]

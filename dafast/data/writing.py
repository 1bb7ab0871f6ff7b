"""Writes shards: each by one process, and whole."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from dafast.data.remote import exists, is_remote, read_text, remove, upload, write_text
from dafast.files import claimed_file, locked_file, writing


@contextlib.contextmanager
def claim(target: Path) -> Iterator[BinaryIO | None]:
    """An empty file that becomes `target` when the block ends without an error.

    Gives None where `target` exists or another process has claimed it (`files.claimed_file`).
    Behind a URL there are no locks: the file is written here and then uploaded, and if two
    processes write it the later one stays.

    Raises:
        RemoteError: If a URL cannot be written; existing files stay.
        DiskFullError: If there is no room for the file; existing files stay.
    """
    if is_remote(target):
        if exists(target):
            yield None
            return
        spooled = f"{target}, which is first written to {tempfile.gettempdir()} (TMPDIR)"
        with tempfile.TemporaryDirectory(prefix="dafast-") as folder:
            spool = Path(folder) / target.name
            with writing(spooled), open(spool, "w+b") as file:
                yield file
            upload(spool, target)
        return
    with claimed_file(target) as file:
        yield file


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes in the same block from a file that several of them rewrite.

    Behind a URL there are no locks.
    """
    if is_remote(path):
        yield
        return
    with locked_file(path):
        yield


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Adds the files of a sample, by suffix. The same files give the same bytes."""
    for suffix, content in members.items():
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size, info.mode = len(content), 0o644
        tar.addfile(info, io.BytesIO(content))


def _failures_path(target: Path) -> Path:
    return target.with_suffix(".failures.jsonl")


def write_failures(target: Path, failures: list[tuple[str, str]]) -> None:
    """Writes (key, reason) of the samples that a shard lacks to `NAME.failures.jsonl` next to
    it.
    """
    path = _failures_path(target)
    if failures:
        lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in failures]
        write_text(path, "".join(lines))
    else:
        remove(path)


def read_failures(target: Path) -> list[tuple[str, str]]:
    """Reads the failures that `write_failures` wrote for a shard."""
    path = _failures_path(target)
    if not exists(path):
        return []
    lines = [json.loads(line) for line in read_text(path).splitlines()]
    return [(line["key"], line["reason"]) for line in lines]

"""Packing a source into shards: in parallel, going on where a run stopped, with a manifest."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from dafast.data.remote import (
    exists,
    is_remote,
    list_folder,
    local_copy,
    read_text,
    write_text,
)
from dafast.data.shards import DECODE_ERRORS
from dafast.data.sources import Item, SourceError
from dafast.data.writing import add_sample, claim, read_failures, write_failures

MANIFEST = "manifest.json"
"""File beside the shards: their samples and checksums, and what they were packed from."""


def pack(
    items: Sequence[Item],
    out: Path,
    description: dict[str, Any],
    *,
    shard_size: int = 1000,
    workers: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[tuple[str, str]]]:
    """Writes items into `shard-000000.tar` and so on, those that are there left alone.

    Args:
        items: The samples; item i gets the key `%08d` of i.
        out: The folder, created if missing; it may be behind a URL.
        description: What the items depend on beside their names; noted in the manifest.
        shard_size: Items in a shard.
        workers: Threads, each with a shard of its own.
        say: Takes a line for each shard.

    Returns:
        Samples in the shards, and (item, reason) of those that could not be read.

    Raises:
        SourceError: If the folder holds shards of other items.
        RemoteError: If it is behind a URL and cannot be read or written. The shards that are there
            stay, and the next run goes on from them.
        DiskFullError: If there is no room for a shard; likewise.
    """
    wanted = {**description, "items": len(items), "names": _names(items), "shard_size": shard_size}
    if not is_remote(out):
        out.mkdir(parents=True, exist_ok=True)
    described = _check(out, wanted)
    known = dict(described)
    starts = range(0, len(items), shard_size)
    targets = [out / f"shard-{number:06d}.tar" for number in range(len(starts))]

    def write(target: Path, first: int) -> None:
        failures: list[tuple[str, str]] = []
        with claim(target) as file:
            if file is None:
                return
            with tarfile.open(fileobj=file, mode="w") as tar:
                for index in range(first, min(first + shard_size, len(items))):
                    item = items[index]
                    try:
                        members = item.load()
                    except (SourceError, *DECODE_ERRORS) as error:
                        failures.append((item.name, f"{type(error).__name__}: {error}"))
                        continue
                    add_sample(tar, f"{index:08d}", members)
            write_failures(target, failures)
        say(f"{target.name}  of {len(targets)}")

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(write, targets, starts):
            pass
    there = [target for target in targets if exists(target)]
    if len(there) < len(targets):  # another process is at it; the one that ends last has them all
        say(f"{len(targets) - len(there)} shards in work elsewhere")
    for target in there:
        if target.name not in described:  # by another process, or one that was killed
            with local_copy(target) as copy, open(copy, "rb") as file:
                described[target.name] = _describe(file)
    shards = {target.name: described[target.name] for target in there}
    if shards != known:
        _write_manifest(out, {**wanted, "shards": shards})
    failures = [failure for target in targets for failure in read_failures(target)]
    return sum(shard["samples"] for shard in shards.values()), failures


def _names(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for number, item in enumerate(items):  # not joined: there may be millions
        digest.update(f"{chr(10) if number else ''}{item.name}{item.described}".encode())
    return digest.hexdigest()


def _check(out: Path, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Holds a folder to what is to be in it; gives what its manifest says of the shards there."""
    path = out / MANIFEST
    if not exists(path):
        if list_folder(out, "shard-*.tar"):
            raise SourceError(f"{out} has shards but no {MANIFEST}: choose another folder")
        _write_manifest(out, {**wanted, "shards": {}})
        return {}
    try:
        found = dict(json.loads(read_text(path)))
        described = dict(found.get("shards", {}))
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path} cannot be read ({error}): remove the folder") from error
    other = [key for key, value in wanted.items() if found.get(key) != value]
    if other:
        raise SourceError(
            f"{path}: the shards there differ in {', '.join(other)}; choose another folder, or "
            "remove it"
        )
    return described


def _describe(file: BinaryIO) -> dict[str, Any]:
    """What the manifest says of a shard, from its file."""
    file.flush()
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        samples = len({name.partition(".")[0] for name in tar.getnames()})
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"samples": samples, "bytes": file.seek(0, 2), "sha256": digest}


def _write_manifest(out: Path, content: dict[str, Any]) -> None:
    write_text(out / MANIFEST, json.dumps(content, indent=2) + "\n")

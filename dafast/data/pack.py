"""Packing a source into shards: in parallel, going on where a run stopped, with a manifest."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
        out: The folder, created if missing.
        description: What the items depend on beside their names; noted in the manifest.
        shard_size: Items in a shard.
        workers: Threads, each with a shard of its own.
        say: Takes a line for each shard.

    Returns:
        Samples in the shards, and (item, reason) of those that could not be read.

    Raises:
        SourceError: If the folder holds shards of other items.
    """
    names = hashlib.sha256("\n".join(item.name for item in items).encode()).hexdigest()
    wanted = {**description, "items": len(items), "names": names, "shard_size": shard_size}
    out.mkdir(parents=True, exist_ok=True)
    _check(out, wanted)
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
    missing = [target.name for target in targets if not target.exists()]
    if missing:  # another process is at it; the one that ends last writes the manifest
        say(f"{len(missing)} shards in work elsewhere")
    shards = {target.name: _describe(target) for target in targets if target.exists()}
    _write_manifest(out, {**wanted, "shards": shards})
    failures = [failure for target in targets for failure in read_failures(target)]
    return sum(shard["samples"] for shard in shards.values()), failures


def _check(out: Path, wanted: dict[str, Any]) -> None:
    path = out / MANIFEST
    if not path.exists():
        if any(out.glob("shard-*.tar")):
            raise SourceError(f"{out} has shards but no {MANIFEST}: choose another folder")
        _write_manifest(out, {**wanted, "shards": {}})
        return
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path} cannot be read ({error}): remove the folder") from error
    other = [key for key, value in wanted.items() if found.get(key) != value]
    if other:
        raise SourceError(
            f"{path}: the shards there differ in {', '.join(other)}; choose another folder, or "
            "remove it"
        )


def _describe(shard: Path) -> dict[str, Any]:
    with tarfile.open(shard) as tar:
        samples = len({name.partition(".")[0] for name in tar.getnames()})
    with open(shard, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"samples": samples, "bytes": shard.stat().st_size, "sha256": digest}


def _write_manifest(out: Path, content: dict[str, Any]) -> None:
    path = out / MANIFEST
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)

"""Packs a source into shards, in parallel, with a manifest; a second run continues the first."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dafast._warnings import DataWarning, warn
from dafast.data.decode import DECODE_ERRORS
from dafast.data.jobs import Outcome, Predict, Progress, Runner, ShardJob, do_shard
from dafast.data.remote import (
    ShardError,
    exists,
    is_remote,
    list_folder,
    local_copy,
    name_of,
    read_text,
    write_text,
)
from dafast.data.sources import Item, SourceError, name_coarse
from dafast.data.writing import add_sample, locked, read_failures
from dafast.files import explain, explain_kind

MANIFEST = "manifest.json"
"""File next to the shards: their samples, checksums and sources."""


def pack(
    items: Sequence[Item],
    out: Path,
    description: dict[str, Any],
    *,
    shard_size: int = 1000,
    workers: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[tuple[str, str]]]:
    """Writes items into `shard-000000.tar` and so on; existing shards are kept.

    Args:
        items: The samples; item i gets the key `%08d` of i.
        out: The folder, created if missing, or a URL.
        description: What the items depend on apart from their names; stored in the manifest.
        shard_size: Items in a shard.
        workers: Threads, each with a shard of its own.
        say: Takes a line for each shard.

    Returns:
        The number of samples in the shards, and (item, reason) of items that could not be read.

    Raises:
        SourceError: If the folder holds shards of other items, or of files that have changed since.
        RemoteError: If a URL cannot be read or written. Existing shards stay, and the next run
            continues from them.
        DiskFullError: If there is no room for a shard; existing ones stay.
    """
    runner = Threads(workers)
    return pack_with(
        runner, items, out, description, shard_size=shard_size, workers=workers, say=say
    )


def pack_with(
    runner: Runner,
    items: Sequence[Item],
    out: Path,
    description: dict[str, Any],
    *,
    shard_size: int = 1000,
    workers: int = 2,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[tuple[str, str]]]:
    """Writes shards with a runner; `workers` threads look at the files, the rest as `pack`.

    Raises:
        ShardError: If shards could not be written, after all others are.
    """
    starts = range(0, len(items), shard_size)
    targets = [out / f"shard-{number:06d}.tar" for number in range(len(starts))]
    wanted = {
        **description,
        "items": len(items),
        "names": _names(items),
        "shard_size": shard_size,
        "sources": dict(
            zip([t.name for t in targets], _sources(items, shard_size, workers), strict=True)
        ),
    }
    if not is_remote(out):
        out.mkdir(parents=True, exist_ok=True)
    _begin(out, wanted)
    written: dict[str, dict[str, Any]] = {}  # their entries in the manifest
    coarse: list[tuple[str, float]] = []
    lost: dict[int, str] = {}
    progress = Progress(len(targets), say)
    parts = _Parts(items, targets, shard_size)
    for number, outcome in runner.run(PackJob(), parts):
        progress.add(outcome)
        if outcome.state == "written":
            written[outcome.name], more = outcome.facts
            coarse += more
        elif outcome.state == "failed":
            lost[number] = outcome.failures[0][1]
    shards = _end(out, wanted, written)
    if lost:
        raise ShardError(
            f"{len(lost)} of {len(targets)} shards could not be written; the same command "
            f"continues. The first: {lost[min(lost)]}"
        )
    if len(shards) < len(targets):  # the process that ends last records them
        say(f"{len(targets) - len(shards)} shards are being written by another process")
    if coarse:
        warn(DataWarning, f"{out}: {name_coarse(coarse)}")
    failures = [failure for target in targets for failure in read_failures(target)]
    return sum(shard["samples"] for shard in shards.values()), failures


class Part(NamedTuple):
    """The items of one shard.

    Attributes:
        target: The shard.
        first: Number of the first item in the whole.
        items: The items.
    """

    target: Path
    first: int
    items: Sequence[Item]


class _Parts(Sequence[Part]):
    """The parts of a data set; their items are taken on access."""

    def __init__(self, items: Sequence[Item], targets: Sequence[Path], shard_size: int) -> None:
        self.items, self.targets, self.shard_size = items, targets, shard_size

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: Any) -> Any:
        first = number * self.shard_size
        last = min(first + self.shard_size, len(self.items))
        chosen = [self.items[index] for index in range(first, last)]
        return Part(self.targets[number], first, chosen)


class PackJob(ShardJob):
    """Makes a shard of each `Part`.

    The facts of an outcome are the manifest's entry and (item, half a step) of coarse labels.
    """

    def name(self, source: Part) -> str:
        """The shard's name."""
        return source.target.name

    def target(self, source: Part) -> Path:
        """The shard."""
        return source.target

    def open(self, source: Part) -> contextlib.AbstractContextManager[Part]:
        """The part itself; its items read their own files."""
        return contextlib.nullcontext(source)

    def write(self, source: Part, file: BinaryIO, predict: Predict, pool: Executor) -> Outcome:
        """Writes one shard."""
        outcome, coarse = Outcome(source.target.name), []
        with tarfile.open(fileobj=file, mode="w") as tar:
            for index, item in enumerate(source.items, source.first):
                try:
                    members = item.load()
                except (SourceError, *DECODE_ERRORS) as error:
                    outcome.failures.append((item.name, explain_kind(error)))
                    continue
                add_sample(tar, f"{index:08d}", members)
                outcome.images += 1
                half_step = json.loads(members.get("json", b"{}")).get("half_step", 0.0)
                if half_step:
                    coarse.append((item.name, half_step))
        outcome.facts = _describe(file), coarse
        return outcome


class Threads:
    """The runner of one process for jobs without a model: a thread for each of several parts.

    Args:
        workers: Number of threads.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, job: PackJob, parts: Sequence[Part]) -> Iterator[tuple[int, Outcome]]:
        """Does all parts, as `Runner.run`.

        Raises:
            ShardError: If a shard cannot be written.
        """

        def do(number: int) -> Outcome:
            part = parts[number]
            return do_shard(job, part, _no_model, pool, job.open(part))

        with ThreadPoolExecutor(self.workers) as pool:
            yield from enumerate(pool.map(do, range(len(parts))))


def _no_model(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    raise TypeError("this job has no model")


def _names(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for number, item in enumerate(items):  # one by one: there may be millions
        digest.update(f"{chr(10) if number else ''}{item.name}{item.described}".encode())
    return digest.hexdigest()


def _sources(items: Sequence[Item], shard_size: int, workers: int) -> list[str]:
    """A digest of the sizes and dates of the files of each shard's items."""

    @functools.lru_cache(maxsize=1024)  # many pictures may be in one archive
    def look(path: Path) -> str:
        try:
            status = path.stat()
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"

    def digest(first: int) -> str:
        found = hashlib.sha256()
        for index in range(first, min(first + shard_size, len(items))):
            found.update(" ".join([*map(look, items[index].files), "\n"]).encode())
        return found.hexdigest()[:16]

    with ThreadPoolExecutor(workers) as pool:  # a network file system is slow
        return list(pool.map(digest, range(0, len(items), shard_size)))


def _begin(out: Path, wanted: dict[str, Any]) -> None:
    """Checks that a folder is for these items, and records them in the manifest."""
    with locked(out / MANIFEST):
        there = _shards(out, wanted)
        found = _read_manifest(out)
        if found is None:
            if list_folder(out, "shard-*.tar"):
                raise SourceError(f"{out} has shards but no {MANIFEST}: choose another folder")
            _write_manifest(out, {**wanted, "shards": {}})
            return
        apart = ("sources", "shards")
        other = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k) and k not in apart]
        if other:
            raise SourceError(
                f"{out / MANIFEST}: the shards there differ in {', '.join(other)}; choose another "
                "folder, or remove it"
            )
        before, now = found.get("sources"), wanted["sources"]
        if before is None and there:
            warn(
                DataWarning,
                f"{out / MANIFEST}, of an earlier version, does not record the files of its "
                "shards: the present files are assumed to be the same",
            )
        stale = [name for name in there if before is not None and before.get(name) != now[name]]
        if stale:
            named = ", ".join(stale[:3]) + (", ..." if len(stale) > 3 else "")
            raise SourceError(
                f"{out}: the files that {len(stale)} of {len(there)} shards were packed from "
                f"({named}) have changed in size or date. For another data set choose another "
                "folder. If files were changed, remove those shards: the same command packs them "
                "again. If files were copied, copy their dates too (cp -a, rsync -a)"
            )
        shards = {name: found["shards"][name] for name in there if name in found["shards"]}
        if {**wanted, "shards": shards} != found:
            _write_manifest(out, {**wanted, "shards": shards})


def _end(
    out: Path, wanted: dict[str, Any], written: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Records all existing shards in the manifest, also those of other processes; returns them."""
    described = dict(written)
    while True:
        with locked(out / MANIFEST):
            found = _read_manifest(out) or {**wanted, "shards": {}}
            known = {**found["shards"], **described}
            there = _shards(out, wanted)
            shards = {name: known[name] for name in there if name in known}
            if len(shards) == len(there):
                if shards != found["shards"]:
                    _write_manifest(out, {**found, "shards": shards})
                return shards
        for name in there:  # by a process that was killed or still runs
            if name not in known:
                with local_copy(out / name) as copy, open(copy, "rb") as file:
                    described[name] = _describe(file)


def _shards(out: Path, wanted: dict[str, Any]) -> list[str]:
    """The names of the existing shards."""
    there = {name_of(path) for path in list_folder(out, "shard-*.tar")}
    return [name for name in wanted["sources"] if name in there]


def _read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest; None if it is missing."""
    path = out / MANIFEST
    if not exists(path):
        return None
    try:
        found = dict(json.loads(read_text(path)))
        for key in ("sources", "shards"):
            if key in found:
                found[key] = dict(found[key])
        return {"shards": {}, **found}
    except (ValueError, TypeError) as error:
        raise SourceError(f"{path} cannot be read ({explain(error)}): remove the folder") from error


def _describe(file: BinaryIO) -> dict[str, Any]:
    """The manifest's entry of a shard, from its file."""
    file.flush()
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        samples = len({name.partition(".")[0] for name in tar.getnames()})
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"samples": samples, "bytes": file.seek(0, 2), "sha256": digest}


def _write_manifest(out: Path, content: dict[str, Any]) -> None:
    write_text(out / MANIFEST, json.dumps(content, indent=2) + "\n")

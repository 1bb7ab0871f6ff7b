"""Files on disks and behind URLs: everything that fsspec opens (http, s3, gs, hf, memory, ...).

A place is a `pathlib.Path`, or for a URL a `UPath` of universal-pathlib, which has the same
methods. Both are annotated as `Path`. Network accesses are retried a few times and then raise
`RemoteError` with the URL: a store that is down is not a damaged sample.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from dafast.files import FULL, explain, explain_kind, write_file, writing
from dafast.optional import MissingPackageError, why_no_module

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the tries of a network access."""

# These would fail again. Some file systems only give an HTTP status.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
_FINAL_STATUS = (400, 401, 403, 404, 410)

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")

T = TypeVar("T")


class ShardError(RuntimeError):
    """The shards as a whole cannot be used; the message names the file and the remedy."""


class RemoteError(ShardError):
    """A URL that cannot be read or written, after a few tries; the message names it."""


class _MissingRemoteError(RemoteError, MissingPackageError):
    """A package for URLs is missing."""


def is_url(text: str) -> bool:
    """Whether a text is a URL, apart from file:// URLs."""
    return re.match(r"(?!file://)[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def place_of(text: str | os.PathLike[str]) -> Path:
    """The place that a path or URL names.

    Raises:
        RemoteError: If no installed package opens URLs of this kind.
    """
    text = str(text)
    if not is_url(text):
        return Path(text.removeprefix("file://"))
    if why := why_no_module("fsspec", "upath"):
        raise _MissingRemoteError(f"{text}: URLs need pip install 'dafast[remote]' ({why})")
    from upath import UPath

    try:
        place = UPath(text)
        _file_system(place)
    except ImportError as error:  # of the package for this protocol, which fsspec names
        hint = "; pip install 'dafast[remote]'" if text.startswith("http") else ""
        raise RemoteError(f"{text} cannot be opened: {explain(error)}{hint}") from error
    except ValueError as error:  # fsspec knows no such protocol
        raise RemoteError(f"{text} cannot be opened: {explain(error)}") from error
    return cast(Path, place)


def _file_system(place: Any) -> Any:
    """fsspec's object for a place; it must not be used after a fork."""
    import fsspec

    return fsspec.filesystem(place.protocol, **place.storage_options)


def _path(place: Any) -> str:
    return place.path


def is_remote(place: Path) -> bool:
    """Whether a place is behind a URL."""
    return not isinstance(place, Path)


def name_of(place: Path) -> str:
    """The file's name, without the query of a URL."""
    return place.name.partition("?")[0] if is_remote(place) else place.name


def is_gzipped(place: Path) -> bool:
    """Whether a shard is compressed as a whole, by its name."""
    return name_of(place).endswith((".gz", ".tgz"))


def plain_name(place: Path) -> str:
    """The name of a shard once it is unpacked: `a.tar` for `a.tar.gz` and `a.tgz`."""
    name = name_of(place)
    return f"{name[:-4]}.tar" if name.endswith(".tgz") else name.removesuffix(".gz")


def same_place(place: Path) -> str:
    """A text that is equal for equal folders, however they are spelled."""
    return str(place).rstrip("/") if is_remote(place) else str(place.resolve())


def expand_braces(text: str) -> list[str]:
    """Expands `a-{00..12}.tar` and `{x,y}.tar` to all names, in order.

    Raises:
        ShardError: If a range is empty.
    """
    found = _BRACES.search(text)
    if found is None:
        return [text]
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
        if not choices:
            raise ShardError(f"{text}: the range from {first} to {last} is empty")
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        return [text]  # a brace that is part of a name
    head, tail = text[: found.start()], text[found.end() :]
    rest = expand_braces(tail)
    names = [f"{head}{choice}{end}" for choice, end in itertools.product(choices, rest)]
    # Braces within braces: the inner ones went first, and left outer ones in each of the names.
    return list(dict.fromkeys(n for name in names for n in expand_braces(name)))


def retried(action: Callable[[], T], what: str) -> T:
    """Calls `action`, and repeats it after failures that may be temporary.

    Raises:
        RemoteError: If it keeps failing; the message begins with `what`.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except ShardError:
            raise
        except Exception as error:  # file systems raise many kinds
            message = f"{what}: {explain_kind(error)}"
            if _is_final(error):
                raise RemoteError(message) from error
            if wait is None:
                raise RemoteError(f"{message} (tried {len(WAITS) + 1} times)") from error
            logger.warning("%s; trying again in %g s", message, wait)
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_final(error: Exception) -> bool:
    """Whether a repetition would fail too."""
    cause = error.__cause__
    if isinstance(cause, Exception):  # fsspec calls a server that does not answer a missing file
        return _is_final(cause)
    if isinstance(error, OSError) and error.errno in FULL:  # of the local copy
        return True
    return isinstance(error, _FINAL) or getattr(error, "status", None) in _FINAL_STATUS


def read_range(place: Path, offset: int, size: int) -> bytes:
    """A part of a remote file.

    Raises:
        RemoteError: If it cannot be read, or the server sends another part.
    """

    def read() -> bytes:
        data = _file_system(place).cat_file(_path(place), start=offset, end=offset + size)
        if len(data) > size:
            raise RemoteError(
                f"{place}: the server does not send parts of a file (byte ranges); copy the shards"
            )
        if len(data) < size:
            raise OSError(f"received {len(data)} bytes of {size}")
        return data

    return retried(read, f"cannot read {place}")


def fingerprint(place: Path) -> str:
    """A text that changes with a file: its size, and date or checksum.

    Raises:
        RemoteError: If it is remote and cannot be examined.
        OSError: If it is local and cannot be examined.
    """
    if not is_remote(place):
        status = place.stat()
        return f"{place.resolve()} {status.st_size} {status.st_mtime_ns}"
    info = retried(lambda: _file_system(place).info(_path(place)), f"cannot read {place}")
    telling = ("etag", "last_modified", "last-modified", "lastmodified", "mtime", "updated",
               "created", "content-md5", "md5hash", "digest")  # fmt: skip
    facts = {k.lower(): str(v) for k, v in info.items() if k.lower() in telling}
    return f"{place} {info.get('size')} {sorted(facts.items())}"


@contextlib.contextmanager
def local_copy(place: Path) -> Iterator[Path]:
    """A temporary local copy of a remote or compressed file; a plain local file itself.

    Raises:
        RemoteError: If it cannot be fetched.
        ShardError: If it cannot be unpacked.
        DiskFullError: If there is no room for the copy.
    """
    if not (is_remote(place) or is_gzipped(place)):
        yield place
        return
    what = f"the copy of {place} in {tempfile.gettempdir()} (TMPDIR)"
    with tempfile.TemporaryDirectory(prefix="dafast-") as folder:
        copy = place
        if is_remote(place):
            copy = Path(folder) / name_of(place)
            fetch = partial(_file_system(place).get_file, _path(place), str(copy))
            with writing(what):
                retried(fetch, f"cannot read {place}")
        if is_gzipped(place):
            with writing(what):
                copy = _unpack(copy, Path(folder) / plain_name(place), place)
        yield copy


def _unpack(source: Path, target: Path, place: Path) -> Path:
    try:
        with gzip.open(source) as packed, open(target, "wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (OSError, EOFError, zlib.error) as error:
        raise ShardError(f"{place} cannot be unpacked: {explain(error)}") from error
    return target


class Fetcher:
    """Local copies of remote files, each fetched while the previous one is in use.

    Args:
        places: The files in order; local ones are used without a copy.
        wanted: Whether a file is worth fetching ahead.
    """

    def __init__(self, places: Sequence[Path], wanted: Callable[[Path], bool]) -> None:
        self.places, self.wanted = places, wanted
        self._pool = ThreadPoolExecutor(1, "fetch")
        self._ahead: dict[int, Future[tuple[contextlib.ExitStack, Path]]] = {}

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._drop(len(self.places))
        self._pool.shutdown()

    @contextlib.contextmanager
    def local(self, number: int) -> Iterator[Path]:
        """The copy of a file; it is removed after the block.

        Raises:
            RemoteError: If it cannot be fetched.
        """
        self._drop(number)
        mine = self._ahead.pop(number, None) or self._pool.submit(self._fetch, number)
        following = number + 1
        if following < len(self.places) and is_remote(self.places[following]):
            self._ahead[following] = self._pool.submit(self._fetch, following, ahead=True)
        stack, copy = mine.result()
        with stack:
            yield copy

    def _fetch(self, number: int, ahead: bool = False) -> tuple[contextlib.ExitStack, Path]:
        stack, place = contextlib.ExitStack(), self.places[number]
        if ahead and not self.wanted(place):
            return stack, place
        return stack, stack.enter_context(local_copy(place))

    def _drop(self, before: int) -> None:
        """Removes copies that were fetched and not used."""
        for number in [n for n in self._ahead if n < before]:
            future = self._ahead.pop(number)
            if not future.cancel() and future.exception() is None:
                future.result()[0].close()


def upload(source: Path, target: Path) -> None:
    """Uploads a local file; stores show it when it is complete.

    Raises:
        RemoteError: If it cannot be written.
    """
    put = partial(_file_system(target).put_file, str(source), _path(target))
    retried(put, f"cannot write {target}")


def write_text(place: Path, text: str) -> None:
    """Writes a small text file whole.

    Raises:
        RemoteError: If it is remote and cannot be written.
        DiskFullError: If it is local and there is no room for it.
        OSError: If it is local and cannot be written.
    """
    if is_remote(place):
        put = partial(_file_system(place).pipe_file, _path(place), text.encode())
        retried(put, f"cannot write {place}")
        return
    write_file(place, text)


def exists(place: Path) -> bool:
    """Whether a file exists.

    Raises:
        RemoteError: If a store does not answer.
    """
    if not is_remote(place):
        return place.exists()
    # `fs.exists` treats an unreachable store as a missing file: a run would start again.
    system = _file_system(place)
    system.invalidate_cache()

    def look() -> bool:
        try:
            system.info(_path(place))
        except FileNotFoundError as error:
            if _is_final(error):
                return False
            raise
        return True

    return retried(look, f"cannot look for {place}")


def read_text(place: Path) -> str:
    """Reads a small text file.

    Raises:
        RemoteError: If it is remote and cannot be read.
        OSError: If it is local and cannot be read.
    """
    if not is_remote(place):
        return place.read_text(encoding="utf-8")
    get = partial(_file_system(place).cat_file, _path(place))
    return retried(get, f"cannot read {place}").decode()


def remove(place: Path) -> None:
    """Removes a file if it exists.

    Raises:
        RemoteError: If it is remote and cannot be removed.
    """
    if not is_remote(place):
        place.unlink(missing_ok=True)
    elif exists(place):
        retried(partial(_file_system(place).rm_file, _path(place)), f"cannot remove {place}")


def list_folder(folder: Path, pattern: str = "*") -> list[Path]:
    """The files of a folder that match a pattern, sorted; none if there is no folder.

    Raises:
        RemoteError: If it is remote and cannot be listed.
    """
    if not is_remote(folder):
        return sorted(folder.glob(pattern))
    system = _file_system(folder)
    system.invalidate_cache()

    def look() -> list[Path]:
        try:
            names = system.glob(f"{_path(folder).rstrip('/')}/{pattern}")
        except FileNotFoundError as error:
            if _is_final(error):
                return []
            raise
        return [place_of(system.unstrip_protocol(name)) for name in sorted(names)]

    return retried(look, f"cannot list {folder}")


def cache_folder() -> Path:
    """Folder for what is known about remote files: `DAFAST_CACHE`, or the user's cache."""
    if named := os.environ.get("DAFAST_CACHE"):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("dafast", appauthor=False)

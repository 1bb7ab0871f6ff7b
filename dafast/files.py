"""Writes files whole, locks them, recognises their kind, and explains errors in one line.

A file gets its name only when it is complete: an interrupted run never leaves a partial file.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import io
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

WINDOWS = os.name == "nt"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for lack of room: on the disk, in a quota, under a limit."""

# How libraries report a full disk without an error number: numpy's `tofile`, then safetensors.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_RUST_ERROR = re.compile(r"\b(?:code:|os error) (\d+)\b")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.part")
_SEEKING = threading.Lock()


_MAGIC = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (WebP image, audio or video)"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"%PDF", "a PDF document"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\x80", "a pickle"),
)


class DiskFullError(OSError):
    """There is no room for a file; the message names the file and the remedy."""


def one_line(text: str) -> str:
    """A text with its lines joined by spaces."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def explain(error: BaseException) -> str:
    """The text of an exception, in one line and never empty."""
    text = one_line(str(error))
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"out of memory ({text})" if text else "out of memory"
    if not text and error.__cause__ is not None:
        return explain(error.__cause__)
    return text or type(error).__name__


def explain_kind(error: BaseException) -> str:
    """As `explain`, after the name of the error's type: "OSError: ..."."""
    return f"{type(error).__name__}: {explain(error)}"


def file_kind(head: bytes) -> str:
    """The kind of a file by its first bytes, 512 or more; "" if it is unknown."""
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, as a failed download leaves it"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; `git lfs pull` fetches the file itself"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "an MP4 or QuickTime video, or a HEIF or AVIF image"
    if head[257:262] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "zeros"
    if text.startswith((b"{", b"[")):
        return "a JSON file"
    try:
        # The last character may be cut.
        readable = head.decode("utf-8", "strict" if len(head) < 512 else "ignore")
    except UnicodeDecodeError:
        return ""
    lost = len(head) - len(readable.encode())
    printable = all(c.isprintable() or c.isspace() for c in readable.removeprefix("\ufeff"))
    return "a text file" if printable and lost < 4 else ""


def _full_reason(error: BaseException | None) -> str:
    """The system's text if an error comes from a full disk, else ""."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return os.strerror(error.errno) if error.errno in FULL else ""
        if isinstance(error, OSError) and _SHORT_WRITE.search(str(error)):
            return os.strerror(errno.ENOSPC)
        found = _RUST_ERROR.search(str(error))
        if found and int(found[1]) in FULL:
            return os.strerror(int(found[1]))
        error = error.__cause__ or error.__context__
    return ""


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns the error of a full disk into a `DiskFullError` that names `what` was written.

    The system's own error has no file name when a write fails, and some libraries raise other
    errors.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        reason = _full_reason(error)
        if not reason:
            raise
        raise DiskFullError(
            f"cannot write {what}: {reason}. Free some space, or choose another disk, and run the "
            "same command again; finished files stay"
        ) from error


_in_memory: contextvars.ContextVar[dict[Path, bytes] | None] = contextvars.ContextVar(
    "in_memory", default=None
)


@contextlib.contextmanager
def files_in_memory() -> Iterator[dict[Path, bytes]]:
    """Files that `whole_file` writes in the block: their contents by path, not on the disk.

    It holds for this thread.
    """
    files: dict[Path, bytes] = {}
    token = _in_memory.set(files)
    try:
        yield files
    finally:
        _in_memory.reset(token)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """An open file that appears as `path` when the block ends without an error.

    It is written under a temporary name in the same folder, which no other process, host or
    container uses. If the block fails or is interrupted, an earlier file stays.

    Raises:
        DiskFullError: If there is no room for it.
        OSError: If it cannot be written; the error names `path`.
    """
    path = Path(path)
    files = _in_memory.get()
    if files is not None:
        buffer = io.BytesIO()
        yield buffer
        files[path] = buffer.getvalue()
        return
    with _named(path), writing(path):
        temporary, file = _create(path.parent)
        try:
            with file:
                yield file
                file.flush()
                _sync(file.fileno())
                if WINDOWS:
                    file.close()  # Windows cannot rename an open file
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files move to `folder` when the block ends without an error.

    For files that belong together, and for libraries that open a file by its name. The files get
    the permissions that new files have here. Other files in `folder` stay. Unfinished
    files of killed processes are removed.

    Args:
        folder: Created if missing.

    Raises:
        DiskFullError: If there is no room for them.
        OSError: If they cannot be written.
    """
    folder = Path(folder)
    with _named(folder), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        temporary = folder / f".{uuid.uuid4().hex}.part"
        temporary.mkdir()
        lock = _lock(temporary)
        try:
            yield temporary
            mode = temporary.stat().st_mode & 0o666
            files = sorted(temporary.iterdir())
            for file in files:
                # safetensors lets only the owner read. CIFS and FUSE may refuse any change.
                with contextlib.suppress(OSError):
                    file.chmod(mode)
                with open(file, "r+b") as opened:  # Windows syncs only files open for writing
                    _sync(opened.fileno())
            for file in files:
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a file whole; a text as UTF-8. Raises what `whole_file` raises."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_leftovers(folder: Path) -> None:
    """Removes unfinished files of killed processes from a folder.

    The writer of a temporary file holds a lock on it until it ends, so a file without a lock has
    no writer. On Windows, and where locks are not supported, leftovers stay.
    """
    if WINDOWS:
        return
    for path in folder.glob(".*.part"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        descriptor = _lock(path)
        if descriptor is not None:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            os.close(descriptor)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Reads a part of an open file; threads may share the descriptor.

    Without `os.pread` (Windows) forked processes must not share it.

    Args:
        descriptor: Of a file that is open for reading, in binary mode.
        size: How many bytes; the result is shorter where the file ends before.
        offset: Position of the first byte.
    """
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _SEEKING:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


@contextlib.contextmanager
def claimed_file(target: Path) -> Iterator[BinaryIO | None]:
    """Like `whole_file`, for one process of several; None where `target` exists or is claimed.

    The temporary file is `.NAME.part`. The claim is a lock on `.NAME.lock`: the system releases it
    however the process ends, and the next claim replaces the temporary file.

    Raises:
        DiskFullError: If there is no room for the file.
    """
    if target.exists():
        yield None
        return
    temporary = target.with_name(f".{target.name}.part")
    with _lock_next_to(target, wait=False) as claimed:
        if not claimed or target.exists():  # finished by another process in the meantime
            yield None
            return
        try:
            with writing(target):
                with open(temporary, "w+b") as file:
                    yield file
                    file.flush()
                    _sync(file.fileno())
                os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Keeps other processes in the same block from a file that several of them rewrite.

    The lock is on `.NAME.lock` next to it, which its holder removes.
    """
    with _lock_next_to(path, wait=True):
        yield


@contextlib.contextmanager
def _lock_next_to(path: Path, wait: bool) -> Iterator[bool]:
    """Holds the lock `.NAME.lock` of a file; gives False where another holds it."""
    import filelock

    name = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(name, poll_interval=0.01)
    try:
        lock.acquire(blocking=wait)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # A native lock's file stays unless its holder removes it: waiting processes notice that.
        # Other locks remove their file at the release.
        if isinstance(lock, filelock.UnixFileLock):
            name.unlink(missing_ok=True)
        lock.release()


def _create(folder: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file, locked where that is supported, with the usual permissions."""
    while True:
        path = folder / f".{uuid.uuid4().hex}.part"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = open(os.open(path, flags, 0o666), "w+b")  # noqa: SIM115 (the caller closes it)
        with contextlib.suppress(OSError):
            _try_lock(file.fileno())
        if _is_still(file.fileno(), path):
            return path, cast(BinaryIO, file)
        file.close()  # another process took it for a leftover before it was locked


def _try_lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; False where another holds the lock.

    Raises:
        OSError: If locks are not supported.
    """
    from filelock import lock_descriptor

    return lock_descriptor(descriptor, blocking=False)


def _lock(path: Path) -> int | None:
    """An open descriptor with a lock; None where another holds it or there are no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        if _try_lock(descriptor):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(descriptor: int) -> None:
    """Waits until a file is on disk, so that the rename never comes before its contents."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by this file system
            raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Makes errors about a temporary file name its final file."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        parts = Path(str(error.filename or "")).parts
        if error.errno is None or not any(map(_TEMPORARY.fullmatch, parts)):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error

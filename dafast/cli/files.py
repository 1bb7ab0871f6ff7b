"""Which photos a command line means, what their results are called, and how files are written."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..data.remote import exists, read_text, write_text
from ._common import CommandError

PHOTO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm"),
        *("png", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
RESULT_SUFFIXES = ("_depth.png", "_color.png", "_side.png")


def find_photos(
    inputs: Sequence[str], out: Path, recursive: bool = False
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Expands files, folders and patterns.

    A folder gives the pictures in it in order of name, hidden ones left out. Pictures in ``out``
    that are called like results are left out of folders and patterns, so that results can be
    written beside the photos and the command repeated.

    Args:
        inputs: Names of files and folders, and patterns as `glob` takes them (``**`` too).
        out: Folder of the results.
        recursive: Whether to look into subfolders.

    Returns:
        The photos, each once; and the inputs that gave none, with the reason.
    """
    photos: dict[Path, Path] = {}
    problems = []
    out = out.resolve()
    for name in inputs:
        try:
            found, missing = _expand(name, out, recursive)
        except OSError as error:  # a folder that may not be read, a name that is too long
            problems.append((name, error.strerror or str(error)))
            continue
        if not found:
            problems.append((name, missing))
        for p in found:
            photos.setdefault(p.resolve(), p)
    return list(photos.values()), problems


def _expand(name: str, out: Path, recursive: bool) -> tuple[list[Path], str]:
    """The photos that one input means, and what to say if there are none."""
    path = Path(name)
    if path.is_dir():
        entries = path.rglob("*") if recursive else path.iterdir()
        found = sorted(p for p in entries if _is_photo(p.relative_to(path)) and p.is_file())
        missing = "no pictures in this folder"
        if not recursive:
            missing += " (--recursive looks into subfolders)"
    elif path.exists() or not glob.has_magic(name):
        return [path], ""  # one that is missing is reported on reading
    else:
        matches = map(Path, glob.glob(name, recursive=True))
        found = sorted(p for p in matches if _is_photo(Path(p.name)) and p.is_file())
        missing = "no picture matches this pattern"
    found = [
        p for p in found if not (p.name.endswith(RESULT_SUFFIXES) and p.resolve().parent == out)
    ]
    return found, missing


def _is_photo(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in PHOTO_SUFFIXES


def _key(name: str) -> str:
    """What a file system may take for the same name: letter case and Unicode form aside."""
    return unicodedata.normalize("NFC", name).casefold()


def result_names(photos: Sequence[Path]) -> list[str]:
    """Gives every photo a name of its own for its results, whatever their order.

    It is the photo's name without suffix. Photos that share one are told apart by their suffix
    (``a_jpg``, ``a_png``), else by their folders (``july_a``, ``june_a``), else by a hash of
    their path.
    """
    paths = [p.resolve() for p in photos]
    names = [p.stem for p in paths]
    for level in range(1, 5):
        for group in _collisions(names):
            candidates = [_qualified(paths[i], level) for i in group]
            if len({_key(c) for c in candidates}) == len(group):
                for i, candidate in zip(group, candidates, strict=True):
                    names[i] = candidate
    # Renamed photos can now be called as others already are ("a_jpg" beside "a_jpg.png").
    taken = {i for group in _collisions(names) for i in group}
    for i in taken:
        digest = hashlib.sha256(os.fsencode(paths[i])).hexdigest()[:8]
        names[i] = f"{paths[i].stem}_{digest}"
    return names


def _qualified(path: Path, level: int) -> str:
    suffix = path.suffix[1:].lower()
    parent = path.parent.name
    return {
        1: f"{path.stem}_{suffix}",
        2: f"{parent}_{path.stem}",
        3: f"{parent}_{path.stem}_{suffix}",
        4: f"{path.parent.parent.name}_{parent}_{path.stem}_{suffix}",
    }[level]


def _collisions(names: Iterable[str]) -> list[list[int]]:
    groups = defaultdict(list)
    for i, name in enumerate(names):
        groups[_key(name)].append(i)
    return [group for group in groups.values() if len(group) > 1]


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file under a temporary name and renames it when it is whole.

    Whatever happens in between, also Ctrl-C, leaves the file as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets only the owner read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def note_or_match(path: Path, what: str, wanted: dict[str, Any]) -> None:
    """Notes what the results in a folder depend on, or checks that it is what it was.

    Args:
        path: Where it is noted: JSON, beside the results.
        what: The results, for messages.
        wanted: What they depend on.

    Raises:
        CommandError: If the results there depend on something else.
    """
    if not exists(path):
        # Processes that start together write the same.
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = dict(json.loads(read_text(path)))
    except (ValueError, TypeError) as error:
        raise CommandError(f"{path} cannot be read ({error}): remove it") from error
    other = [f"{k} {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise CommandError(
            f"{path}: the {what} there were made with {'; '.join(other)}. Choose another folder, "
            "or remove that one"
        )


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return mask

"""Finds the photos that a command line names, and names their results."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import itertools
import os
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..files import explain
from ..images import PHOTO_SUFFIXES, find_pictures, why_no_file
from ..picture_sources import is_pipe, is_web_url
from ._common import CommandError
from .outputs import is_result

_LONGEST = 200
"""Bytes in the name of a result: file systems take 255, and `_depth.png` is added."""


@dataclass(frozen=True)
class Photo:
    """A photo of the command line.

    Attributes:
        path: The file, under the name that was given: a link keeps its own.
        name: The path relative to the inputs' common folder, with slashes.
        result: Name of its results, without ``_depth.png``.
    """

    path: Path
    name: str
    result: str


@dataclass
class Found:
    """The photos that the inputs of a command line name.

    Attributes:
        photos: The photos, each once.
        results: Number of results of earlier runs, which are left out.
        problems: Inputs, files and folders that gave no photo, with the reason.
    """

    photos: list[Photo] = field(default_factory=list)
    results: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


def find_photos(inputs: Sequence[str], recursive: bool = False) -> Found:
    """Expands files, folders and patterns.

    A folder gives the pictures in it in order of name, without hidden ones. A picture that carries
    the mark of `dafast run` or `dafast stereo` is a result and not a photo.

    Args:
        inputs: Names of files and folders, and patterns as `glob` takes them (``**`` too, which
            follows links). A part of a pattern that exists under its literal name is that name.
            ``@FILE`` stands for the lines of a file, ``-`` for those of the standard input.
        recursive: Whether to look into subfolders.
    """
    found = Found()
    inputs = [name for given in inputs for name in _listed(given)]
    photos: dict[str, tuple[Path, Path]] = {}  # by absolute path: as given, folder of the input
    results: dict[str, str] = {}
    for name in inputs:
        if not name:
            found.problems.append(("''", "an empty name, as of an unset variable"))
            continue
        if is_web_url(name):
            found.problems.append((name, "a URL; download it, or pass it to predict in Python"))
            continue
        try:
            root, paths, problems = _expand(name, recursive)
        except OSError as error:  # for example a name that is too long
            found.problems.append((name, error.strerror or str(error)))
            continue
        found.problems += problems
        for path in paths:
            absolute = os.path.abspath(path)
            if is_result(path):
                results[absolute] = name
            else:
                photos.setdefault(absolute, (path, root))
    found.results = len(results)
    if results and not photos:
        for name in dict.fromkeys(results.values()):
            found.problems.append((name, "only results of dafast, no photos"))
    found.problems = list(dict.fromkeys(found.problems))
    names = _relative_names({path: root for path, (_, root) in photos.items()})
    found.photos = [
        Photo(path, name, result)
        for (path, _), name, result in zip(photos.values(), names, result_names(names), strict=True)
    ]
    return found


def _listed(name: str) -> list[str]:
    """The names in a list, or the name itself if it is not that of a list.

    Raises:
        CommandError: If the list cannot be read, or is empty.
    """
    if name == "-":
        data, what = sys.stdin.buffer.read(), "standard input"
    elif name.startswith("@") and not os.path.lexists(name):
        what = name[1:]
        try:
            data = Path(what).read_bytes()
        except (OSError, ValueError) as error:
            raise CommandError(f"{name}: the list cannot be read ({explain(error)})") from None
    else:
        return [name]
    # `find -print0` ends names with a null character, which no name holds.
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    names = [os.fsdecode(line.removeprefix(b"\xef\xbb\xbf")) for line in lines if line.strip()]
    if not names:
        raise CommandError(f"{what}: the list has no names")
    return names


def _expand(name: str, recursive: bool) -> tuple[Path, list[Path], list[tuple[str, str]]]:
    """Returns the folder of one input, its pictures, and the paths that cannot be read."""
    path = Path(name)
    if path.is_dir():
        found, unread = find_pictures(path, recursive)
        problems = [(str(p), reason) for p, reason in unread]
        missing = "no pictures in this folder"
        if not recursive:
            missing += " (--recursive looks into subfolders)"
        root = path
    elif os.path.lexists(path) or not glob.has_magic(name):
        return path.parent, [path], []  # a missing file is reported on reading
    else:
        root, found, problems = _match(name)
        missing = "no picture matches this pattern"
        if "[" in name:
            missing += " ([...] stands for one of the characters in it; [[] for a bracket)"
    if not found and not problems:
        problems = [(name, missing)]
    return root, found, problems


def _match(pattern: str) -> tuple[Path, list[Path], list[tuple[str, str]]]:
    """As `_expand`, of a pattern. Unlike `glob`, it reports folders that cannot be read."""
    problems: list[tuple[str, str]] = []
    parts = Path(pattern).parts
    root, matches = Path(), [Path()]
    for i, part in enumerate(parts):
        step: list[Path] = []
        for folder in matches:
            if os.path.lexists(folder / part):
                step.append(folder / part)
            elif part == "**":
                step += [*_walk(folder, problems)]
            elif glob.has_magic(part) and _is_folder(folder, problems):
                entries = _entries(folder, problems, hidden=part.startswith("."))
                step += [p for p in entries if fnmatch.fnmatch(p.name, part)]
        if step == [root / part] and i < len(parts) - 1:
            root /= part
        matches = step
    if parts[-1] == "**":
        matches = [p for folder in matches for p in _entries(folder, problems)]
    suffix = Path(parts[-1]).suffix
    named = suffix and not glob.has_magic(suffix)  # of a pattern like *.pcx all files count
    found = []
    for path in sorted(set(matches)):
        if not named and path.suffix.lower() not in PHOTO_SUFFIXES:
            continue
        try:
            if path.is_file():
                found.append(path)
            elif not path.is_dir():
                problems.append((str(path), why_no_file(path)))
        except OSError as error:
            problems.append((str(path), error.strerror or str(error)))
    return root, found, problems


def _entries(folder: Path, problems: list[tuple[str, str]], hidden: bool = False) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if hidden or not p.name.startswith("."))
    except OSError as error:
        problems.append((str(folder), error.strerror or str(error)))
        return []


def _is_folder(path: Path, problems: list[tuple[str, str]]) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # its own folder can be listed, and no more
        problems.append((str(path), error.strerror or str(error)))
        return False


def _walk(
    folder: Path, problems: list[tuple[str, str]], above: tuple[str, ...] = ()
) -> Iterator[Path]:
    """A folder and all below it, through links too, except one that leads back to a parent."""
    real = os.path.realpath(folder)
    if real in above or not _is_folder(folder, problems):
        return
    yield folder
    for entry in _entries(folder, problems):
        if _is_folder(entry, problems):
            yield from _walk(entry, problems, (*above, real))


def _relative_names(roots: dict[str, Path]) -> list[str]:
    """Names of photos relative to the common folder of the inputs, so that moving it changes none.

    Args:
        roots: For the absolute path of each photo the folder that its input started from.
    """
    folders = {p: os.path.abspath(root) for p, root in roots.items() if not is_pipe(Path(p))}
    try:
        common = os.path.commonpath(folders.values()) if folders else ""
    except ValueError:  # several drives of Windows
        common = ""
    names = []
    for path in roots:
        base = (common or folders[path]) if path in folders else os.path.dirname(path)
        names.append(Path(os.path.relpath(path, base)).as_posix())
    return names


def result_names(names: Sequence[str]) -> list[str]:
    """Gives every photo its own name for its results, in any order of the photos.

    It is the photo's name without suffix. Photos that share one are distinguished by their suffix
    (``a_jpg``, ``a_png``), by their folders (``july_a``, ``02_data_0001``), by both, or else by a
    number in order of name.

    Args:
        names: Relative paths of the photos with slashes, all different.
    """
    paths = [PurePosixPath(name) for name in names]
    results = [path.stem for path in paths]
    depth = max((len(path.parts) for path in paths), default=0)
    for folders, suffix in itertools.product(range(depth), (False, True)):
        groups = _collisions(results)
        if not groups:
            break
        for group in groups:
            longer = [_longer_name(paths[i], folders, suffix) for i in group]
            if len({_key(name) for name in longer}) == len(group):
                for i, name in zip(group, longer, strict=True):
                    results[i] = name
    results = [_shorten(name) for name in results]
    taken = {_key(name) for name in results}
    for group in _collisions(results):
        for i in sorted(group, key=lambda i: names[i])[1:]:
            numbered = (f"{results[i]}_{n}" for n in itertools.count(2))
            results[i] = next(name for name in numbered if _key(name) not in taken)
            taken.add(_key(results[i]))
    return results


def _longer_name(path: PurePosixPath, folders: int, suffix: bool) -> str:
    parts = [*path.parent.parts[max(0, len(path.parent.parts) - folders) :], path.stem]
    if suffix:
        parts.append(path.suffix[1:].lower())
    return "_".join(part for part in parts if part not in ("..", ""))


def _shorten(name: str) -> str:
    """A name that file systems take, and different for different long names."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST:
        return name
    end = encoded[-(_LONGEST - 9) :].decode(errors="ignore")
    return f"{hashlib.sha256(encoded).hexdigest()[:8]}_{end}"


def _key(name: str) -> str:
    """What a file system may take for the same name: letter case and Unicode form do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def _collisions(names: Iterable[str]) -> list[list[int]]:
    groups = defaultdict(list)
    for i, name in enumerate(names):
        groups[_key(name)].append(i)
    return [group for group in groups.values() if len(group) > 1]

"""A set of unlabeled pictures: facts about it, and how to find and read its files.

Pictures are read in their published form: files in folders, and members of tar archives without
unpacking. A picture in a tar is named `ARCHIVE.tar/MEMBER`. Only the names are kept in memory,
about 100 bytes each.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dafast._warnings import DataWarning, warn
from dafast.data.sources import Pictures, SourceError
from dafast.optional import why_no_module


def picture_file(root: Path, name: str) -> Path:
    """The file of a picture that `find_names` found: its own, or the archive."""
    archive, tar, _ = name.partition(".tar/")
    return root / (f"{archive}.tar" if tar else name)


def read_picture(root: Path, name: str) -> bytes:
    """The content of a picture that `find_names` found."""
    path, (_, tar, member) = picture_file(root, name), name.partition(".tar/")
    if not tar:
        return path.read_bytes()
    offset, size = _members(path)[member]
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise SourceError(f"{path.name} ends inside {member}")
    return data


def find_names(root: Path, pattern: re.Pattern[str]) -> Iterator[str]:
    """Names of files and of members of tar archives, relative to `root`, that match a pattern.

    A warning names an archive that cannot be read to its end; the members before that count.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        above = Path(folder).relative_to(root).as_posix()
        above = "" if above == "." else f"{above}/"
        for name in files:
            if name.endswith(".tar"):
                members = _members(Path(folder) / name)
                yield from (f"{above}{name}/{m}" for m in members if pattern.search(m))
            elif pattern.search(above + name):
                yield above + name


@functools.lru_cache(maxsize=16)
def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of the complete files in a tar."""
    members: dict[str, tuple[int, int]] = {}
    length, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                if member.isfile() and end <= length:
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
        if length < end + 512:  # tarfile does not notice a cut between members
            raise EOFError("it is truncated: it has no end-of-archive block")
    except (tarfile.TarError, OSError, EOFError) as error:
        warn(DataWarning, f"{path} cannot be read after {len(members)} files: {error}")
    return members


@dataclass(frozen=True)
class PictureReader:
    """A set of unlabeled pictures on disk.

    Attributes:
        name: As on the command line.
        license: Of the pictures.
        published: The number of pictures, with its source.
        counts: The same as ranges (least, most), one for each form of the set.
        layout: The folders and files, for messages.
        find: Lists the names of a folder's pictures, in any order.
        read: A picture's content, by folder and name; raises `SourceError` or `OSError`.
        file: The file that it is in, by folder and name.
        requires: A module that reading needs and that is not a dependency of the package.
    """

    name: str
    license: str
    published: str
    counts: tuple[tuple[int, int], ...]
    layout: str
    find: Callable[[Path], Iterable[str]]
    read: Callable[[Path, str], bytes] = read_picture
    file: Callable[[Path, str], Path] = picture_file
    requires: str = ""

    def items(self, root: Path, size: int = 0) -> Pictures:
        """The set's pictures in order of name; warns if their number is not the published one.

        Args:
            root: The set's folder, or one within it for a part of the set.
            size: Pictures whose shorter side is longer are scaled down to it; 0 keeps them.

        Raises:
            SourceError: If the folder or a required module is missing, or the folder has another
                layout.
        """
        if not root.is_dir():
            raise SourceError(f"{root}: no such folder")
        if self.requires and (why := why_no_module(self.requires)):
            raise SourceError(
                f"{self.name} needs {self.requires}: pip install 'dafast[datasets]' ({why})"
            )
        names = sorted(self.find(root))
        if not names:
            raise SourceError(
                f"{root}: no pictures of {self.name} found; expected\n{self.layout.strip()}"
            )
        if not any(least <= len(names) <= most for least, most in self.counts):
            text = f"{self.name}: {len(names)} pictures in {root}; published: {self.published}"
            warn(DataWarning, text)
        read, file = functools.partial(self.read, root), functools.partial(self.file, root)
        return Pictures(names, read, file, size)


def by_name(pattern: str) -> Callable[[Path], Iterable[str]]:
    """Finds pictures whose path ends as `pattern`, a regular expression, says."""
    return functools.partial(find_names, pattern=re.compile(rf"(?:^|/){pattern}$"))

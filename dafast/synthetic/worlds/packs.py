"""Files of games: pk3 archives, which are zip files, in folders."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from dafast.files import explain

#: Coordinates beyond it, in metres or textures, are damage.
LARGEST = 1e6


class DamagedFileError(ValueError):
    """A file of a game is not what its format says."""


class Pack:
    """The files of one game, by name without regard to case.

    Attributes:
        name: the game's name.
    """

    def __init__(self, name: str, archives: list[Path]) -> None:
        """Reads the lists of files.

        Args:
            name: the game's name.
            archives: pk3 files; a file in a later one replaces that of an earlier one.

        Raises:
            ValueError: a file is not a zip archive.
        """
        self.name = name
        self._files: dict[str, tuple[zipfile.ZipFile, str]] = {}
        for path in archives:
            try:
                archive = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise ValueError(f"{path} is not a pk3 archive ({explain(error)})") from error
            for file in archive.namelist():
                self._files[file.lower().replace("\\", "/")] = archive, file

    @cached_property
    def surfaces(self) -> list[str]:
        """Pictures of walls and floors."""
        kinds = ("wall", "floor", "brick", "rock", "concrete", "grass", "wood", "metal")
        return [
            name for name in sorted(self._files)
            if name.startswith("textures/") and name.endswith((".tga", ".jpg"))
            and any(kind in name for kind in kinds)
            and not name[:-4].endswith(("_norm", "_gloss", "_glow", "_bump"))
        ]  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._files

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            KeyError: it is missing.
            DamagedFileError: the archive is damaged there, or encrypted.
        """
        archive, file = self._files[name.lower()]
        try:
            return archive.read(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
            raise DamagedFileError(f"{name} in {self.name} is damaged") from error

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        archive, file = self._files[name.lower()]
        return archive.getinfo(file).file_size

    def all_names(self, folder: str, suffix: str) -> Iterator[str]:
        """The files in a folder and its sub-folders that end with a suffix, lower case, sorted."""
        for name in sorted(self._files):
            if name.startswith(folder) and name.endswith(suffix):
                yield name

    def names(self, folder: str, suffix: str) -> Iterator[str]:
        """The files directly in a folder that end with a suffix, lower case, sorted."""
        for name in sorted(self._files):
            inside = name.startswith(folder) and "/" not in name[len(folder) :]
            if inside and name.endswith(suffix):
                yield name


def find_packs(folder: Path) -> list[Pack]:
    """One pack for each folder below ``folder`` with pk3 archives, sorted by name."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*.pk3")):
        folders.setdefault(path.parent, []).append(path)
    packs = []
    for parent, archives in sorted(folders.items()):
        # Games keep the archives in a folder of their own: openarena/baseoa, nexuiz/data.
        inner = parent != folder and parent.parent != folder
        packs.append(Pack(parent.parent.name if inner else parent.name, archives))
    return packs

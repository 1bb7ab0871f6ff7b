"""Shards of synthetic scenes, with the class maps that `dafast synth` writes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np

from dafast.data.decode import decode_image
from dafast.data.segmentation._dataset import SegmentationDataset, read_indices
from dafast.data.shards import ShardError, expand_shards, read_again
from dafast.data.sources import SourceError
from dafast.files import explain
from dafast.synthetic.scene import CLASSES

_IMAGE, _CLASSES = "jpg", "classes.png"


class _Members:
    """Reads samples at known places of local tar files.

    Args:
        places: For each the shard, and offset and size of photo and class map.
    """

    def __init__(self, places: list[tuple[Path, tuple[int, int], tuple[int, int]]]) -> None:
        self.places = places

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        shard, photo, label = self.places[index]

        def part(offset: int, size: int) -> bytes:
            def read() -> bytes:
                with open(shard, "rb") as file:
                    file.seek(offset)
                    return file.read(size)

            return read_again(shard, read, size)

        return decode_image(part(*photo)), read_indices(part(*label))


def synthetic(path: Path, training: bool = True) -> SegmentationDataset:
    """The scenes of a folder of shards, or of what else `dafast.data.shards` takes.

    Args:
        path: Folder, file or glob pattern.
        training: Has no effect: held-out scenes are in another folder.

    Raises:
        SourceError: If there are no shards, or no class maps in them.
    """
    try:
        shards = expand_shards(path)
    except ShardError as error:
        raise SourceError(str(error)) from error
    keys, places = [], []
    for shard in map(Path, shards):
        members: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    key, _, suffix = member.name.partition(".")
                    members.setdefault(key, {})[suffix] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            raise SourceError(
                f"{shard}: cannot be read as a tar file ({explain(error)})"
            ) from error
        for key, files in members.items():
            if _IMAGE not in files or _CLASSES not in files:
                raise SourceError(
                    f"{shard}: {key} has no {_IMAGE if _IMAGE not in files else _CLASSES}; "
                    "`dafast synth` of this version writes it: render the scenes into a new folder"
                )
            keys.append(f"{shard.name}/{key}")
            places.append((shard, files[_IMAGE], files[_CLASSES]))
    if not keys:
        raise SourceError(f"{path}: the shards are empty")
    return SegmentationDataset(CLASSES, keys, _Members(places))

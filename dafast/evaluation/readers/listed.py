"""Any data with depth or disparity, named file by file in a list; `dafast.data.lists` reads it."""

from __future__ import annotations

from pathlib import Path

from dafast.data.lists import LAYOUT, ListedPicture, read_list

from ..samples import EvaluationSample, Samples
from ._files import missing, read_stored_image


def listed(path: Path) -> Samples:
    """The photos of a list.

    Args:
        path: The list, as `dafast.data.lists.LAYOUT` says.

    Raises:
        DataMissingError: If the file is missing.
        ValueError: If the list cannot be used, or names a missing file.
    """
    if not path.is_file():
        raise missing(path, "is not a file", LAYOUT)
    pictures = read_list(path)
    for number, picture in enumerate(pictures, 1):
        for file in (picture.image, *picture.files):
            if not file.is_file():
                raise ValueError(f"{path}, row {number}: no file {file}")
    return Samples(pictures, _load)


def _load(picture: ListedPicture) -> EvaluationSample:
    return EvaluationSample(
        picture.name,
        read_stored_image(picture.image),
        picture.depth(),
        picture.max_depth,
        sharp=picture.sharp,
    )

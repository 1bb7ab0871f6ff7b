"""A reader: facts about a data set, and how to find its files and read a label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dafast._warnings import DataWarning, warn
from dafast.data.sources import Item, SourceError, labeled_item
from dafast.optional import why_no_module


@dataclass(frozen=True)
class Example:
    """The files of one sample.

    Attributes:
        image: The picture.
        label: Its depth or disparity.
        mask: File with the valid pixels, for data sets that have one.
    """

    image: Path
    label: Path
    mask: Path | None = None


@dataclass(frozen=True)
class Reader:
    """A data set on disk.

    Attributes:
        name: As on the command line.
        units: The meaning of the label's numbers.
        disparity_unit: Unit of the disparity that `read` returns: "1/metre", or "relative" if the
            set has no metric scale. Shards store it with their labels.
        invalid: The value of a pixel without a label.
        license: Of the data.
        published: The number of pictures, with its source.
        counts: The same as ranges (least, most), one for each form of the set; a rounded figure
            gives a wide range.
        layout: The folders and files, for messages.
        find: Lists the samples of a folder, in any order, without opening a file.
        read: Reads one label: disparity (H, W) in any unit, and the mask (H, W) of known pixels.
            If the label is depth it also takes `min_depth`: depth below it is unknown.
        requires: A module that reading needs and that is not a dependency of the package.
    """

    name: str
    units: str
    disparity_unit: Literal["1/metre", "relative"]
    invalid: str
    license: str
    published: str
    counts: tuple[tuple[int, int], ...]
    layout: str
    find: Callable[[Path], Iterable[Example]]
    read: Callable[..., tuple[np.ndarray, np.ndarray]]
    requires: str = ""

    def items(self, root: Path, min_depth: float = 0.0) -> list[Item]:
        """The set's samples in order of name; warns if their number is not the published one.

        Args:
            root: The set's folder, or one within it for a part of the set.
            min_depth: Depth below it, in the set's unit (metres, where those are known), is
                unknown; 0 keeps all.

        Raises:
            SourceError: If the folder or a required module is missing, the folder has another
                layout, or `min_depth` is given for a set with disparity.
        """
        if not root.is_dir():
            raise SourceError(f"{root}: no such folder")
        if self.requires and (why := why_no_module(self.requires)):
            raise SourceError(
                f"{self.name} needs {self.requires}: pip install 'dafast[datasets]' ({why})"
            )
        if min_depth and not self.units.startswith("depth"):
            raise SourceError(f"{self.name} has {self.units}; min_depth cannot be used")
        examples = sorted(self.find(root), key=lambda example: example.image)
        if not examples:
            raise SourceError(
                f"{root}: no pictures of {self.name} found; expected\n{self.layout.strip()}"
            )
        if not any(least <= len(examples) <= most for least, most in self.counts):
            text = f"{self.name}: {len(examples)} pictures in {root}; published: {self.published}"
            warn(DataWarning, text)
        return [
            labeled_item(
                example.image.relative_to(root).as_posix(),
                example.image,
                partial(self.read, example, min_depth)
                if min_depth
                else partial(self.read, example),
                disparity_unit=self.disparity_unit,
                files=(example.label, *((example.mask,) if example.mask else ())),
            )
            for example in examples
        ]

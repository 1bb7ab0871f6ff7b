"""Clips of `dafast synth --clip` as training samples: frames with their disparity."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dafast._warnings import DataWarning, warn
from dafast.data.shards import SampleError, ShardError, check_bad_share
from dafast.files import explain
from dafast.synthetic import clip_folders, read_clip


class ClipSample(NamedTuple):
    """Successive frames of one clip.

    Attributes:
        key: Name of the clip.
        images: (T, H, W, 3) uint8 RGB.
        disparity: (T, H, W) float32, from 0, the farthest, to 1 in each clip.
        mask: (T, H, W) bool: True where the label is valid.
        skipped: Unreadable clips that this one replaces: "key: reason".
    """

    key: str
    images: np.ndarray
    disparity: np.ndarray
    mask: np.ndarray
    skipped: tuple[str, ...] = ()


class ClipSet:
    """A folder of clips; `dafast.synthetic.clip_files` has its layout.

    Args:
        path: The folder.
        frames: Length T of a sample.
        max_bad_fraction: Largest tolerated fraction of unreadable clips (in this process). Each is
            named and replaced by the next.
        key: The setting that names the folder, for messages.

    Raises:
        ShardError: If there are no clips.
    """

    def __init__(
        self, path: str | Path, frames: int, max_bad_fraction: float = 0.01, key: str = "data.path"
    ) -> None:
        self.folders = clip_folders(Path(path).expanduser())
        if not self.folders:
            raise ShardError(
                f"{key}: no clips in {path}; `dafast synth --clip {frames} --scenes N --out "
                f"{path}` renders some"
            )
        self.frames, self.max_bad_fraction = frames, max_bad_fraction
        self.bad: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.folders)

    def name(self, index: int) -> str:
        """The clip's name in messages."""
        return self.folders[index].name

    def read(self, index: int, rng: np.random.Generator | None = None) -> ClipSample:
        """Reads exactly this clip.

        Args:
            index: Its number.
            rng: Chooses the first frame; without it the clip's first frames are read.

        Raises:
            SampleError: If it cannot be read, or is shorter than `frames`.
        """
        name, folder = self.name(index), self.folders[index]
        try:
            length = len(np.load(folder / "depth.npy", mmap_mode="r", allow_pickle=False))
            if length < self.frames:
                raise ValueError(f"it has {length} frames; {self.frames} are needed")
            start = 0 if rng is None else int(rng.integers(length - self.frames + 1))
            clip = read_clip(folder, frames=slice(start, start + self.frames), flow=False)
        except (ValueError, OSError) as error:
            raise SampleError(f"{name}: {explain(error)}") from error
        images, depth = clip.frames, clip.depth
        mask = depth > 0  # sky is infinite: disparity 0, a valid label
        with np.errstate(divide="ignore"):
            disparity = np.where(mask, 1 / depth, 0).astype(np.float32)
        return ClipSample(name, images, disparity / max(float(disparity.max()), 1e-6), mask)

    def draw(self, index: int, rng: np.random.Generator) -> ClipSample:
        """As `read`; a clip that cannot be read is replaced by the next that can."""
        skipped: list[str] = []
        for shift in range(len(self)):
            candidate = (index + shift) % len(self)
            if candidate not in self.bad:
                try:
                    return self.read(candidate, rng)._replace(skipped=tuple(skipped))
                except SampleError as error:
                    self.bad[candidate] = str(error)
                    warn(DataWarning, f"skipped: {error}")
                    check_bad_share(self.bad.values(), len(self), self.max_bad_fraction)
            skipped.append(self.bad[candidate])
        raise ShardError("no clip of the set can be read")

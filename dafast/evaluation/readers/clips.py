"""Clips of `dafast synth --clip`: videos with exact depth, poses and optical flow.

The layout is that of `dafast.synthetic.clip_files`.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...synthetic import Clip, clip_folders, read_clip
from ..samples import EvaluationSample, Samples
from ._files import missing

MAX_DEPTH = 80.0

LAYOUT = """\
  PATH/clip-000000/000000.png, ..., depth.npy, flow.npy, masks.npz, truth.json
      of dafast synth --clip FRAMES --scenes N --out PATH
"""


class Clips(Samples):
    """The frames of all clips as samples, and the clips themselves."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        entries = [(folder, k) for folder in folders for k in range(_length(folder))]
        super().__init__(entries, _load)

    def clip(self, index: int) -> Clip:
        """Reads a whole clip."""
        return read_clip(self.folders[index])


def clips(root: Path) -> Clips:
    """All clips of a set, or the one of a clip's folder.

    Args:
        root: Folder as in `LAYOUT`.

    Raises:
        DataMissingError: If the folder has another layout.
        ValueError: If a clip is damaged.
    """
    folders = clip_folders(root)
    if not folders:
        raise missing(root, "no */truth.json", LAYOUT)
    return Clips(folders)


def _length(folder: Path) -> int:
    try:
        facts = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        return len(facts["poses"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'truth.json'} is damaged: render the clip again") from error


def _load(entry: tuple[Path, int]) -> EvaluationSample:
    folder, k = entry
    clip = read_clip(folder, frames=slice(k, k + 1), flow=False)
    name = f"{folder.name}/{k:06d}"
    return EvaluationSample(name, clip.frames[0], clip.depth[0], MAX_DEPTH, sharp=True)

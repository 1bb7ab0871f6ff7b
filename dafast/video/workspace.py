"""The folder of an unfinished conversion: segments, and the state after each of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file, write_file
from .source import Position, VideoError


@dataclass(frozen=True)
class Checkpoint:
    """The point where a conversion continues after a whole segment.

    Attributes:
        position: The frame behind which reading continues; None for the beginning.
        repeated: Frames behind it that were written.
        frames: Frames that were written.
        pending: Frames behind them that the stabilizer has already seen.
        last: The last frame that was written.
        duration: Duration of the last frame in units of the time base; 0 if it is unknown.
        state: The stabilizer's state.
        model: The model's state, see `dafast.video.restart`; empty if it has none.
    """

    position: Position | None
    repeated: int
    frames: int
    pending: int
    last: Position
    duration: int
    state: dict[str, np.ndarray]
    model: bytes = b""


class Workspace:
    """A folder ``.NAME.parts`` next to the result.

    Args:
        target: The result.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f".{target.name}.parts")

    def exists(self) -> bool:
        """Whether the folder of an earlier conversion exists."""
        return self._settings.is_file()

    @property
    def _settings(self) -> Path:
        return self.path / "settings.json"

    @property
    def raw(self) -> Path:
        """The file of the maps, see `RawValues`."""
        return self.path / "maps.raw"

    @property
    def spool(self) -> Path:
        """The copy of a pipe."""
        return self.path / "source"

    def segment(self, number: int) -> Path:
        """The file of an encoded segment."""
        return self.path / f"{number:06d}.nut"

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Empties the folder and records the settings."""
        self.remove()
        self.path.mkdir(parents=True)
        write_file(self._settings, json.dumps(settings, indent=2, sort_keys=True))

    def check(self, settings: Mapping[str, Any]) -> None:
        """Checks that the conversion that left the folder had the same settings.

        Raises:
            VideoError: If the settings differ; the message names them.
        """
        try:
            found = json.loads(self._settings.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        wanted = json.loads(json.dumps(settings))
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            raise VideoError(
                f"--resume: the conversion in {self.path} had another {', '.join(other)}; give the "
                "same options, or --overwrite instead of --resume to start again"
            )

    def save(self, number: int, checkpoint: Checkpoint) -> None:
        """Records the state after a segment, which makes the segment valid."""
        place, last = checkpoint.position or Position(-1, -1), checkpoint.last
        numbers = [place.number, place.pts, checkpoint.repeated, checkpoint.frames]
        numbers += [checkpoint.pending, last.number, last.pts, checkpoint.duration]
        arrays: dict[str, Any] = {f"s.{k}": a for k, a in checkpoint.state.items()}
        if checkpoint.model:
            write_file(self._model(number), checkpoint.model)
        with whole_file(self._state(number)) as file:
            np.savez(file, numbers=np.array(numbers), **arrays)
        if number:
            self._model(number - 1).unlink(missing_ok=True)  # it is large

    def load(self) -> tuple[int, Checkpoint | None]:
        """The number of whole segments, and the state after the last of them."""
        count = 0
        while self._state(count).is_file() and self.segment(count).is_file():
            count += 1
        if not count:
            return 0, None
        with np.load(self._state(count - 1), allow_pickle=False) as opened:
            number, pts, repeated, frames, pending, *last, duration = map(int, opened["numbers"])
            state = {k[2:]: opened[k] for k in opened.files if k.startswith("s.")}
        place = None if number < 0 else Position(number, pts)
        file = self._model(count - 1)
        model = file.read_bytes() if file.is_file() else b""
        return count, Checkpoint(
            place, repeated, frames, pending, Position(*last), duration, state, model
        )

    def _state(self, number: int) -> Path:
        return self.path / f"{number:06d}.npz"

    def _model(self, number: int) -> Path:
        return self.path / f"{number:06d}.model"

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

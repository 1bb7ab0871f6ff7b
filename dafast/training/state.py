"""Checkpoints: written whole or not at all, and verified before they are used.

`checkpoints/step-00001000.pt` holds weights, their moving average, the optimizer, the position in
the schedule and in the data, and the random state; `step-00001000.pt.sha256` next to it has the
format of `sha256sum -c`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dafast._warnings import WeightsWarning, warn
from dafast.files import explain, remove_leftovers, whole_file, write_file, writing


class TrainingStateError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and the remedy."""


@dataclass
class RunState:
    """The progress of a run.

    Attributes:
        step: Steps done.
        position: Labeled samples seen: the position in their stream.
        unlabeled_position: Unlabeled ones.
        skipped_steps: Steps that were skipped for a loss or gradient that was not finite.
        best_score: Of the best model so far, smaller is better; infinite before an evaluation.
    """

    step: int = 0
    position: int = 0
    unlabeled_position: int = 0
    skipped_steps: int = 0
    best_score: float = math.inf

    def advance(self, samples: int, unlabeled: int, skipped: bool) -> None:
        """Counts a step and its labeled and unlabeled samples."""
        self.step += 1
        self.position += samples
        self.unlabeled_position += unlabeled
        self.skipped_steps += skipped

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reads its entries of a checkpoint; those of early versions lack some."""
        for name, default in vars(RunState()).items():
            setattr(self, name, state.get(name, default))


def random_state() -> dict[str, Any]:
    """The state of every global random generator (nothing else in training is random)."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the state that `random_state` returned."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def checkpoint_folder(out: str | Path) -> Path:
    """Returns the folder of a run's checkpoints."""
    return Path(out) / "checkpoints"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint whole and removes all but the last `keep`, never the written one.

    Raises:
        TrainingStateError: If it cannot be written (a full disk); earlier checkpoints stay.
    """
    path = folder / f"step-{step:08d}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with whole_file(path) as file:
            torch.save(state, file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            # The checksum first: a kill between the two leaves a checksum without a file, which is
            # never read, and never a file without a checksum.
            write_file(_checksum_path(path), f"{digest}  {path.name}\n")
    except (OSError, RuntimeError) as error:
        raise TrainingStateError(
            f"cannot write the checkpoint {path}: {explain(error)}. Free some space or choose "
            "another `out`; earlier checkpoints are untouched, and `--resume auto` continues from "
            "them."
        ) from error
    others = [other for other in list_checkpoints(folder) if other != path]
    for old in others[keep - 1 :]:
        old.unlink(missing_ok=True)
        _checksum_path(old).unlink(missing_ok=True)
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint after verifying its checksum.

    Raises:
        TrainingStateError: If the file is missing, truncated or altered.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingStateError(f"no checkpoint {path}")
    try:
        expected = _checksum_path(path).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError) as error:
        name = _checksum_path(path).name
        raise TrainingStateError(
            f"{path} has no checksum file: copy {name} from the same folder as the checkpoint, or, "
            f"if the checkpoint is whole, write it there with `sha256sum {path.name} > {name}`"
        ) from error
    if _sha256(path) != expected:
        raise TrainingStateError(
            f"{path} is truncated or altered: its checksum does not match {path.name}.sha256"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the checksum matches: a file of another program or version
        raise TrainingStateError(f"{path} cannot be read: {explain(error)}") from error


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole, with a warning for each that is not.

    Raises:
        TrainingStateError: If there are checkpoints and none of them can be used.
    """
    paths = list_checkpoints(folder)
    reason = ""
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except TrainingStateError as error:
            reason = reason or str(error)
            warn(WeightsWarning, f"{error}; trying the checkpoint before it")
    if paths:
        raise TrainingStateError(
            f"no checkpoint in {folder} can be used. The newest: {reason}. Remove the folder to "
            "start again."
        )
    return None


def set_aside(out: Path, step: int) -> Path | None:
    """Moves the files of a run that are beyond the step from which it continues.

    There are some if `resume` names a checkpoint that is not the newest, if later ones are not
    whole, or if a run starts at step 0 although `export/` or `best/` exists (its checkpoints were
    removed). Left in place, later checkpoints would be taken for newer than those to come, and the
    models would be overwritten. They go to `set-aside-1` (`-2`, ...) in `out`, with a copy of
    `metrics.jsonl` and a `best/` of a later step; `resume` can name checkpoints there.

    Returns:
        The folder; None where there is nothing to move.
    """
    folder = checkpoint_folder(out)
    later = [path for path in list_checkpoints(folder) if path.stem > f"step-{step:08d}"]
    models = [out / name for name in ("export", "best") if (out / name).is_dir()]
    abandoned = models if step == 0 else []
    if not later and not abandoned:
        return None
    aside = next(p for i in itertools.count(1) if not (p := out / f"set-aside-{i}").exists())
    aside.mkdir()
    for name in ("metrics.jsonl", "config.json") if abandoned else ("metrics.jsonl",):
        if (out / name).exists():
            with writing(aside / name):
                shutil.copy2(out / name, aside)
    if later:
        checkpoint_folder(aside).mkdir()
    for path in later:
        for file in (path, _checksum_path(path)):
            if file.exists():
                os.replace(file, checkpoint_folder(aside) / file.name)
    for model in abandoned:
        os.replace(model, aside / model.name)
    try:
        text = (out / "best" / "evaluation.json").read_text(encoding="utf-8")
        best_step = json.loads(text)["step"]
    except (OSError, ValueError, KeyError):
        best_step = 0
    if best_step > step:
        os.replace(out / "best", aside / "best")
    return aside


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

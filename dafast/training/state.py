"""Checkpoints that survive: written whole or not at all, checked before they are believed.

`checkpoints/step-00001000.pt` holds weights, their moving average, the optimizer, the position in
the schedule and in the data, and the random state; `step-00001000.pt.sha256` beside it is in the
format of `sha256sum -c`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from dafast.data.remote import write_text
from dafast.files import DiskFullError, writing

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names the file and the remedy."""


def random_state() -> dict[str, Any]:
    """The state of every global random generator (nothing else in training is random)."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts `random_state` back."""
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def checkpoint_folder(out: str | Path) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(out) / "checkpoints"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint atomically and removes all but the last `keep`, never the one written.

    Raises:
        CheckpointError: If it cannot be written (a full disk); what was there before stays.
    """
    path = folder / f"step-{step:08d}.pt"
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("step-*.tmp*"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        # The checksum goes first: a kill between the two leaves a checksum without a file, which
        # nobody reads, and never a file without a checksum.
        write_text(_checksum_path(path), f"{_sha256(temporary)}  {path.name}\n")
        os.replace(temporary, path)
    except DiskFullError:  # of the checksum; it names that and the remedy
        temporary.unlink(missing_ok=True)
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error}. Free some space or choose another "
            f"`out`; earlier checkpoints are untouched, and `--resume auto` goes on from them."
        ) from error
    others = [other for other in list_checkpoints(folder) if other != path]
    for old in others[keep - 1 :]:
        old.unlink(missing_ok=True)
        _checksum_path(old).unlink(missing_ok=True)
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint after checking its sum.

    Raises:
        CheckpointError: If the file is missing, truncated or altered.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        expected = _checksum_path(path).read_text().split()[0]
    except (OSError, IndexError) as error:
        raise CheckpointError(f"{path} has no checksum {_checksum_path(path).name}") from error
    if _sha256(path) != expected:
        raise CheckpointError(f"{path} is truncated or altered: its checksum does not fit")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the sum fits, so this is a file of another program or version
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole; says so when it passes over one.

    Raises:
        CheckpointError: If there are checkpoints and none is whole.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s; falling back to the checkpoint before it", error)
    if paths:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole. Remove the folder to start anew."
        )
    return None


def set_aside(out: Path, step: int) -> Path | None:
    """Puts away what a run has beyond a step, for it goes on from there into another future.

    So it does where `resume` names a checkpoint that is not the newest, and where later ones are
    not whole. Left among the new ones, the later checkpoints would be taken for newer than those
    that are to come. They go to `set-aside-1` (`-2`, ...) in `out`, with `metrics.jsonl` as it was
    and a `best/` that is of a later step; `resume` can name them there.

    Returns:
        The folder; None where there is no later checkpoint.
    """
    folder = checkpoint_folder(out)
    later = [path for path in list_checkpoints(folder) if path.stem > f"step-{step:08d}"]
    if not later:
        return None
    aside = next(p for i in itertools.count(1) if not (p := out / f"set-aside-{i}").exists())
    checkpoint_folder(aside).mkdir(parents=True)
    if (out / "metrics.jsonl").exists():
        with writing(aside / "metrics.jsonl"):
            shutil.copy2(out / "metrics.jsonl", aside)
    for path in later:
        for file in (path, _checksum_path(path)):
            if file.exists():
                os.replace(file, checkpoint_folder(aside) / file.name)
    try:
        best_step = json.loads((out / "best" / "evaluation.json").read_text())["step"]
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

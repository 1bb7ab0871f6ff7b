"""Stopping a run so that it can be resumed, and finding where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from dafast.data.shards import ShardDataset
from dafast.distributed import World
from dafast.training.config import ConfigError, TrainConfig
from dafast.training.config_files import from_json, to_json
from dafast.training.state import (
    checkpoint_folder,
    list_checkpoints,
    load_checkpoint,
    load_newest,
)
from dafast.training.task import SampleSet, TrainingSet
from dafast.training.tasks import task_of


def find_checkpoint(config: TrainConfig, world: World) -> tuple[Path, dict] | None:
    """Finds the checkpoint that `resume` names. Every rank reads the file that the main one chose.

    A path that the run has already started from means the run's newest checkpoint. So does every
    value of `resume` in processes that torchrun has restarted (`--max-restarts`), once the run has
    a checkpoint.
    """
    folder = checkpoint_folder(config.out)
    resume = config.resume
    if list_checkpoints(folder):
        started_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        same_command = resume != "none" and _resumed_from(Path(config.out)) == resume
        if started_again or same_command:
            resume = "auto"
    resume = world.broadcast(resume)  # the main process may be ahead, and write
    if resume == "none":
        if list_checkpoints(folder):
            raise ConfigError(
                f"resume = none, but {folder} has checkpoints. Choose another `out`, remove the "
                f"folder, or continue with --resume auto."
            )
        return None
    if resume != "auto":
        return Path(resume), load_checkpoint(resume)
    found = load_newest(folder) if world.is_main else None
    path = world.broadcast(found[0] if found else None)
    if path is None:
        return None
    return found or (path, load_checkpoint(path))


def _resumed_from(out: Path) -> str:
    """The value of `resume` at the last start of the run."""
    try:
        return str(json.loads((out / "config.json").read_text(encoding="utf-8"))["resume"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def changed_settings(before: str, config: TrainConfig) -> list[str]:
    """Settings that differ from those of a checkpoint's run, as "key: old -> new"."""

    def flat(values: dict, prefix: str = "") -> dict:
        result: dict = {}
        for key, value in values.items():
            result |= (
                flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
            )
        return result

    def plain(config: TrainConfig) -> dict:
        return flat(json.loads(to_json(config)))  # tuples become lists

    # A checkpoint of an earlier version lacks later settings: they have their defaults.
    old, new = plain(from_json(before)), plain(config)
    quiet = ("out", "resume", "max_minutes", "checkpoint_every", "keep", "log_every", "eval_every")
    return [
        f"{key}: {old[key]} -> {new[key]}"
        for key in new
        if key not in quiet and old[key] != new[key]
    ]


def data_state(data: TrainingSet) -> dict[str, dict[str, Any]]:
    """Identifies the data in a checkpoint: by setting, the number of samples and a digest.

    The position in the stream means nothing in other data.
    """
    sets = {"data.path": data.labeled, "unlabeled.path": data.unlabeled}
    return {
        key: {"samples": len(samples), "digest": _digest(samples)}
        for key, samples in sets.items()
        if samples is not None
    }


def _digest(samples: SampleSet) -> str:
    """Digest of the names of a set's shards, without their folders; other sets have no names."""
    shards = samples.shards if isinstance(samples, ShardDataset) else ()
    names = "\n".join(str(shard).rpartition("/")[2] for shard in shards)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def changed_data(before: dict[str, dict[str, Any]], data: TrainingSet) -> list[str]:
    """Sets that differ from those at the checkpoint, a line for each."""
    lines = []
    for key, now in data_state(data).items():
        then = before.get(key)
        if then is not None and then != now:
            changed = f"{then['samples']} samples -> {now['samples']}"
            if then["samples"] == now["samples"]:
                changed = f"{now['samples']} samples of other shards"
            lines.append(f"{key}: {changed}; their order is new, some of this epoch are seen twice")
    return lines


def is_finished(config: TrainConfig, step: int, total: int, evaluated: bool) -> bool:
    """Whether a run has nothing left to do: last step, its checkpoint, evaluation and export.

    The export is written after the checkpoint that it belongs to.
    """
    out = Path(config.out)
    newest = next(iter(list_checkpoints(checkpoint_folder(out))), None)
    exported = out / "export" / "config.json"
    return (
        step >= total
        and newest is not None
        and newest.stem == f"step-{step:08d}"
        and exported.exists()
        and exported.stat().st_mtime_ns >= newest.stat().st_mtime_ns
        and (evaluated or not config.data.eval_path)
    )


def other_model(before: str, config: TrainConfig) -> list[str]:
    """Differences between a checkpoint's network and the configured one, as "key: old -> new"."""
    earlier = from_json(before)
    old, new = task_of(earlier).identity(earlier), task_of(config).identity(config)
    return [f"{key}: {old[key]} -> {new[key]}" for key in old if old[key] != new.get(key, old[key])]


def same_evaluation(before: str, config: TrainConfig) -> bool:
    """Whether a checkpoint's best score can be compared with a new one."""
    asked = ("best_by:", "data.eval_", "metric.", "segmentation.")
    return not any(line.startswith(asked) for line in changed_settings(before, config))


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: object) -> None:
        self.requested = True
        self.restore()

    def restore(self) -> None:
        """Restores the earlier signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

"""A list of your own pictures instead of shards: packed once, into the run's folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dafast._warnings import DataWarning, is_quiet, warn
from dafast.data.lists import list_source
from dafast.data.pack import pack
from dafast.data.remote import is_url
from dafast.data.sources import Item, SourceError
from dafast.data.tars import is_list
from dafast.distributed import World
from dafast.training.config import ConfigError, TrainConfig


def pack_lists(config: TrainConfig, world: World) -> TrainConfig:
    """Packs the lists that `data.path` and `data.eval_path` name (`dafast.data.lists`).

    The shards go to `data/train` and `data/held-out` in `out`. Existing shards stay, so a resumed
    run packs nothing; a list that has changed is refused. `data.hold_out` holds out a fraction of
    the pictures for evaluation, the same ones for every seed.

    Returns:
        The configuration with the shards' folders instead of the lists.

    Raises:
        ConfigError: If a list cannot be used, or too many of its pictures cannot be read.
    """
    data = config.data
    folders: dict[str, Path] = {}
    out = Path(config.out) / "data"
    if is_list(data.path):
        folders["path"] = out / "train"
    if is_list(data.eval_path) or data.hold_out:
        folders["eval_path"] = out / "held-out"
    if world.is_main:
        parts = {key: _items(config, key) for key in folders if is_list(getattr(data, key))}
        if data.hold_out:
            items = parts["path"]
            count = max(1, round(data.hold_out * len(items)))
            chosen = set(np.random.default_rng(0).permutation(len(items))[:count].tolist())
            parts["path"] = [item for i, item in enumerate(items) if i not in chosen]
            parts["eval_path"] = [items[i] for i in sorted(chosen)]
        for key, items in parts.items():
            _pack(items, folders[key], config, key)
    world.barrier()
    data = dataclasses.replace(
        data,
        path=str(folders.get("path", data.path)),
        eval_path=str(folders.get("eval_path", data.eval_path)),
        hold_out=0.0,
    )
    return dataclasses.replace(config, data=data)


def _items(config: TrainConfig, key: str) -> list[Item]:
    if is_url(getattr(config.data, key)):
        raise ConfigError(
            f"data.{key}: a list must be a local file, not {getattr(config.data, key)}; only "
            "shards are read from URLs (`dafast data pack`)"
        )
    try:
        return list_source(Path(getattr(config.data, key)).expanduser())
    except SourceError as error:
        raise ConfigError(f"data.{key}: {error}") from error


def _pack(items: list[Item], folder: Path, config: TrainConfig, key: str) -> None:
    if not items:
        raise ConfigError(f"data.{key}: no picture is left; lower data.hold_out")
    try:
        say = (lambda line: None) if is_quiet() else (lambda line: print(folder, line))
        _, failures = pack(items, folder, {"source": "list"}, say=say)
    except (SourceError, OSError) as error:
        raise ConfigError(f"data.{key}: {error}") from error
    for name, reason in failures:
        warn(DataWarning, f"left out: {name}: {reason}")
    if len(failures) > config.data.max_bad_fraction * len(items):
        raise ConfigError(
            f"data.{key}: {len(failures)} of {len(items)} pictures cannot be used, more than the "
            f"allowed {config.data.max_bad_fraction:.1%} (data.max_bad_fraction). The last: "
            f"{': '.join(failures[-1])}. Fix the list and remove {folder}."
        )

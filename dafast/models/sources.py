"""Finds the files of a model: a preset, an id of the hub, a file or a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..config import PRESETS, ModelConfig
from .hub import (
    WEIGHT_FILES,
    HubError,
    HubOptions,
    fetch_config,
    fetch_file,
    fetch_model,
    is_hub_id,
    shard_names,
)
from .names import preset_from_name
from .weight_files import SHOWN, CheckpointError
from .zoo import ZooEntry, find

PACKAGED_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
"""Folder of the weights that the package contains, one folder per preset."""

#: Presets with weights, published or in the package; the others are there to be trained.
_WITH_WEIGHTS = [name for name, preset in PRESETS.items() if preset.hub_id or name == "nano"]

_TRAINING = re.compile(r"step-\d+\.pt")  # as `dafast.training.state` names checkpoints
_HUB_ADDRESS = re.compile(r"(?:https?://(?:huggingface\.co|hf\.co)/|hf://)([\w.-]+/[\w.-]+)")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Source:
    """The files of a model's weights, and the facts that are known about them.

    Attributes:
        label: What the user asked for, for messages.
        files: One, or all shards.
        config: Path of the config.json, if there is one.
        own_config: Whether that config.json is surely the one of these weights; if not, it may
            also belong to another file in the same folder.
        names: Of the file, then of the folders or the repository it is in.
        preset: What the user named, if it was a preset.
    """

    label: str
    files: list[Path]
    config: Path | None = None
    own_config: bool = False
    names: tuple[str, ...] = ()
    preset: ModelConfig | None = None


def _folder_source(folder: Path) -> Source:
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        others = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
        if len(others) > 1:
            names = ", ".join(p.name for p in others[:SHOWN])
            raise CheckpointError(f"{folder}: several files with weights ({names}): name one")
        if not others:
            holds = ", ".join(sorted(p.name for p in folder.iterdir())[:SHOWN]) or "nothing"
            run = (folder / "export" / "config.json").is_file()
            hint = f". The model of this training run is in {folder / 'export'}" if run else ""
            raise CheckpointError(
                f"{folder}: no weights: none of {', '.join(WEIGHT_FILES)}, nor another "
                f"{', '.join(_SUFFIXES)} file. The folder holds: {holds}{hint}"
            )
        found = others[0]
    source = _file_source(found)
    source.label = str(folder)
    return source


def _file_source(path: Path, root: Path | None = None) -> Source:
    """The files that a path names.

    Args:
        path: One file, or the index of several.
        root: The folder that the user named with a path inside of it, if so.
    """
    if path.name.endswith(".index.json"):
        files = [path.parent / name for name in _shards(path)]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise CheckpointError(f"{path}: shards are missing: {', '.join(absent)}")
    else:
        match = re.search(r"-\d{5}-of-(\d{5})\.\w+$", path.name)
        if match and int(match[1]) > 1:
            raise CheckpointError(
                f"{path}: one of {int(match[1])} shards: load the .index.json that names them all, "
                "or the folder with it"
            )
        files = [path]
    own = path.name in WEIGHT_FILES
    places = [path.parent] if root is None else [path.parent, root]
    if _TRAINING.fullmatch(path.name):
        # runs/x/checkpoints/step-00000100.pt, or one in runs/x/set-aside-1/checkpoints
        places = [parent / "export" for parent in path.absolute().parents[1:3]]
        own = True
    config = next((p / "config.json" for p in places if (p / "config.json").is_file()), None)
    names = (path.name, *(parent.name for parent in path.absolute().parents))
    return Source(str(path), files, config, own, names)


def _shards(index: Path) -> list[str]:
    try:
        return shard_names(index)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def locate(name_or_path: str | Path, filename: str | None, options: HubOptions) -> Source:
    """Finds, and downloads where needed, the files that `load_pretrained` was asked for.

    Raises:
        CheckpointError: If there is no such file, folder, preset or repository.
        HubError: If the file of a preset cannot be fetched.
    """
    if name_or_path == "":  # as a path it would be the current folder
        raise CheckpointError(
            "the name is empty: give a hub id, a file, a folder or one of the presets "
            f"{', '.join(_WITH_WEIGHTS)}"
        )
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in PRESETS and filename is None:
        preset = PRESETS[name]
        if (PACKAGED_WEIGHTS / name).is_dir():
            source = _folder_source(PACKAGED_WEIGHTS / name)
            source.preset = preset
            return source
        if name not in _WITH_WEIGHTS:
            raise CheckpointError(
                f"{name!r}: no weights are published for this preset; train it with "
                f"`dafast train --model.preset {name}` and name the folder export/ of the run"
            )
        if not preset.hub_id:
            raise CheckpointError(
                f"{name!r}: this installation of dafast has no weights for it (they belong in "
                f"{PACKAGED_WEIGHTS / name}); the package was built without them"
            )
        return _published_source(name, preset, options)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _file_source(path / filename, path) if filename else _folder_source(path)
    if path.exists():
        return _file_source(path)
    entry = find(name) if isinstance(name_or_path, str) and filename is None else None
    if entry is not None:
        if not entry.config.hub_id:
            return locate(entry.id, None, options)
        return _published_source(name, entry.config, options)
    if not is_hub_id(name_or_path) or name.endswith(_SUFFIXES):
        hint = ""
        if isinstance(name_or_path, str) and not path.suffix and len(path.parts) == 1:
            hint = f", and no preset has this name; the presets are: {', '.join(_WITH_WEIGHTS)}"
        if address := _HUB_ADDRESS.match(name):
            hint = f"; the id of the repository is {address[1]!r}"
        raise CheckpointError(f"{name}: no such file or folder{hint}")
    try:
        return _hub_source(name, filename, options)
    except HubError as error:
        raise CheckpointError(f"{error} (There is no local file or folder {name!r}.)") from error


def _published_source(name: str, config: ModelConfig, options: HubOptions) -> Source:
    known = config.name if config.name in PRESETS else f"v2-{config.name.split('-')[-1]}"
    file = fetch_file(config.hub_id, config.hub_file, options, config=known)
    names = tuple(reversed(config.hub_file.split("/")))
    return Source(name, [file], names=names, preset=config)


def _hub_source(repo_id: str, filename: str | None, options: HubOptions) -> Source:
    owner, repository = repo_id.split("/")
    if filename is not None:
        file = fetch_file(repo_id, filename, options)
        parts = filename.split("/")[::-1]
        config = None
        if preset_from_name(parts[0]) is None:
            config = fetch_config(repo_id, filename, options)
        label = f"{repo_id}/{filename}"
        own = parts[0] in WEIGHT_FILES
        return Source(label, [file], config, own, (*parts, repository, owner))
    config, files = fetch_model(repo_id, options)
    return Source(repo_id, files, config, True, (WEIGHT_FILES[0], repository, owner))


def cached_file(entry: ZooEntry, cache_dir: str | Path | None = None) -> Path | None:
    """The weights of an entry in the package or the hub's cache; None if they are not there.

    Nothing is downloaded.
    """
    config = entry.config
    if not config.hub_id:
        return next((PACKAGED_WEIGHTS / entry.id).glob("*.safetensors"), None)
    options = HubOptions(cache_dir=cache_dir, local_files_only=True)
    try:
        return fetch_file(config.hub_id, config.hub_file, options)
    except HubError:
        return None

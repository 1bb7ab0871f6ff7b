"""Configurations in TOML files: read strictly, found by path or by the name of a shipped one."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dafast.training.config import ConfigError, TrainConfig


def config_folder() -> Path:
    """The folder of the shipped configurations: in the package, in a checkout next to it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_configs() -> dict[str, str]:
    """The shipped configurations by name (`finetune`, `ablation/cutmix`), with their first line."""
    folder = config_folder()
    result = {}
    for path in sorted(folder.rglob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        name = path.relative_to(folder).with_suffix("").as_posix()
        result[name] = first.removeprefix("# ") if first.startswith("#") else ""
    return result


def find_config(name: str, base: Path | None = None) -> Path:
    """The file that a path or the name of a shipped configuration stands for.

    Args:
        name: A path, which wins, or a name, with or without `.toml`.
        base: Folder that a relative path starts from; by default the working directory.

    Raises:
        ConfigError: If there is neither.
    """
    path = (base or Path()) / Path(name).expanduser()
    if path.is_file():
        return path
    named = config_folder() / f"{name.removesuffix('.toml')}.toml"
    inside = named.resolve().is_relative_to(config_folder().resolve())
    if inside and named.is_file():
        return named
    raise ConfigError(
        f"cannot read the configuration {path}: no file and no shipped configuration has that "
        "name (`dafast train --list-configs` lists the shipped ones)"
    )


def load_toml(path: str | Path) -> TrainConfig:
    """Reads a TOML file, given by its path or by the name of a shipped configuration.

    A file may extend another: `extends = "other.toml"`, a path relative to its own folder, or a
    name.

    Raises:
        ConfigError: For a missing file, an unknown key or a wrong type.
    """
    return from_mapping(TrainConfig, _read_toml(find_config(str(path)), ()), str(path))


def _read_toml(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file, over those of the file that it extends."""
    if path.resolve() in below:
        raise ConfigError(f"{path} extends itself, through {below[-1]}")
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror or error}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the path or the name of a file, not {base!r}")
    try:
        found = find_config(base, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: extends: {error}") from error
    return _merge(_read_toml(found, (*below, path.resolve())), values)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` over `base`, table by table."""
    merged = dict(base)
    for key, value in values.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both_tables else value
    return merged


def to_json(config: TrainConfig, indent: int | None = None) -> str:
    """A configuration as checkpoints and `config.json` keep it."""
    return json.dumps(dataclasses.asdict(config), indent=indent)


def from_json(text: str) -> TrainConfig:
    """Reads a configuration that `to_json` wrote, possibly in another version.

    Settings that are not in the text have their defaults; settings that this version does not know
    are left out.
    """

    def known(defaults: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: known(default, values[key]) if isinstance(default, dict) else values[key]
            for key, default in defaults.items()
            if key in values
        }

    values = known(dataclasses.asdict(TrainConfig()), json.loads(text))
    return from_mapping(TrainConfig, values, "the configuration of the checkpoint")


def from_mapping(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Builds a dataclass from nested mappings, strictly."""
    hints = typing.get_type_hints(cls)
    unknown = [prefix + key for key in values if key not in hints]
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {', '.join(unknown)}. "
            f"{'[' + prefix[:-1] + ']' if prefix else 'The top level'} has: {', '.join(hints)}"
        )
    return cls(
        **{key: _convert(hints[key], value, where, prefix + key) for key, value in values.items()}
    )


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {key} must be a table, not {value!r}")
        return from_mapping(kind, value, where, key + ".")
    if origin is Literal:
        if value not in typing.get_args(kind):
            choices = ", ".join(map(repr, typing.get_args(kind)))
            raise ConfigError(f"{where}: {key} must be one of {choices}, not {value!r}")
        return value
    if origin is tuple:
        items = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: {key} must be an array, not {value!r}")
        if items[-1] is Ellipsis:
            items = items[:1] * len(value)
        if len(items) != len(value):
            raise ConfigError(f"{where}: {key} must have {len(items)} entries, not {len(value)}")
        return tuple(
            _convert(item, entry, where, f"{key}[{i}]")
            for i, (item, entry) in enumerate(zip(items, value, strict=True))
        )
    assert not isinstance(origin, types.UnionType), "a configuration has no union types"
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # not isinstance: True is no number of steps
        raise ConfigError(f"{where}: {key} must be {kind.__name__}, not {value!r}")
    return value

"""The public interface as lines of text, one for each name that users may write.

`python -m tests.public_api` writes them to `tests/public_api.txt`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dafast import __version__

LISTED = Path(__file__).with_suffix(".txt")

MODULES = (
    "dafast",
    "dafast.config",
    "dafast.data",
    "dafast.evaluation",
    "dafast.export",
    "dafast.images",
    "dafast.inference",
    "dafast.layers",
    "dafast.losses",
    "dafast.models",
    "dafast.ops",
    "dafast.runtime",
    "dafast.serve",
    "dafast.synthetic",
    "dafast.video.flicker",
    "dafast.video.stabilization",
    "dafast.views",
)


def public_api() -> list[str]:
    """Names of modules with their parameters, options of commands, and keys of configurations."""
    from dafast.cli import build_parser
    from dafast.training.config import TrainConfig

    lines: list[str] = []
    for name in MODULES:
        lines += _module(name)
    lines += _commands(build_parser(), "dafast")
    lines += [f"config {key}" for key in _keys(TrainConfig)]
    return sorted(set(lines))


def public_names(name: str) -> list[str]:
    """The names that a module makes public: its ``__all__``, or what it defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _module(name: str) -> Iterator[str]:
    module = importlib.import_module(name)
    for each in public_names(name):
        yield from _member(f"{name}.{each}", getattr(module, each))


def _member(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f"class {path}{_parameters(value)}"
        ours = [base for base in value.__mro__ if base.__module__.partition(".")[0] == "dafast"]
        members = {name: each for base in reversed(ours) for name, each in vars(base).items()}
        for name, member in members.items():
            if name.startswith("_"):
                continue
            member = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(member):
                yield f"{path}.{name}{_parameters(member)}"
            elif isinstance(member, property):
                yield f"{path}.{name}"
    elif callable(value):
        yield f"{path}{_parameters(value)}"
    else:
        yield path


def _parameters(value: Any) -> str:
    """Parameters and defaults, without the types, which no call depends on."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    parts = []
    for parameter in signature.parameters.values():
        default = parameter.default
        text = repr(default)
        changing = " at 0x" in text or "<factory>" in text or default == __version__
        if default is not parameter.empty and changing:
            default = parameter.replace(default=Ellipsis).default
        parts.append(parameter.replace(annotation=parameter.empty, default=default))
    kept = signature.replace(parameters=parts, return_annotation=signature.empty)
    return str(kept).replace("Ellipsis", "...")


def _commands(parser: argparse.ArgumentParser, prefix: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"{prefix} {name}"
                yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {'/'.join(action.option_strings) or action.dest.upper()}"


def _keys(config: type, prefix: str = "") -> Iterator[str]:
    types = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kinds = [types[field.name], *typing.get_args(types[field.name])]
        sections = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if sections:
            yield from _keys(sections[0], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


if __name__ == "__main__":
    LISTED.write_text("\n".join(public_api()) + "\n", encoding="utf-8")

"""Writes the folder that `make docs` builds the site from.

python scripts/site_source.py FOLDER

It has docs/ with the pages of the ops, the command line and the configuration, made from the code.
Links that leave docs/ lead to the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import posixpath
import re
import shutil
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# [text](target#part) and [name]: target
LINK = re.compile(r"(\]\(|^\[[^]]+\]: )([^)\s:#]+)((?:#[^)\s]*)?(?:\)|$))", re.MULTILINE)


def main(out: Path) -> None:
    """Writes the folder."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        source = tomllib.load(file)["project"]["urls"]["Source"]
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out / "docs")
    shutil.copy(ROOT / "mkdocs.yml", out)
    reference = out / "docs/reference"
    (reference / "commands.md").write_text(commands_page(), encoding="utf-8")
    (reference / "ops.md").write_text(ops_page(), encoding="utf-8")
    (reference / "configuration.md").write_text(configuration_page(), encoding="utf-8")
    for page in (out / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(lead_outside(text, page.relative_to(out), source), encoding="utf-8")


def lead_outside(text: str, page: Path, source: str) -> str:
    """Leads the links of a page to files outside of docs/ to the repository."""

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(page.parent.as_posix(), match[2]))
        if target.startswith("docs/") or not (ROOT / target).exists():
            return match[0]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"{match[1]}{source}/{kind}/main/{target}{match[3]}"

    return LINK.sub(replaced, text)


def ops_page() -> str:
    """Every public name of `dafast.ops`: each op before its reference, then the others."""
    from dafast import ops

    names = sorted(ops.__all__, key=str.lower)
    references = [name for name in names if name.endswith("_reference")]
    served = sorted(name.removesuffix("_reference") for name in references)
    pairs = [each for op in served for each in (op, f"{op}_reference") if each in names]
    parts = [
        "# Ops",
        (
            "All of them are imported from `dafast.ops`. Each op has a specification in plain "
            "PyTorch, `<op>_reference`, and faster backends that are compared with it. The first "
            "backend that fits serves a call; `use_backend` chooses one. "
            "[Kernels](../kernels.md) says which there are."
        ),
        "## Ops and their references",
        *(_entry(ops, name) for name in pairs),
        "## Backends, sizes and packed weights",
        *(_entry(ops, name) for name in names if name not in pairs),
    ]
    return "\n\n".join(parts) + "\n"


def _entry(module: ModuleType, name: str) -> str:
    """A name where it is defined: some modules have the name of their function."""
    value = getattr(module, name)
    place = value.__module__ if hasattr(value, "__qualname__") else module.__name__
    options = "{ heading_level: 3, show_root_full_path: false }"
    return f"::: {place}.{name}\n    options: {options}"


def commands_page() -> str:
    """The help of every command."""
    from dafast.cli import build_parser

    parts = ["# Command line\n\nThe help of every command, as `dafast COMMAND --help` prints it.\n"]
    for name, parser in _parsers(build_parser(), "dafast"):
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=96)
        parts.append(f"## `{name}`\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def _parsers(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each, command in action.choices.items():
                yield from _parsers(command, f"{name} {each}")


def configuration_page() -> str:
    """Every key of a training configuration: type, default, and what it does."""
    from dafast.training.config import TrainConfig

    parts = [
        "# Configuration keys",
        (
            "The keys of the TOML files of `dafast train`, which are options of the command too: "
            "`--optim.encoder-lr 1e-5`. [Training](../training.md) explains them."
        ),
    ]
    parts += _sections(TrainConfig, "")
    return "\n\n".join(parts) + "\n"


def _sections(config: type, name: str) -> Iterator[str]:
    types = typing.get_type_hints(config)
    texts = _attributes(config.__doc__ or "")
    rows, below = [], []
    for field in dataclasses.fields(config):
        kinds = [types[field.name], *typing.get_args(types[field.name])]
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if section is not None:
            below.append((section, f"{name}.{field.name}".lstrip(".")))
            continue
        kind = getattr(types[field.name], "__name__", None) or str(types[field.name])
        if typing.get_args(types[field.name]):
            kind = str(types[field.name])
        kind = kind.replace("typing.", "").replace("pathlib.", "").replace("|", "\\|")
        text = texts.get(field.name, "").replace("|", "\\|")
        rows.append(f"| `{field.name}` | {kind} | {_default(field)} | {text} |")
    yield f"## `[{name}]`" if name else "## Top level"
    if rows:
        yield "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows])
    for section, path in below:
        yield from _sections(typing.cast(type, section), path)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "required"


def _attributes(doc: str) -> dict[str, str]:
    """The section ``Attributes`` of a docstring."""
    found: dict[str, str] = {}
    section = re.search(r"\n +Attributes:\n(.*?)(?:\n\s*\n +\w+:\n|\Z)", doc, re.DOTALL)
    last = ""
    for line in section[1].splitlines() if section else ():
        entry = re.match(r" {8}(\w+): (.*)", line)
        if entry:
            last = entry[1]
            found[last] = entry[2]
        elif last and line.strip():
            found[last] += " " + line.strip()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

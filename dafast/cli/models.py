"""``dafast models``: lists the published models, and describes files with weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ._common import CommandError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "models",
        help="list the published models, or say what a file is",
        description="Lists the published models: what they predict, their license, and whether "
        "they are in the cache. `dafast models info FILE` says what weights are.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with all that is known")
    parser.set_defaults(function=list_models)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    info = actions.add_parser(
        "info",
        help="say what weights are",
        description="Says of weights what they are: layout, size, blocks that the decoder reads, "
        "output, dtype, license, and keys that are extra or missing. The exit code is 1 if "
        "from_pretrained would refuse them.",
    )
    info.add_argument(
        "name", metavar="FILE|FOLDER|ID", help="file, folder, hub id, or id of the list"
    )
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(function=show_info)


def list_models(args: argparse.Namespace) -> int:
    """Runs ``dafast models``."""
    from ..models import zoo
    from ..models.sources import cached_file

    entries = [(entry, cached_file(entry)) for entry in zoo.entries().values()]
    if args.json:
        listed = [
            {**entry.as_dict(), "cached": None if file is None else str(file)}
            for entry, file in entries
        ]
        print(json.dumps(listed, indent=2))
        return 0
    rows = [("ID", "OUTPUT", "LICENSE", "CACHED", "REPOSITORY")]
    for entry, file in entries:
        config = entry.config
        output = config.quantity
        if config.max_depth is not None:
            output += f" (to {config.max_depth:g} m)"
        license = config.license + (" *" if entry.license_note else "")
        where = f"{config.hub_id}: {config.hub_file}" if config.hub_id else "in the package"
        rows.append((entry.id, output, license, "yes" if file else "no", where))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)))
    print("\n* not settled; `dafast models info ID` and `--json` have what the sources say.")
    return 0


def show_info(args: argparse.Namespace) -> int:
    """Runs ``dafast models info``."""
    from ..models import zoo
    from ..models.describe import describe
    from ..models.sources import cached_file

    entry = zoo.find(args.name)
    if entry is not None and cached_file(entry) is None:
        facts: dict[str, Any] = {**entry.as_dict(), "cached": None}
        _print_facts(facts, args.json)
        return 0
    try:
        found = describe(args.name)
    except ValueError as error:
        raise CommandError(str(error)) from error
    facts = dataclasses.asdict(found)
    config = facts.pop("config")
    if found.config is not None:
        facts |= {
            "model": found.config.name,
            "taps": list(found.config.out_indices),
            "output": found.config.quantity,
            "activation": found.config.activation,
            "max_depth": found.config.max_depth,
            "configuration": config,
        }
    _print_facts(facts, args.json)
    return 1 if found.problem else 0


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if value in ("", None, [], {}) or name == "configuration":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{count} {key}" for key, count in value.items())
        elif isinstance(value, list):
            more = f", ... ({len(value)} in all)" if len(value) > 8 else ""
            value = ", ".join(map(str, value[:8])) + more
        print(f"{name.replace('_', ' ')}: {value}")

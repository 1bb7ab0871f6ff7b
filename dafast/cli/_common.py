"""Parts that the commands share: their error, types of arguments, common options, tables."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import explain

SHOWN = 20
"""Failures listed in a summary; the rest are counted."""


class CommandError(Exception):
    """Ends the command with this message and exit code 1, without a traceback."""


def named_path(text: str) -> Path:
    """Parses the name of a local file or folder; an empty one and a URL are refused.

    An empty name is that of an unset variable; a URL would become folders of that name.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; this option takes a local path")
    return Path(text)


_made: list[Path] = []
"""Folders that `make_folder` made, each after its parent."""


def make_folder(out: Path, option: str = "--out") -> None:
    """Makes the folder of an option; raises a `CommandError` if nothing can be written there.

    `remove_empty_folders` removes it at the end of a command that writes nothing there.
    """
    try:
        _made.extend(p for p in reversed((out, *out.parents)) if not p.exists())
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass  # fails now and not after the first prediction
    except OSError as error:
        reason = error.strerror or explain(error)
        raise CommandError(f"{option} {out}: cannot be written to ({reason})") from None


def remove_empty_folders() -> None:
    """Removes the folders that `make_folder` made and that are still empty."""
    while _made:
        with suppress(OSError):  # it is not empty
            _made.pop().rmdir()


def positive(text: str) -> int:
    """Parses an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def fraction(text: str) -> float:
    """Parses a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 1")
    return value


def depth(text: str) -> float:
    """Parses a positive, finite depth."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a positive depth")
    return value


def add_model(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds ``--model``, which is required where there is no default, and ``--config``."""
    text = "preset, hub id, file or folder"
    if default is None:
        parser.add_argument("--model", required=True, help=text)
    else:
        parser.add_argument("--model", default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help="what the weights are, for weights that do not say it: a preset, for example "
        "v2-metric-hypersim-vits, or a config.json (default: read from the weights' folder and "
        "names)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device`` and ``--dtype``."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="floating-point type of the network (default: %(default)s)",
    )


def add_fit(parser: argparse.ArgumentParser) -> None:
    """Adds ``--fit``."""
    parser.add_argument(
        "--fit",
        choices=("pad", "official", "upper_bound", "video"),
        help="how a photo is scaled to the network's input (default: the model's own rule; "
        "upper_bound for Depth Anything 3, video for Video-Depth-Anything, else pad)",
    )


def add_max_tokens(parser: argparse.ArgumentParser) -> None:
    """Adds ``--max-tokens``."""
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=8192,
        metavar="N",
        help="scale a photo down, with a warning, that would need more tokens than this "
        "(patches of 14x14 pixels; default: %(default)s)",
    )


def add_min_depth(parser: argparse.ArgumentParser) -> None:
    """Adds ``--min-depth``."""
    parser.add_argument(
        "--min-depth",
        type=depth,
        metavar="METRES",
        help="depth below it is unknown; applies to the rows of a list without their own "
        "min_depth, and to a labeled data set, in its unit (default: all depth counts)",
    )


def add_workers(parser: argparse.ArgumentParser, what: str, default: int | None = None) -> None:
    """Adds ``--workers``, by default one for each processor.

    Args:
        parser: Takes the option.
        what: The workers, for the help text.
        default: Their number.
    """
    per_processor = "" if default else "one per processor, "
    parser.add_argument(
        "--workers",
        type=positive,
        default=default or os.cpu_count() or 1,
        metavar="N",
        help=f"{what} (default: {per_processor}%(default)s)",
    )


def note_or_match(
    path: Path, what: str, wanted: dict[str, Any], defaults: dict[str, Any] | None = None
) -> None:
    """Records the settings of the results in a folder, or checks that they have not changed.

    Args:
        path: File of the note: JSON, next to the results.
        what: The results, for messages.
        wanted: What they depend on.
        defaults: What holds for notes of earlier versions, which lack it.

    Raises:
        CommandError: If the results there depend on something else.
    """
    from ..data.remote import exists, read_text, write_text

    if not exists(path):
        # Processes that start together write the same.
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        found = {**(defaults or {}), **json.loads(read_text(path))}
    except (ValueError, TypeError) as error:
        raise CommandError(f"{path} cannot be read ({explain(error)}): remove it") from error
    other = [f"{k} {found.get(k)}, not {v}" for k, v in wanted.items() if found.get(k) != v]
    if other:
        raise CommandError(
            f"{path}: the {what} there were made with {'; '.join(other)}. Choose another folder, "
            "or remove that one"
        )


def name_failures(failures: Sequence[tuple[str, str]], elsewhere: str) -> None:
    """Prints the first failures of a command.

    Args:
        failures: Pairs of a name and the reason.
        elsewhere: Where all of them are listed.
    """
    for name, reason in failures[:SHOWN]:
        print(f"  FAILED {name}: {reason}")
    if len(failures) > SHOWN:
        print(f"  ... and {len(failures) - SHOWN} more, in {elsewhere}")


def table(header: list[str], rows: list[list[str]], markdown: bool = False) -> str:
    """Lays out rows of cells; the first two columns are names, the others numbers."""
    if markdown:
        lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, *rows]
    )

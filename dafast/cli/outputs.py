"""Results of `dafast run`: which files a photo gives, and which of them exist already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.facts import read_facts
from ..formats.pfm import read_pfm
from ..formats.png import is_whole
from ..geometry import MAX_TOKENS
from ..result import known_range

# Defaults for files of versions that did not note them.
_DEFAULTS = {"max_tokens": MAX_TOKENS}


class ResultExistsError(Exception):
    """A file that this run may not replace is in the way."""


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        ending: What follows the name of the photo.
        write: Writes the file: its path, what was predicted, and the settings that it notes.
        depends: Names of the options that it depends on, besides those of the prediction.
        shows_photo: Whether it needs the photo.
        holds_facts: Whether the file says how it was made; otherwise another one next to it does.
    """

    ending: str
    write: Callable[[Path, Any, dict[str, Any]], None]
    depends: tuple[str, ...] = ()
    shows_photo: bool = False
    holds_facts: bool = True


@dataclass(frozen=True)
class Output:
    """One file of a photo.

    Attributes:
        path: Its path.
        format: Its kind.
        settings: What it was made from and how; kept in the file where its format can.
        wanted: Whether the options ask for it; otherwise it is replaced only if it exists.
    """

    path: Path
    format: Format
    settings: dict[str, Any]
    wanted: bool


@dataclass(frozen=True)
class Plan:
    """The files of one photo.

    Attributes:
        outputs: One of each format.
        base: The settings of the prediction, which all of them share.
    """

    outputs: list[Output]
    base: dict[str, Any]

    @property
    def wanted(self) -> list[Output]:
        """The outputs that the options ask for."""
        return [output for output in self.outputs if output.wanted]


def plan_outputs(
    out: Path,
    name: str,
    formats: Mapping[str, Format],
    wanted: Iterable[str],
    base: dict[str, Any],
    options: Mapping[str, Any],
) -> Plan:
    """Lists the files of one photo, also those that are not asked for.

    A format that holds no facts needs another file that does: where none is asked for, the one
    called ``facts``.

    Args:
        out: Folder of the results.
        name: The photo's name among the results.
        formats: All formats by name.
        wanted: Names of those that are asked for.
        base: The photo, the model and its options.
        options: The options that single formats depend on.
    """
    chosen = {formats[each] for each in wanted}
    outputs = [
        Output(
            out / f"{name}{each.ending}",
            each,
            {**base, **{key: options[key] for key in each.depends if key in options}},
            each in chosen,
        )
        for each in formats.values()
    ]
    plan = Plan(outputs, base)
    if not all(output.format.holds_facts for output in plan.wanted) and not _witness(plan):
        extra = formats["facts"]
        outputs = [o if o.format is not extra else _wanted(o) for o in outputs]
        plan = Plan(outputs, base)
    return plan


def _wanted(output: Output) -> Output:
    return Output(output.path, output.format, output.settings, True)


def _witness(plan: Plan) -> Output | None:
    """The file that says what the files without facts are: one that is asked for, or is there."""
    holding = [output for output in plan.outputs if output.format.holds_facts]
    wanted = next((output for output in holding if output.wanted), None)
    return wanted or next((output for output in holding if is_of(plan, output.path)), None)


def is_of(plan: Plan, path: Path) -> bool:
    """Whether a file exists and is of the plan's prediction."""
    facts = read_facts(path) if path.is_file() else None
    return facts is not None and not _differences(facts, plan.base)


def is_result(path: Path) -> bool:
    """Whether `dafast run` or `dafast stereo` wrote a file, by the facts in it."""
    facts = read_facts(path)
    return facts is not None and "photo" in facts


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of the settings in which a result differs from this run."""
    # The token limit may have made a photo smaller: `size` is then that of the network's input.
    asked = {**_DEFAULTS, **found, "size": found.get("asked_size", found.get("size"))}
    return sorted(key for key, value in wanted.items() if asked.get(key) != value)


def missing_outputs(plan: Plan) -> list[Output]:
    """Returns the wanted outputs that are not there yet.

    Raises:
        ResultExistsError: If a file is in the way that is not what this run would write.
    """
    missing = [output for output in plan.wanted if not output.path.exists()]
    for output in plan.wanted:
        if output in missing or not output.format.holds_facts:
            continue
        with output.path.open("rb"):
            pass  # raises an error for a file that cannot be read
        whole = output.path.suffix != ".png" or is_whole(output.path)
        found = read_facts(output.path)
        if found is None or not whole:
            raise ResultExistsError(f"{output.path} exists and is not from dafast")
        if different := _differences(found, output.settings):
            raise ResultExistsError(
                f"{output.path} exists, but with different {' and '.join(different)}"
            )
    arrays = [o for o in plan.wanted if not o.format.holds_facts and o not in missing]
    if not arrays:
        return missing
    witness = _witness(plan)
    assert witness is not None  # `plan_outputs` sees to it
    for output in arrays:
        if witness in missing:
            raise ResultExistsError(f"{output.path} exists without {witness.path.name}")
        if not _has_range(output.path, read_facts(witness.path)):
            raise ResultExistsError(
                f"{output.path} exists and does not belong to {witness.path.name}"
            )
    return missing


def replaced_outputs(plan: Plan) -> list[Output]:
    """Returns the files to overwrite: the requested ones, and our other results of the photo."""
    there = [(output, read_facts(output.path)) for output in plan.outputs if output.path.is_file()]
    known = [facts for output, facts in there if output.format.holds_facts and facts is not None]

    def is_ours(output: Output) -> bool:
        if not output.path.is_file():
            return False
        if output.format.holds_facts:
            return is_result(output.path)
        return any(_has_range(output.path, facts) for facts in known)

    return [output for output in plan.outputs if output.wanted or is_ours(output)]


def strays(plan: Plan) -> list[Path]:
    """Files that look like results of a photo next to its new ones, and are not."""
    witness = _witness(plan)
    if witness is None:
        return []
    facts = read_facts(witness.path)
    found = []
    for output in plan.outputs:
        if output.wanted or not output.path.is_file():
            continue
        if output.format.holds_facts:
            other = is_result(output.path) and not is_of(plan, output.path)
        else:
            other = not _has_range(output.path, facts)
        if other:
            found.append(output.path)
    return found


def range_of(facts: Mapping[str, Any]) -> tuple[float, float] | None:
    """The smallest and the largest value of the map that facts are about."""
    low = facts.get("min", facts.get("disparity_min"))
    high = facts.get("max", facts.get("disparity_max"))
    return None if low is None or high is None else (low, high)


def _has_range(path: Path, facts: dict[str, Any] | None) -> bool:
    """Whether a map without facts has the range that the facts of another file note."""
    if facts is None:
        return False
    try:
        if path.suffix == ".pfm":
            values = read_pfm(path)
        else:
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        return known_range(values) == range_of(facts)
    except Exception:  # not an array, or damaged
        return False

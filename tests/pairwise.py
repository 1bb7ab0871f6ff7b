"""Grids of test parameters in few cases: every pair of values once, and the corners."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest


def covering(
    *parameters: Sequence[Any],
    keep: Iterable[tuple[Any, ...]] = (),
    valid: Callable[..., bool] = lambda *values: True,
    strength: int = 2,
) -> list[tuple[Any, ...]]:
    """Cases in which every pair of values of any two parameters occurs.

    A greedy covering array. It is the same in every run, so that tests keep their names.

    Args:
        parameters: The values of each parameter.
        keep: Cases that are always included: corners of the grid, past failures.
        valid: Takes one value per parameter; cases for which it is false are left out.
        strength: 2 for every pair, 3 for every triple of values.

    Returns:
        The kept cases, then as many as the remaining pairs need.

    Raises:
        ValueError: A kept case has a value that no parameter lists, or is not valid.
    """

    def indices(case: tuple[Any, ...]) -> tuple[int, ...]:
        if len(case) != len(parameters) or not valid(*case):
            raise ValueError(f"{case} is not a valid case of this grid")
        return tuple(map(_index, parameters, case))

    def combinations(case: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(itertools.combinations(enumerate(case), min(strength, len(case))))

    def values(case: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(choices[i] for choices, i in zip(parameters, case, strict=True))

    grid = itertools.product(*(range(len(choices)) for choices in parameters))
    covers = {case: combinations(case) for case in grid if valid(*values(case))}
    chosen = list(dict.fromkeys(map(indices, keep)))
    missing = set().union(*covers.values()).difference(*map(combinations, chosen))
    while missing:
        # Of the cases that cover most, one whose values are used least: values share the work.
        used = [[case[p] for case in chosen] for p in range(len(parameters))]
        gains = {
            case: (
                len(pairs & missing),
                -sum(seen.count(i) for seen, i in zip(used, case, strict=True)),
            )
            for case, pairs in covers.items()
        }
        best = max(gains, key=gains.__getitem__)
        chosen.append(best)
        missing -= covers[best]
    return [values(case) for case in chosen]


def grid(
    parameters: Mapping[str, Sequence[Any]],
    *,
    keep: Iterable[tuple[Any, ...]] = (),
    valid: Callable[..., bool] = lambda *values: True,
    strength: int = 2,
) -> pytest.MarkDecorator:
    """``pytest.mark.parametrize`` with the cases of `covering`.

    The kept cases, and those in which a value occurs for the first time, are quick; the others
    are marked ``slow``.

    Args:
        parameters: Values by argument name. A name may be two or more separated by commas, with
            tuples for values; a value may be a ``pytest.param``, whose marks its cases get.
        keep: As for `covering`, one value per entry of ``parameters``.
        valid: As for `covering`.
        strength: As for `covering`.
    """
    plain, marks = [], {}
    for position, choices in enumerate(parameters.values()):
        plain.append([])
        for choice in choices:
            if hasattr(choice, "marks"):
                marks[position, choice.values[0]] = choice.marks
                (choice,) = choice.values
            plain[-1].append(choice)
    groups = [[name.strip() for name in key.split(",")] for key in parameters]
    cases = []
    kept, seen = list(keep), set()
    for case in covering(*plain, keep=kept, valid=valid, strength=strength):
        new = {*enumerate(map(_index, plain, case))} - seen
        seen |= new
        flat: list[Any] = []
        for names, value in zip(groups, case, strict=True):
            flat += value if len(names) > 1 else [value]
        of_case = [m for i, v in enumerate(case) if _hashable(v) for m in marks.get((i, v), ())]
        if not new and case not in kept:
            of_case.append(pytest.mark.slow)
        cases.append(pytest.param(*flat, marks=of_case, id="-".join(map(_name, flat))))
    return pytest.mark.parametrize([name for names in groups for name in names], cases)


def _index(choices: Sequence[Any], value: Any) -> int:
    for i, choice in enumerate(choices):
        if choice is value or choice == value:
            return i
    raise ValueError(f"{value!r} is not one of {list(choices)}")


def _hashable(value: Any) -> bool:
    return value.__hash__ is not None


def _name(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "x".join(map(_name, value)) or "empty"
    return str(value).removeprefix("torch.")

"""Covering arrays: every pair of values of a grid of parameters, in few cases."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def pairwise(
    *parameters: Sequence[Any],
    keep: Iterable[tuple[Any, ...]] = (),
    valid: Callable[..., bool] = lambda *values: True,
) -> list[tuple[Any, ...]]:
    """Cases in which every pair of values of any two parameters occurs.

    A greedy covering array. It is the same in every run: parametrised tests keep their names.

    Args:
        parameters: The values of each parameter.
        keep: Cases that stay whatever pairs they cover: the corners of the grid.
        valid: Takes one value per parameter; cases for which it is false are left out.

    Returns:
        The kept cases, then those that cover the remaining pairs, a few more than the product
        of the two longest parameters.

    Raises:
        ValueError: A kept case has a value that no parameter lists, or is not valid.
    """
    sizes = range(len(parameters))

    def indices(case: tuple[Any, ...]) -> tuple[int, ...]:
        if len(case) != len(parameters) or not valid(*case):
            raise ValueError(f"{case} is no valid case of this grid")
        return tuple(_index(values, value) for values, value in zip(parameters, case, strict=True))

    grid = [
        case
        for case in itertools.product(*(range(len(values)) for values in parameters))
        if valid(*(values[i] for values, i in zip(parameters, case, strict=True)))
    ]

    def pairs(case: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(sizes, 2)}

    chosen = list(dict.fromkeys(indices(case) for case in keep))
    missing = set().union(*map(pairs, grid)).difference(*map(pairs, chosen))
    covers = {case: pairs(case) for case in grid}
    while missing:
        # Ties go to the case whose values were used least, so that values share the work.
        used = [[case[p] for case in chosen] for p in sizes]
        best = max(
            covers,
            key=lambda case: (
                len(covers[case] & missing),
                -sum(used[p].count(case[p]) for p in sizes),
            ),
        )
        chosen.append(best)
        missing -= covers[best]
    return [tuple(values[i] for values, i in zip(parameters, case, strict=True)) for case in chosen]


def _index(values: Sequence[Any], value: Any) -> int:
    for i, candidate in enumerate(values):
        if candidate is value or candidate == value:
            return i
    raise ValueError(f"{value!r} is none of {list(values)}")

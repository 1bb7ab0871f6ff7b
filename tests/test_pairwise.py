"""The covering arrays that choose the cases of the op tests."""

from __future__ import annotations

import itertools

import pytest

from tests.pairwise import covering, grid


@pytest.mark.parametrize("strength", [1, 2, 3])
def test_every_combination_occurs(strength, rng):
    sizes = [int(n) for n in rng.integers(1, 5, 5)]
    cases = covering(*map(range, sizes), strength=strength)
    for places in itertools.combinations(range(5), strength):
        wanted = set(itertools.product(*(range(sizes[p]) for p in places)))
        assert {tuple(case[p] for p in places) for case in cases} == wanted
    assert len(set(cases)) == len(cases)
    # Greedy arrays are within a logarithm of the least size.
    least = 1
    for n in sorted(sizes)[-strength:]:
        least *= n
    assert least <= len(cases) <= 3 * least


def test_kept_cases_come_first_and_invalid_ones_never():
    cases = covering("abc", [1, 2], [True, False], keep=[("c", 2, False)],
                     valid=lambda letter, number, flag: letter != "a" or number == 1)  # fmt: skip
    assert cases[0] == ("c", 2, False) and ("a", 2) not in {case[:2] for case in cases}
    with pytest.raises(ValueError, match="not a valid case"):
        covering("ab", [1], keep=[("a", 1)], valid=lambda letter, number: letter == "b")
    with pytest.raises(ValueError, match="is not one of"):
        covering("ab", [1], keep=[("c", 1)])


def _slow(case):
    return "slow" in {mark.name for mark in case.marks}


def test_grid_is_a_parametrize_mark():
    mark = grid({"a, b": [(1, 2), (3, 4)], "c": [pytest.param("x", marks=pytest.mark.slow), "y"]})
    names, cases = mark.args
    assert names == ["a", "b", "c"] and {case.values for case in cases} == {
        (1, 2, "x"), (1, 2, "y"), (3, 4, "x"), (3, 4, "y")
    }  # fmt: skip
    for case in cases:
        assert _slow(case) or case.values[2] == "y", "the mark of the value"
        assert case.id == "-".join(map(str, case.values))


def test_quick_cases_have_every_value_and_the_kept_ones():
    keep = [(0, 0, 0), (0, 0, 1)]
    _, cases = grid({"a": range(4), "b": range(3), "c": range(2)}, keep=keep).args
    quick = [case.values for case in cases if not _slow(case)]
    assert quick[:2] == keep and len(quick) < len(cases)
    assert [set(values) for values in zip(*quick, strict=True)] == [{0, 1, 2, 3}, {0, 1, 2}, {0, 1}]

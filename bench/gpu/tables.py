"""Markdown tables of figures."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def figure(value: float | None, unit: float = 1.0) -> str:
    """A figure in units of ``unit`` with three digits; "" without a figure."""
    if value is None:
        return ""
    value /= unit
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def span(values: Sequence[float], digits: int = 2) -> str:
    """The range of some figures, or the figure if all are equal."""
    low, high = (f"{end:,.{digits}f}" for end in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"

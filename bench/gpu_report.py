"""Makes the tables of docs/gpu.md from the records in bench/results: `python bench/gpu_report.py`.

It prints them; `--write` replaces them in the page, between `<!-- NAME -->` and `<!-- end -->`.
The records of `bench/gpu_run.py` are in bench/results/gpu-run-*.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.gpu import estimates, first_tables, run_tables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gpu.md"


def blocks(folder: Path = run_tables.RESULTS, stub: bool = False) -> dict[str, str]:
    """The tables by the name of their marker.

    Args:
        folder: Of the records.
        stub: Whether to accept records of `bench/gpu_run.py --stub`.
    """
    first = first_tables.FirstRuns(run_tables.RESULTS)
    runs = run_tables.load(folder, stub)
    found = {name: make(first) for name, make in first_tables.BLOCKS.items()}
    found["run"] = run_tables.run_tables(runs)
    found["targets"] = run_tables.target_table(runs, estimates.estimated())
    return found


def fill(page: str, tables: dict[str, str]) -> str:
    """Replaces what is between the markers of a page.

    Raises:
        ValueError: If a marker is missing, or has no table.
    """
    names = re.findall(r"<!-- (?!end -->|notest\b)([^>]+) -->", page)
    if sorted(names) != sorted(tables):
        wrong = sorted(set(names) ^ set(tables)) or names
        raise ValueError(f"the page and the tables differ in the markers {wrong}")
    for name, text in tables.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n)(?:.*?)(<!-- end -->)"
        replace: Callable[[re.Match[str]], str] = lambda m, text=text: (  # noqa: E731
            f"{m[1]}\n{text.rstrip()}\n\n{m[2]}"
        )
        page, count = re.subn(pattern, replace, page, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the marker {name!r} has no end")
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="replace the tables in docs/gpu.md")
    parser.add_argument(
        "--records", type=Path, default=run_tables.RESULTS,
        help="directory with other gpu-run*.json, for example a new run",
    )  # fmt: skip
    options = parser.parse_args(argv)
    tables = blocks(options.records)
    if options.write:
        PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
        return
    for name, text in tables.items():
        print(f"<!-- {name} -->\n\n{text}\n<!-- end -->\n")


if __name__ == "__main__":
    main()

"""The file of records that the sections of a run share; it is complete after every record."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """Reads a file of records; one without any if it does not exist."""
    if not path.exists():
        return {"machine": {}, "peaks": {}, "sections": [], "records": []}
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, report: dict[str, Any]) -> None:
    """Replaces the file, so that a process that is killed never leaves a partial one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


class Records:
    """The records of one section, added to those in the file.

    Args:
        path: File of the run; only one section writes at a time.
        section: Its name. Its earlier records in the file are dropped.
    """

    def __init__(self, path: Path, section: str) -> None:
        self.path = path
        self.section = section
        report = read(path)
        report["records"] = [r for r in report["records"] if r["section"] != section]
        write(path, report)

    def add(self, record: dict[str, Any]) -> None:
        """Writes a record to the file and prints it."""
        report = read(self.path)
        report["records"].append({"section": self.section, **record})
        write(self.path, report)
        print("   ", ", ".join(f"{k} {_short(v)}" for k, v in record.items()), flush=True)

    def update(self, part: str, facts: dict[str, Any]) -> None:
        """Adds facts to the ``machine`` or the ``peaks`` of the run."""
        report = read(self.path)
        report[part].update(facts)
        write(self.path, report)
        print("   ", ", ".join(f"{k} {_short(v)}" for k, v in facts.items()), flush=True)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."

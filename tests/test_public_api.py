"""The public interface does not change by accident."""

from __future__ import annotations

from tests.public_api import LISTED, public_api

REMEDY = """
The public interface changed. If this is on purpose:
1. `python -m tests.public_api` writes the list again.
2. CHANGELOG.md gets a line under "Unreleased":
   Added:      - `NAME`: what it does.
   Changed:    - `NAME` now does ...; before it did ...
   Deprecated: - `NAME` gives a DeprecationWarning and goes in version X.Y; use `OTHER`.
   Removed:    - `NAME`, deprecated since version X.Y; use `OTHER`.
A name that goes or changes its meaning is first deprecated, see CONTRIBUTING.md.
"""


def test_the_public_interface_is_the_listed_one():
    found = public_api()
    listed = LISTED.read_text(encoding="utf-8").splitlines()
    gone = [f"- {line}" for line in listed if line not in set(found)]
    new = [f"+ {line}" for line in found if line not in set(listed)]
    assert not gone + new, "\n".join([*gone, *new, REMEDY])

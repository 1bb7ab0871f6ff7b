"""Facts as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

TAG = "dafast"
"""Key of the text with the facts."""


def to_text(facts: Mapping[str, Any]) -> str:
    """Facts as JSON in ASCII on one line; a number that is not finite becomes null."""
    clean = {k: None if _is_odd(v) else v for k, v in facts.items()}
    return json.dumps(clean, sort_keys=True, allow_nan=False)


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def from_text(text: str) -> dict[str, Any] | None:
    """The facts in a text, or None if it is another text."""
    try:
        facts = json.loads(text)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None

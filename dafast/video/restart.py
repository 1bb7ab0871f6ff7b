"""Where the predictions of a model with temporal modules can go on after an interruption."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Restart(NamedTuple):
    """A mark between two results: predictions can go on with the second of them.

    Attributes:
        save: Gives the state that this needs. Its memory is held until the mark is dropped.
    """

    save: Callable[[], bytes]


class Restarts:
    """The marks that may still be needed.

    Args:
        given: Results before the first mark or result that follows.
        state: The state that they go on with; empty at the beginning of a video.
    """

    def __init__(self, given: int = 0, state: bytes = b"") -> None:
        self._marks: deque[tuple[int, Restart]] = deque([(given, Restart(lambda: state))])

    def add(self, given: int, mark: Restart) -> None:
        """Notes a mark behind `given` results."""
        self._marks.append((given, mark))

    def before(self, total: int) -> tuple[int, bytes]:
        """The last mark behind at most `total` results, and its state; drops those before it."""
        while len(self._marks) > 1 and self._marks[1][0] <= total:
            self._marks.popleft()
        given, mark = self._marks[0]
        return given, mark.save()

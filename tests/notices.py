"""The warnings of dafast within a test."""

from __future__ import annotations

import pytest

from dafast import DafastWarning


class Notices:
    """The warnings of dafast so far, with the attributes of `caplog`."""

    def __init__(self, recorder: pytest.WarningsRecorder) -> None:
        self._recorder = recorder

    @property
    def messages(self) -> list[str]:
        found = self._recorder.list
        return [str(each.message) for each in found if issubclass(each.category, DafastWarning)]

    @property
    def text(self) -> str:
        return "\n".join(self.messages)

    def clear(self) -> None:
        self._recorder.clear()

"""Decodes the next photo while the current one is predicted and written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..images import decode
from ..picture_sources import is_pipe

if TYPE_CHECKING:
    from ..picture_sources import DecodedPicture


class Ahead:
    """A thread that decodes one photo ahead, so at most one decoded photo waits."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dafast-decode")
        self._waiting: dict[Path, Future[DecodedPicture]] = {}

    def start(self, path: Path | None) -> None:
        """Decodes a photo in the thread. A photo that was started before and not taken is dropped.

        A pipe can be read only once, so it is not decoded ahead.
        """
        self._drop()
        if path is not None and not is_pipe(path):
            self._waiting[path] = self._pool.submit(decode, path, str(path))

    def take(self, path: Path) -> DecodedPicture | None:
        """A photo that was started, or None if it was not, or if it cannot be read.

        The caller then reads it again, and gets the error where it belongs.
        """
        found = self._waiting.pop(path, None)
        return None if found is None or found.exception() is not None else found.result()

    def close(self) -> None:
        """Ends the thread, after the photo that it decodes."""
        self._drop()
        self._pool.shutdown()

    def _drop(self) -> None:
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

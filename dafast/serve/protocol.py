"""HTTP of uvicorn with a limit on the headers, which httptools does not have."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 1 << 16
"""Bytes of the first line and the headers of a request; one read from the network may exceed it."""


class LimitedProtocol(HttpToolsProtocol):
    """Answers 400 to a request whose headers do not end, instead of keeping all of them."""

    _in_head = True
    _head = 0

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        super().on_message_begin()
        self._in_head, self._head = True, 0

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        super().on_headers_complete()
        self._in_head = False

    def data_received(self, data: bytes) -> None:
        """Called with each part that arrives."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.send_400_response(f"The headers have more than {MAX_HEAD} bytes.")

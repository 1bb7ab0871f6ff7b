"""A connection between two processes that is fast for messages of a megabyte.

The connections of `multiprocessing` read and write a megabyte in many small steps, which costs
milliseconds.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any


class Channel:
    """One end of a connection; it can be passed to a new process.

    Args:
        end: A connected socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: Any) -> None:
        """Sends a message. Each `pickle.PickleBuffer` in it is sent without a copy.

        Raises:
            OSError: If the other end is closed.
        """
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
        parts = [memoryview(data), *(buffer.raw() for buffer in buffers)]
        sizes = [len(part) for part in parts]
        self._socket.sendall(struct.pack(f"<{len(sizes) + 1}Q", len(sizes), *sizes))
        for part in parts:
            self._socket.sendall(part)

    def recv(self) -> Any:
        """Waits for a message; its buffers are `bytes`.

        Raises:
            EOFError: If the other end was closed.
            OSError: If the connection is broken.
        """
        (count,) = struct.unpack("<Q", self._receive(8))
        sizes = struct.unpack(f"<{count}Q", self._receive(8 * count))
        data, *buffers = [self._receive(size) for size in sizes]
        return pickle.loads(data, buffers=buffers)

    def _receive(self, length: int) -> bytes:
        parts: list[bytes] = []
        while length:
            # Mostly one part, which is not copied again.
            part = self._socket.recv(length, socket.MSG_WAITALL)
            if not part:
                raise EOFError
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()


def open_channel() -> tuple[Channel, Channel]:
    """The two ends of a connection."""
    ours, theirs = socket.socketpair()
    return Channel(ours), Channel(theirs)

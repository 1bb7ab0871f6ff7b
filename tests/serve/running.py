"""A real server in a thread of this process, with real workers."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import httpx
import uvicorn

from dafast.serve import ServerSettings, create_app


class Running:
    """A server on a free port.

    Attributes:
        address: Its URL.
        client: Sends requests to it.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.app: Any = create_app(settings)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", access_log=False))
        self.thread = threading.Thread(target=self.server.run, args=([listener],))
        self.thread.start()
        limits = httpx.Limits(max_connections=64)
        self.client = httpx.Client(base_url=self.address, timeout=300, limits=limits)

    @property
    def pool(self) -> Any:
        return self.app.state.server.pool

    def wait(self) -> None:
        """Waits for the model."""
        while not (self.server.started and self.pool.ready):
            assert not (self.server.started and self.pool.problem), self.pool.problem
            time.sleep(0.02)

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()

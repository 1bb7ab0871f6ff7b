"""Requests whose headers do not end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

pytest.importorskip("httptools", reason="h11 has a limit of its own")

from dafast.serve.protocol import MAX_HEAD, LimitedProtocol


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(application, http=LimitedProtocol, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def send(port: int, parts: list[bytes]) -> bytes:
    """Everything that the server answers; it may close the connection before all is sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:
            pass
        return answer


def is_cut_off(port: int, part: bytes) -> bool:
    """Whether the server closes the connection while a head without an end arrives."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
        try:
            for _ in range(100 * MAX_HEAD // len(part)):
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            return True
    return False


@pytest.mark.parametrize("part", [b"X-More: 1\r\n" * 40, b"a" * 999], ids=["many", "long"])
def test_headers_that_do_not_end_are_refused(port: int, part: bytes) -> None:
    assert is_cut_off(port, part)


def test_bodies_and_several_requests_are_not_limited(port: int) -> None:
    size = 3 * MAX_HEAD
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + b"a" * size
    last = first.replace(b"Host: x", b"Host: x\r\nConnection: close")
    answer = send(port, [first, first, last])
    assert answer.count(b"200 OK") == 3
    assert answer.count(str(size).encode()) == 3

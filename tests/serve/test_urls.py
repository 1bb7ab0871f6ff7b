"""Pictures by URL: only public addresses are contacted, after redirections too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dafast.serve import urls
from dafast.serve.jobs import Answer


class Host(ThreadingHTTPServer):
    """A server on all addresses of this machine that notes who connects."""

    daemon_threads = True

    def __init__(self) -> None:
        self.reached: list[str] = []
        super().__init__(("", 0), Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.reached.append(request.getsockname()[0])
        return True


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        moved = self.path == "/moved"
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_address[1]}/")
        self.end_headers()
        self.wfile.write(b"picture")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    server = Host()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(host: Host, path: str, *, public: bool, max_bytes: int = 100) -> bytes | Answer:
    address = f"http://127.0.0.1:{host.server_address[1]}{path}"
    return urls.download(address, public=public, max_bytes=max_bytes, timeout=60)


def test_a_private_address_is_not_contacted(host: Host) -> None:
    answer = fetch(host, "/", public=True)
    assert isinstance(answer, Answer)
    assert (answer.status, host.reached) == (422, [])
    assert b"not one of the public internet" in answer.body


@pytest.mark.parametrize("path", ["/", "/moved"])
def test_redirections_are_checked(host: Host, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "is_public", lambda address: address == "127.0.0.1")
    answer = fetch(host, path, public=True)
    assert host.reached == ["127.0.0.1"]
    if path == "/":
        assert answer == b"picture"
    else:
        assert isinstance(answer, Answer)
        assert b"not one of the public internet" in answer.body


def test_any_address_if_asked_for(host: Host) -> None:
    assert fetch(host, "/moved", public=False) == b"picture"
    assert host.reached == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize(("path", "limit", "status"), [("/missing", 9, 422), ("/", 6, 413)])
def test_a_wrong_file_is_refused(host: Host, path: str, limit: int, status: int) -> None:
    answer = fetch(host, path, public=False, max_bytes=limit)
    assert isinstance(answer, Answer)
    assert answer.status == status


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%lo", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),  # 127.0.0.1 behind NAT64
        ("2002:7f00:1::", False),  # and in 6to4
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert urls.is_public(address) == public

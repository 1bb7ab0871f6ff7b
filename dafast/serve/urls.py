"""Downloads a picture for a client without giving it access to the server's own network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from .._version import __version__
from ..files import explain
from .jobs import Answer, refuse

_BLOCK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class _ForbiddenAddressError(OSError):
    """The address does not belong to the public internet."""


def is_public(text: str) -> bool:
    """Whether an IP address, and any IPv4 address within it, belongs to the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None and not is_public(str(inner)):
            return False
        address = address.ipv4_mapped or address
    return address.is_global and not address.is_multicast


def _connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connects to a public address of a host; nothing is sent to the other addresses.

    The name is resolved once, so that the address that was checked is the one that is used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [(str(a[0]), port) for *_, a in found if is_public(str(a[0]))]
    if not addresses:
        raise _ForbiddenAddressError("its address is not one of the public internet")
    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection(address, timeout)
    return socket.create_connection(addresses[-1], timeout)


class _PublicHTTP(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _connect(self.host, self.port, self.timeout)


class _PublicHTTPS(http.client.HTTPSConnection, _PublicHTTP):
    """Adds TLS to the socket of `_PublicHTTP`, the next class in the method resolution order."""


class _PublicHandler(urllib.request.HTTPHandler):
    def http_open(self, request: Any) -> Any:
        return self.do_open(_PublicHTTP, request)


class _PublicSecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: Any) -> Any:
        return self.do_open(_PublicHTTPS, request)


def download(url: str, *, public: bool, max_bytes: int, timeout: float) -> bytes | Answer:
    """Downloads a picture.

    Args:
        url: An http or https URL.
        public: Whether to refuse addresses that are not of the public internet, also after a
            redirection.
        max_bytes: The largest file.
        timeout: Seconds for all of it.

    Returns:
        The bytes, or the answer that says why there are none.
    """
    if not url.lower().startswith(("http://", "https://")):
        return refuse(422, "url: it must begin with http:// or https://")
    # No proxies: the addresses would be those of the proxy.
    handlers: list[Any] = [urllib.request.ProxyHandler({})]
    handlers += [_PublicHandler(), _PublicSecureHandler()] if public else []
    end = time.monotonic() + timeout
    try:
        request = urllib.request.Request(url, headers={"User-Agent": f"dafast/{__version__}"})
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            data = bytearray()
            while block := answer.read1(_BLOCK):
                data += block
                if len(data) > max_bytes:
                    return refuse(413, f"the file at the URL has more than {max_bytes} bytes")
                if time.monotonic() > end:
                    return refuse(504, f"the URL did not send its file within {timeout:g} s")
    except urllib.error.HTTPError as error:
        return refuse(422, f"the URL answers {error.code} {error.reason}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None)
        text = explain(reason if isinstance(reason, BaseException) else error)
        return refuse(422, f"the URL cannot be downloaded ({text})")
    return bytes(data)

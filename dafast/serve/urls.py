"""Downloads a picture for a client without giving it access to the server's own network."""

from __future__ import annotations

import http.client
import ipaddress
import time
import urllib.error
import urllib.request
from typing import Any

from .._version import __version__
from ..files import explain
from .jobs import Answer, refuse

_BLOCK = 1 << 16


class _ForbiddenAddressError(OSError):
    """The address is not one of the public internet."""


def _check(connection: Any) -> None:
    """Refuses a connection by the address that it really has, before anything is sent."""
    address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if not address.is_global or address.is_multicast:
        connection.close()
        raise _ForbiddenAddressError("its address is not one of the public internet")


class _PublicHTTP(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _check(self)


class _PublicHTTPS(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _check(self)


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

"""Reads the picture of a request: raw bytes, a form, or JSON with a URL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .jobs import Answer, refuse
from .settings import ServerSettings
from .urls import download


async def read_picture(request: Request, settings: ServerSettings) -> bytes | Answer:
    """The bytes of the picture in a request, or the answer that refuses it.

    Raises:
        ClientDisconnect: If the client has gone.
    """
    body = await _read_body(request, settings)
    if isinstance(body, Answer):
        return body
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, body)
    if kind == "application/json":
        return await _from_url(body, settings)
    return body or refuse(422, "the body is empty; send the bytes of a picture")


async def _read_body(request: Request, settings: ServerSettings) -> bytes | Answer:
    """Reads the whole body, within the limits of size and time."""
    too_large = refuse(413, f"the body has more than {settings.max_bytes} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > settings.max_bytes:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.timeout):
            async for part in request.stream():
                body += part
                if len(body) > settings.max_bytes:
                    return too_large
    except TimeoutError:
        return refuse(408, f"the body did not arrive within {settings.timeout:g} s")
    return bytes(body)


async def _from_form(request: Request, body: bytes) -> bytes | Answer:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=4, max_fields=4, max_part_size=len(body) + 1
        )
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        return refuse(422, f"the form cannot be read: {error}")
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            return refuse(422, f"the form has {len(files)} files; send one, in the field `file`")
        return await files[0].read() or refuse(422, "the file in the form is empty")
    finally:
        await form.close()


async def _from_url(body: bytes, settings: ServerSettings) -> bytes | Answer:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return refuse(422, "the body is not JSON")
    url = content.get("url") if isinstance(content, dict) else None
    if not isinstance(url, str) or set(content) != {"url"}:
        return refuse(422, 'JSON must be {"url": "https://..."}')
    if not settings.allow_urls:
        return refuse(403, "this server fetches no URLs; send the picture itself")
    return await asyncio.to_thread(
        download,
        url,
        public=settings.allow_urls == "public",
        max_bytes=settings.max_bytes,
        timeout=settings.timeout,
    )

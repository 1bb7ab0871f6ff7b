"""`ServerSettings`: the models, limits and options of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server; ``dafast serve --help`` describes them.

    Attributes:
        models: Names of the models as for `DepthAnything.from_pretrained`; the first is the
            default. The others are loaded when a request asks for them.
        device: Device of the models.
        dtype: Floating-point type of the networks.
        token: Requests must carry ``Authorization: Bearer TOKEN``; "" for no such check.
        max_pixels: Largest picture, in pixels.
        max_bytes: Largest body of a request, in bytes.
        max_video_bytes: Largest video, in bytes; it goes to the disk.
        timeout: Seconds for the body of a request to arrive, and then for its answer.
        queue: Largest number of requests that are being received, waiting or computed.
        workers: Processes that hold the models.
        videos: Largest number of videos that wait or are converted; 0 for none. They are converted
            one at a time.
        batch: Largest number of pictures of one batch.
        batch_wait: Seconds that a lone request waits for others.
        allow_urls: "" refuses URLs in requests; "public" fetches from addresses of the public
            internet; "any" also from private networks and this machine.
        cors_origins: Origins of other pages that may use the server; "*" for all.
        page: Whether to serve the page of ``dafast demo`` at ``/``.
    """

    models: tuple[str, ...] = ("nano",)
    device: str = "auto"
    dtype: str = "auto"
    token: str = ""
    max_pixels: int = 32_000_000
    max_bytes: int = 32 << 20
    max_video_bytes: int = 1 << 30
    timeout: float = 60.0
    queue: int = 64
    workers: int = 1
    videos: int = 4
    batch: int = 8
    batch_wait: float = 0.01
    allow_urls: str = ""
    cors_origins: tuple[str, ...] = ()
    page: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: name at least one")
        for name in ("max_pixels", "max_bytes", "max_video_bytes", "queue", "workers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.videos < 0:
            raise ValueError(f"videos={self.videos}: it must be at least 0")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"timeout={self.timeout}: seconds, above 0")
        if not 0 <= self.batch_wait < float("inf"):
            raise ValueError(f"batch_wait={self.batch_wait}: seconds, at least 0")
        if self.allow_urls not in ("", "public", "any"):
            raise ValueError(f"allow_urls={self.allow_urls!r}; use '', 'public' or 'any'")

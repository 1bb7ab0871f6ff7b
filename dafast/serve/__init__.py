"""A server for depth over HTTP: ``dafast serve``. docs/serve.md describes it.

Needs the extra ``serve``. One process speaks HTTP and keeps the queue (`pool`); others hold the
models and compute batches (`worker`), and one converts videos (`video_jobs`).
"""

from __future__ import annotations

from ..optional import MissingPackageError, why_no_module
from .settings import ServerSettings

__all__ = ["ServerSettings", "check_packages", "create_app"]


def check_packages() -> None:
    """Raises a `MissingPackageError` that names the extra, if a package is missing."""
    if why := why_no_module("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        raise MissingPackageError(
            f"a server needs dafast[serve]: pip install 'dafast[serve]' ({why})"
        )


def create_app(settings: ServerSettings) -> object:
    """Makes the ASGI application; see `dafast.serve.app.create_app`."""
    check_packages()
    from .app import create_app

    return create_app(settings)

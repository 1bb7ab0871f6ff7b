"""The page of ``dafast demo``, and the page that describes the interface."""

from __future__ import annotations

import base64
import html
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Response

from ..palettes import PALETTES, colorize

FILES = {"style.css": "text/css", "main.js": "text/javascript", "cloud.js": "text/javascript"}
_HEADERS = {
    # The page loads nothing from another host and sends nothing there.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' "
    "blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def samples() -> dict[str, Path]:
    """Finds the sample photos, by name: in the package, or next to it in a checkout."""
    package = Path(str(resources.files("dafast")))
    folders = (package / "photos", package.parent / "examples" / "photos")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.jpg"))}


def add_page(app: FastAPI, describe_models: Any) -> None:
    """Adds the page at ``/`` and its files.

    Args:
        app: The application.
        describe_models: Returns the models as ``/v1/models`` does.
    """
    folder = resources.files(__package__) / "page"
    photos = samples()

    def send(name: str, kind: str) -> Response:
        return Response((folder / name).read_bytes(), media_type=kind, headers=_HEADERS)

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return send("index.html", "text/html; charset=utf-8")

    @app.get("/page/about.json", include_in_schema=False)
    def about() -> dict[str, Any]:
        ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
        tables = {
            name: base64.b64encode(colorize(ramp, name).tobytes()).decode() for name in PALETTES
        }
        return {"models": describe_models(), "palettes": tables, "samples": list(photos)}

    @app.get("/page/samples/{name}.jpg", include_in_schema=False)
    def sample(name: str) -> Response:
        if name not in photos:
            raise HTTPException(404, f"no sample {name}")
        return Response(photos[name].read_bytes(), media_type="image/jpeg", headers=_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404, f"no file {name}")
        return send(name, FILES[name])


def describe_interface(schema: dict[str, Any]) -> str:
    """The interface as an HTML page without scripts, from its OpenAPI description."""
    parts = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            about = operation.get("description") or operation.get("summary", "")
            parts.append(f"<p>{html.escape(about)}</p>")
            rows = [_describe_parameter(each) for each in operation.get("parameters", [])]
            if rows:
                parts.append(_table(("Parameter", "Values", "Meaning"), rows))
            answers = [
                (f"<code>{status}</code>", html.escape(answer.get("description", "")))
                for status, answer in operation["responses"].items()
            ]
            parts.append(_table(("Answer", "Meaning"), answers))
    info = schema["info"]
    return _PAGE.format(version=html.escape(info["version"]), body="\n".join(parts))


def _describe_parameter(parameter: dict[str, Any]) -> tuple[str, str, str]:
    given = parameter["schema"]
    kinds = [kind for kind in given.get("anyOf", [given]) if kind.get("type") != "null"]
    values = ", ".join(map(str, kinds[0]["enum"])) if "enum" in kinds[0] else kinds[0]["type"]
    default = given.get("default")
    if default is not None:
        values += f" (default: {default})"
    name = f"<code>{html.escape(parameter['name'])}</code>"
    return name, html.escape(values), html.escape(parameter.get("description", ""))


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>dafast: the interface</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
td, th {{ text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; }}
pre {{ overflow-x: auto; }}</style></head>
<body><h1>dafast {version}: the interface</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>.</p>
<pre>curl --data-binary @photo.jpg -o depth.png 'localhost:8000/v1/depth'
curl -F file=@photo.jpg -o points.ply 'localhost:8000/v1/depth?format=ply&amp;fov=60'
curl --json '{{"url": "https://example.org/photo.jpg"}}' 'localhost:8000/v1/depth?format=json'</pre>
{body}
</body></html>
"""

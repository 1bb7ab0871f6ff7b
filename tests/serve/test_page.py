"""The page of `dafast demo` in a browser."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dafast.serve import ServerSettings
from dafast.serve.page import FILES, samples
from tests.serve.running import Running
from tests.serve.test_app import client_of

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FOLDER = Path(__file__).resolve().parents[2] / "dafast" / "serve" / "page"


def test_the_server_sends_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    with client_of(monkeypatch, page=True) as (client, _):
        page = client.get("/")
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        for name, kind in FILES.items():
            assert client.get(f"/page/{name}").headers["content-type"].startswith(kind)
        about = client.get("/page/about.json").json()
        assert [model["id"] for model in about["models"]] == ["nano"]
        assert about["samples"] == list(samples()) and len(samples()) >= 3
        for name in about["samples"]:
            assert client.get(f"/page/samples/{name}.jpg").content[:2] == b"\xff\xd8"
        for wrong in ("/page/index.py", "/page/..%2Fapp.py", "/page/samples/x.jpg"):
            assert client.get(wrong).status_code == 404
    with client_of(monkeypatch) as (client, _):
        assert client.get("/").status_code == 404  # `dafast serve` has no page
        assert "v1/depth" in client.get("/docs").text


def test_the_page_names_no_other_host() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://127.0.0.1:8000", "")
        assert "://" not in text, path.name


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[Any, Running, list[str]]]:
    """The page with a photo, the server, and what went wrong or left the machine."""
    if BROWSER is None:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    problems: list[str] = []
    server = Running(ServerSettings(dtype="float32", device="cpu", page=True))
    try:
        with playwright.sync_playwright() as driver:
            options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
            options += ["--use-fake-device-for-media-stream"]
            browser = driver.chromium.launch(executable_path=BROWSER, args=options)
            tab = browser.new_page(viewport={"width": 1000, "height": 800})
            tab.set_default_timeout(120_000)
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on(
                "console",
                lambda line: problems.append(line.text) if line.type == "error" else None,
            )
            tab.on(
                "request",
                lambda request: (
                    None
                    if request.url.startswith((server.address, "blob:", "data:"))
                    else problems.append(request.url)
                ),
            )
            server.wait()
            tab.goto(server.address)
            tab.wait_for_selector("#samples img")
            yield tab, server, problems
            browser.close()
    finally:
        server.close()


def upload(tab: Any, name: str, data: bytes) -> None:
    tab.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
    tab.wait_for_selector(f"#status:has-text('{name}')")


@pytest.fixture
def photo(seed: int) -> bytes:
    pixels = np.random.randint(0, 256, (6, 9, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((135, 90)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow  # a browser
def test_a_photo_gives_a_map_values_points_and_files(page: Any, photo: bytes) -> None:
    tab, server, problems = page
    upload(tab, "mine.png", photo)
    assert "135 x 90 pixels, disparity" in tab.inner_text("#status")

    answer = server.client.post("/v1/depth", params={"format": "json"}, content=photo).json()
    tab.evaluate("document.querySelector('#compare').scrollIntoView()")
    box = tab.locator("#compare").bounding_box()
    tab.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.7 * box["height"])
    text = tab.inner_text("#value")
    column, row = (
        int(text.split(f"{word} ")[1].split(",")[0].split(":")[0]) for word in ("Column", "row")
    )
    assert abs(column - 40) <= 1 and abs(row - 63) <= 1
    values = np.frombuffer(base64.b64decode(answer["data"]), "<f4").reshape(90, 135)
    assert float(text.rsplit(" ", 1)[1]) == pytest.approx(values[row, column], rel=1e-3)
    tab.keyboard.press("Shift+ArrowRight")
    assert f"Column {column + 1}, row {row}" in tab.inner_text("#value")

    tab.fill("#split", "20")
    assert "20%" in tab.evaluate("document.getElementById('depth').style.clipPath")
    before = tab.evaluate("document.getElementById('depth').toDataURL()")
    tab.select_option("#palette", "gray")
    assert tab.evaluate("document.getElementById('depth').toDataURL()") != before

    tab.evaluate("document.getElementById('low').value = 30")
    tab.dispatch_event("#low", "input")
    far = values.min() + 0.3 * (values.max() - values.min())
    shown = tab.inner_text("#range").removeprefix("far ").split(",")[0]
    assert float(shown) == pytest.approx(far, rel=1e-3)

    for name in ("png16", "npy"):
        with tab.expect_download() as download:
            tab.click(f"#download-{name}")
        direct = server.client.post("/v1/depth", params={"format": name}, content=photo)
        assert Path(download.value.path()).read_bytes() == direct.content
        assert download.value.suggested_filename.startswith(f"mine_{name}.")

    tab.click("#tab-cloud")
    tab.wait_for_selector("#cloud-note:has-text('points')")
    assert "12150 points" in tab.inner_text("#cloud-note")
    still = tab.evaluate("document.getElementById('cloud').toDataURL()")
    tab.focus("#cloud")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.getElementById('cloud').toDataURL()") != still
    tab.click("#tab-map")
    assert problems == []


@pytest.mark.slow
def test_a_wrong_file_is_explained_and_the_next_photo_works(page: Any, photo: bytes) -> None:
    tab, _, problems = page
    upload(tab, "next.png", photo)
    tab.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"})
    tab.wait_for_selector("#status.bad")
    assert tab.inner_text("#status").startswith("This file cannot be read as an image (")
    assert "JPEG, PNG, WebP, TIFF and HEIC work" in tab.inner_text("#status")
    assert all("415" in problem for problem in problems)  # the browser's own line
    problems.clear()
    upload(tab, "again.png", photo)
    assert tab.locator("#status.bad").count() == 0
    tab.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b""})
    tab.wait_for_selector("#status.bad:has-text('no.png: this file is empty')")
    assert problems == []


@pytest.mark.slow
def test_the_camera_and_the_clipboard_give_photos(page: Any) -> None:
    tab, _, problems = page
    tab.context.clear_permissions()
    tab.click("#camera")
    tab.wait_for_selector("#status.bad:has-text('the browser refuses it')")
    tab.context.grant_permissions(["camera"])
    tab.click("#camera")
    tab.wait_for_selector("#shoot:visible")
    tab.keyboard.press("Enter")  # the button has the focus
    tab.wait_for_selector("#status:has-text('camera: ')")
    assert not tab.locator("#video").is_visible()

    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.evaluate(
        """async () => {
            const canvas = new OffscreenCanvas(120, 80);
            canvas.getContext("2d").fillRect(0, 0, 60, 80);
            const image = await canvas.convertToBlob({ type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
        }"""
    )
    tab.keyboard.press("Control+v")
    tab.wait_for_selector("#status:has-text('120 x 80 pixels')")
    tab.evaluate("navigator.clipboard.writeText('text')")
    tab.keyboard.press("Control+v")
    tab.wait_for_selector("#status.bad:has-text('The clipboard has no picture')")
    assert problems == []


@pytest.mark.slow
def test_the_keyboard_reaches_everything(page: Any) -> None:
    tab, _, problems = page
    tab.reload()
    tab.wait_for_selector("#samples img")
    seen = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        focused = tab.evaluate(
            "(({ activeElement: e }) => e.id || e.firstChild?.alt || e.tagName)(document)"
        )
        if focused in seen:
            break
        seen.append(focused)
        if focused == "Sample photo: coffee":
            tab.keyboard.press("Enter")
            tab.wait_for_selector("#status:has-text('coffee.jpg')")
        elif focused == "compare":
            tab.keyboard.press("ArrowLeft")
            assert tab.inner_text("#value").startswith("Column ")
        elif focused == "split":
            tab.keyboard.press("Home")
            assert "0%" in tab.evaluate("document.getElementById('depth').style.clipPath")
    expected = ("file", "camera", "tab-map", "palette", "low", "high", "reset", "fov", "SUMMARY")
    assert {"compare", "split", "download-png16", "download-glb", *expected} <= set(seen)
    tab.focus("#tab-map")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_selector("#cloud-note:has-text('points')")
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#view-map").is_visible()
    assert problems == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it(page: Any, photo: bytes, dark: bool) -> None:
    tab, _, problems = page
    tab.emulate_media(color_scheme="dark" if dark else "light")
    tab.set_viewport_size({"width": 360, "height": 740})
    upload(tab, f"phone{dark}.png", photo)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    ink, paper = (
        tab.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    light, dark_ = ((int(c) for c in rgb[4:-1].split(",")) for rgb in (paper, ink))
    assert (sum(light) < sum(dark_)) == dark
    unnamed = tab.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas')].filter((e) => !"
        "(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.querySelector('img[alt]')))"
        ".length"
    )
    assert unnamed == 0  # for a screen reader
    assert problems == []

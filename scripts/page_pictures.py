"""Takes docs/images/page.jpg: the page of `dafast demo` in headless Chromium, with nano.

`python scripts/page_pictures.py` needs playwright and Chromium. `--all FOLDER` writes PNG files of
the page in light and dark, of the points, of an error, and on a phone, to look at; it fails if the
page reports an error.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "images" / "page.jpg"
WIDTH, HEIGHT = 1000, 760
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def choose(tab: Any, name: str, path: Path) -> None:
    """Gives the page a photo and waits for its depth."""
    tab.set_input_files("#file", path)
    tab.wait_for_selector(f"#status:has-text('{name}')")


def take_all(tab: Any, folder: Path) -> None:
    """Pictures of every state of the page."""
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        tab.screenshot(path=folder / f"{name}.png", full_page=True)

    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for width in (WIDTH, 360):
            tab.set_viewport_size({"width": width, "height": HEIGHT})
            tab.click("#tab-map")
            take(f"map-{scheme}-{width}")
            tab.click("#tab-cloud")
            tab.wait_for_selector("#cloud-note:has-text('points')")
            take(f"cloud-{scheme}-{width}")
    tab.set_input_files("#file", ROOT / "pyproject.toml")
    tab.wait_for_selector("#status.bad")
    take("error-dark-360")


def take_pictures(address: str, folder: Path | None) -> list[str]:
    """Writes the pictures, and returns the errors of the page."""
    problems: list[str] = []
    with sync_playwright() as driver:
        options = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=BROWSER, args=options)
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.set_default_timeout(120_000)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(address)
        tab.wait_for_selector("#samples img")
        choose(tab, "coffee.jpg", ROOT / "examples" / "photos" / "coffee.jpg")
        box = tab.locator("#compare").bounding_box()
        tab.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"])
        if folder is None:
            picture = Image.open(io.BytesIO(tab.screenshot(full_page=True))).convert("RGB")
            picture.save(OUT, quality=85, optimize=True)
            print(f"wrote {OUT.relative_to(ROOT)}, {picture.width}x{picture.height}")
        else:
            take_all(tab, folder)
        browser.close()
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="every state, as PNG files")
    options = parser.parse_args()
    command = [sys.executable, "-m", "dafast", "demo", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().removeprefix("serving on ").strip()
            problems = take_pictures(address, options.all)
        finally:
            server.terminate()
    print("\n".join(problems), file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

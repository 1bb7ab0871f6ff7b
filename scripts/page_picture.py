"""Draws docs/images/page.jpg: the page of `dafast demo`. Needs playwright and Chromium.

python scripts/page_picture.py
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

from scripts.output_pictures import ROOT


def main() -> None:
    """Starts the page, chooses a sample, and saves what a visitor sees."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "dafast", "demo", "--port", str(port)])
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            tab = browser.new_page(viewport={"width": 900, "height": 900})
            tab.set_default_timeout(120_000)
            for attempt in range(120):
                try:
                    tab.goto(f"http://127.0.0.1:{port}")
                    break
                except Exception:
                    if attempt == 119 or server.poll() is not None:
                        raise
                    tab.wait_for_timeout(1000)
            tab.click("#samples > :nth-child(2)")
            tab.wait_for_selector("#status:has-text('pixels')")
            tab.click("#compare")
            shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
            shot.save(ROOT / "docs" / "images" / "page.jpg", quality=88)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

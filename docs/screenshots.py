"""Photographs the README's two reports into docs/assets: report.webp and watermark.webp, by Playwright and Chromium.

python docs/screenshots.py DEMO/report.html DIAGNOSIS/report.html

The first is of `konkyo demo --out DEMO`, the second of the command in examples/marked_scenes.py with `--out DIAGNOSIS`.
"""

from __future__ import annotations

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ASSETS = Path(__file__).parent / "assets"
PLACES = {"report.webp": (58, 860), "watermark.webp": (58, 905)}
"""From which row of pixels to which: without the bar at the top."""


def main() -> None:
    """Opens each page as a reader would, 1,200 pixels wide, and keeps its upper part."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for page, (name, (top, bottom)) in zip(sys.argv[1:], PLACES.items(), strict=True):
            tab = browser.new_page(viewport={"width": 1200, "height": 1000})
            tab.goto(Path(page).absolute().as_uri())
            tab.wait_for_timeout(1500)
            picture = Image.open(BytesIO(tab.screenshot()))
            picture.crop((0, top, 1200, bottom)).convert("RGB").save(ASSETS / name, quality=80)
        browser.close()


if __name__ == "__main__":
    main()

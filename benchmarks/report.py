"""How large a report is, how soon it is seen, and how fast it sorts, in a headless Chromium.

`python benchmarks/report.py [FOLDER ...]`: with the photographs of the folders, or with drawn pictures. Prints a line
per number of images; the times are medians of three loads.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from konkyo.data.images import find_images, open_image
from konkyo.report.html import html_of
from konkyo.report.page import Page
from konkyo.report.report import with_fewer_pictures

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.pages import rows

PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
SORT = """async () => {
    const times = [];
    for (let k = 0; k < 9; k++) {
        const button = document.querySelectorAll('#rows thead button')[k % 3];
        const start = performance.now();
        button.click();
        document.body.getBoundingClientRect();  // the layout, too
        times.push(performance.now() - start);
        await new Promise((done) => setTimeout(done, 60));
    }
    return times;
}"""
SLIDE = """async () => {
    const slider = document.getElementById('opacity'), times = [];
    for (const value of [10, 40, 90, 60, 20]) {
        const start = performance.now();
        slider.value = value;
        slider.dispatchEvent(new Event('input'));
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        times.push(performance.now() - start);
    }
    return times;
}"""


def measured(browser: Browser, file: Path) -> dict[str, float]:
    """Returns milliseconds to the first paint, of a sort with its layout, and of a step of the opacity slider."""
    page: Any = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri())
    page.wait_for_function(PAINT)
    page.wait_for_timeout(1000)
    values = {
        "first paint": float(page.evaluate(PAINT)),
        "sort": max(page.evaluate(SORT)),
        "slider": statistics.median(page.evaluate(SLIDE)),
    }
    page.close()
    return values


def main(folders: list[str]) -> None:
    files = [file for folder in folders for file in find_images(folder)]
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        print("| images | MB | written in s | first paint ms | slowest sort ms | slider step ms |")
        print("|---|---|---|---|---|---|")
        for count in (50, 500, 5000):
            made = list(rows(count, side=224 if count <= 500 else 48, cells=14))
            if files:
                made = [
                    replace(row, picture=open_image(files[k % len(files)])) for k, row in enumerate(made[:500])
                ] + made[500:]
            file = Path(folder) / f"{count}.html"
            start = time.perf_counter()
            file.write_text(html_of(with_fewer_pictures(Page(title=f"{count} images", rows=tuple(made)), 500)), "utf-8")
            seconds = time.perf_counter() - start
            loads = [measured(browser, file) for _ in range(3)]
            values = [statistics.median(load[name] for load in loads) for name in loads[0]]
            shown = " | ".join(f"{value:.0f}" for value in values)
            print(f"| {count} | {file.stat().st_size / 1e6:.1f} | {seconds:.1f} | {shown} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])

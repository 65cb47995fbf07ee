"""The page as its user meets it, in Chromium."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import konkyo
from konkyo.explanation.result import Explanation

Visit = Callable[..., Any]
TABS = ("Maps", "Compare", "Cover", "Deletion", "Path", "Neighbours", "Download")
HOSTILE = "<img src=x onerror=alert(1)>'\"&.png"
ALLOWED: dict[str, str] = {}
"""Findings of axe in Gradio's own parts, with the reason."""


def picture(tmp_path: Path, name: str = "cat.png") -> Path:
    file = tmp_path / name
    konkyo.data.scenes.Scenes(1, seed=7)[0].image.save(file)
    return file


def explain(page: Any, count: int = 1) -> None:
    page.click("#explain")
    page.wait_for_function(f"document.querySelectorAll('#maps .card').length === {count}")
    idle(page)


def sample(page: Any, number: int) -> None:
    page.click(f"#samples .thumbnail[data-choice='{number}']")
    page.wait_for_selector(f"#samples .thumbnail[data-choice='{number}'][aria-pressed=true]")
    idle(page)


def idle(page: Any) -> None:
    """Waits until Gradio is at rest."""
    page.wait_for_function("!document.querySelector('.generating, .progress-bar, .eta-bar')")


def methods(page: Any, *names: str) -> None:
    """Chooses these methods and no others."""
    page.click("#methods .remove-all")
    for name in names:
        page.locator("#methods input").fill(name)
        page.locator("[role=option]").filter(has_text=re.compile(rf"^\W*{name} ·")).first.click()
    page.keyboard.press("Escape")


def upload(page: Any, file: Path) -> None:
    page.set_input_files("#upload input[type=file]", str(file))


def test_upload_choose_explain_and_download(page: Any, tmp_path: Path) -> None:
    file = picture(tmp_path)
    upload(page, file)
    page.wait_for_selector("#picture img[alt^='cat.png']")
    page.fill("#class input, #class textarea", "cat")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#chosen').innerText.includes('cat')")
    explain(page)
    expected = konkyo.explain(konkyo.load("konkyo/scenes-classifier"), file, method="grad_cam", target="cat")
    assert "Grad" not in page.inner_text("#maps h3")
    assert page.inner_text("#maps h3") == "grad_cam"
    assert "decided:" in page.inner_text("#maps")
    drawn = page.get_attribute("#maps .card img", "src")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))), dtype=np.float32)
    assert np.abs(shown - np.asarray(expected.overlay(0), dtype=np.float32)).mean() < 6  # WebP between
    page.click("#tab-download-button, button[role=tab]:has-text('Download')")
    page.click("#download-safetensors")
    with page.expect_download() as download:
        page.click("#links a")
    download.value.save_as(tmp_path / "maps.safetensors")
    torch.testing.assert_close(Explanation.load(tmp_path / "maps.safetensors").maps, expected.maps)
    page.click("#download-html")
    page.wait_for_selector("#links a[download$='.html']")
    assert "konkyo.compare" in page.inner_text("#code")


def test_a_region_is_covered_with_the_mouse_and_by_numbers(page: Any) -> None:
    page.click("button[role=tab]:has-text('Cover')")
    stage = page.locator("#region .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_selector("#covering table")
    sides = [page.input_value(f"#side-{name} input") for name in ("left", "top", "right", "bottom")]
    assert np.abs(np.array([20, 30, 60, 80]) - np.array([float(side) for side in sides])).max() <= 1
    before = page.inner_text("#covering")
    assert "The score" in before
    page.fill("#side-left input", "0")
    page.fill("#side-top input", "0")
    page.click("#cover button, button#cover")
    page.wait_for_function("before => document.querySelector('#covering').innerText !== before", arg=before)


def test_a_long_computation_is_stopped(page: Any) -> None:
    methods(page, "grad_cam", "rise")
    page.click("#explain")
    page.wait_for_selector("#maps .card")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.startsWith('Stopped')")
    assert page.locator("#maps .card").count() == 1
    page.click("#choices .chip >> nth=1")
    page.wait_for_selector("#choices .chip[aria-pressed=true] >> nth=0")
    page.wait_for_selector("#maps .card", state="detached")


def test_two_maps_are_compared_with_a_slider(page: Any) -> None:
    methods(page, "grad_cam", "eigen_cam")
    explain(page, 2)
    page.click("button[role=tab]:has-text('Compare')")
    reveal = page.locator("#compare [data-reveal]")
    reveal.wait_for()
    reveal.focus()
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('#compare .reveal').style.getPropertyValue('--at')") == "0%"
    assert page.inner_text("#compare .reveal-names").split() == ["grad_cam", "eigen_cam"]
    page.click("button[role=tab]:has-text('Deletion')")
    page.click("#measure")
    page.wait_for_selector("#curves .animation")
    page.locator("#curves [data-frame]").first.fill("20")
    assert page.locator("#curves .animation >> nth=0").locator(".frame:not([hidden])").inner_text().startswith("100%")


def test_a_click_takes_the_smallest_box(page: Any) -> None:
    pytest.importorskip("transformers")
    page.click("#model input")
    page.click("[role=option]:has-text('scenes-detr')")
    page.wait_for_selector("#picture .box")
    sample(page, 1)  # with more than one detection
    before = page.locator("#picture .box[aria-pressed=true]").get_attribute("data-choice")
    other = page.locator(f"#picture .box:not([data-choice='{before}'])").last  # the smallest of the others
    number = other.get_attribute("data-choice")
    other.click()
    page.wait_for_selector(f"#picture .box[aria-pressed=true][data-choice='{number}']")
    explain(page)
    assert page.inner_text("#maps h3") == "odam"


def test_the_keyboard_alone_does_the_main_job(visit: Visit) -> None:
    page = visit()

    def reach(selector: str) -> None:
        for _ in range(80):
            if page.evaluate("s => document.activeElement.closest(s) !== null", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    reach("#samples .thumbnail[data-choice='1']")
    page.keyboard.press("Enter")
    page.wait_for_selector("#samples .thumbnail[data-choice='1'][aria-pressed=true]")
    page.wait_for_function("document.activeElement.matches('.thumbnail[data-choice=\"1\"]')")  # it stays where it was
    reach("#choices .chip[data-choice='1']")
    page.keyboard.press("Space")
    page.wait_for_selector("#choices .chip[data-choice='1'][aria-pressed=true]")
    reach("#explain")
    page.keyboard.press("Enter")
    page.wait_for_selector("#maps .card")
    reach("[role=tab]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#compare .reveal")
    reach("#compare [data-reveal]")
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('#compare .reveal').style.getPropertyValue('--at')") == "0%"
    page.focus("[role=tab][aria-selected=true]")
    for key, part in (("End", "#download-npz"), ("ArrowRight", "#maps"), ("ArrowLeft", "#download-npz")):
        page.keyboard.press(key)
        page.wait_for_selector(part)


def test_the_language_is_that_of_the_browser_and_is_switched(visit: Visit) -> None:
    page = visit(locale="ja-JP")
    words = "() => document.documentElement.lang + document.querySelector('#explain').innerText"
    page.wait_for_function(f"({words})() === 'ja説明する'")
    assert "マップはまだ" in page.inner_text("#maps")
    page.click("#language label:has-text('English')")
    page.wait_for_function(f"({words})() === 'enExplain'")
    assert "No maps yet" in page.inner_text("#maps")


def test_hostile_names_and_files_stay_text(page: Any, tmp_path: Path) -> None:
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    contents = picture(tmp_path).read_bytes()
    page.set_input_files("#upload input[type=file]", {"name": HOSTILE, "mimeType": "image/png", "buffer": contents})
    page.wait_for_function("!document.querySelector('#picture img').alt.startsWith('scene')")
    assert page.locator("img[src=x]").count() == 0
    page.set_input_files(
        "#upload input[type=file]",
        {"name": "page.png", "mimeType": "image/png", "buffer": b"<script>alert(1)</script>"},
    )
    page.wait_for_selector(".toast-body, [data-testid=toast-body]")
    assert re.search("not an image", page.inner_text("body"))
    page.fill("#class input, #class textarea", "<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1500)
    assert page.locator("img[src=x]").count() == 0


def test_axe_finds_nothing_serious(page: Any) -> None:
    """On the page with the first tab; then in the tabs, for nothing else of the page is another."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    explain(page)
    for tab in TABS:
        page.click(f"button[role=tab]:has-text('{tab}')")
        first = tab == TABS[0]
        result = axe.Axe().run(page, "html" if first else "#tabs")
        assert len(result.response["passes"]) > (15 if first else 5), tab  # it did look
        serious = [
            (v["id"], node["html"][:160])
            for v in result.response["violations"]
            if v["impact"] in ("serious", "critical") and v["id"] not in ALLOWED
            for node in v["nodes"]
        ]
        assert serious == [], tab


def test_no_part_is_wider_than_the_window(page: Any) -> None:
    explain(page)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for tab in TABS:
            page.wait_for_timeout(500 if width < 1280 else 0)  # Gradio has found which tabs have a place
            if width < 1280 and not page.locator(f"[role=tab]:has-text('{tab}')").count():  # those without a place
                page.click("[aria-label='More tabs']")
                page.click(f".overflow-dropdown button:has-text('{tab}')")
            else:
                page.click(f"[role=tab]:has-text('{tab}')")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab

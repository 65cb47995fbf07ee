"""The report as its reader meets it, in Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import HOSTILE, example_page
from konkyo.report.html import html_of

Visit = Callable[..., Any]
NAMES = "[...document.querySelectorAll('#rows tbody tr .open')].map(node => node.textContent)"
PIXELS = """selector => {
    const canvas = document.querySelector(selector);
    return canvas && canvas.width > 1 ? canvas.toDataURL() : '';
}"""
MAP = "#rows tbody tr:first-child td[data-column=map] canvas"


def names(page: Any) -> list[str]:
    return list(page.evaluate(NAMES))


def painted(page: Any, selector: str = MAP) -> str:
    page.locator(selector).scroll_into_view_if_needed()
    page.wait_for_function(f"() => ({PIXELS})({json.dumps(selector)}) !== ''")
    return str(page.evaluate(PIXELS, selector))


def test_wrong_decisions_come_first_by_how_far_they_are_wrong(visit: Visit) -> None:
    page = visit()
    rows = example_page().rows
    gaps = {row.name: row.probability - row.true_probability for row in rows if not row.correct}
    expected = sorted(gaps, key=lambda name: (-round(gaps[name], 5), name))
    assert names(page)[: len(expected)] == expected


def test_a_column_sorts_both_ways_and_says_so(visit: Visit) -> None:
    page = visit()
    page.click("#rows th[data-column=name] button")
    assert names(page) == [f"image-{k:03d}.png" for k in range(24)]
    assert page.get_attribute("#rows th[data-column=name]", "aria-sort") == "ascending"
    page.click("#rows th[data-column=name] button")
    assert names(page) == [f"image-{k:03d}.png" for k in reversed(range(24))]
    assert page.get_attribute("#rows th[data-column=name]", "aria-sort") == "descending"
    assert page.get_attribute("#rows th[data-column=probability]", "aria-sort") == "none"


def test_suspicion_and_least_sure_are_offered(visit: Visit) -> None:
    page = visit()
    page.select_option("#order", "suspicious")
    rows = {row.name: row for row in example_page().rows}
    values = [rows[name].suspicion for name in names(page)]
    assert values == sorted(values, reverse=True)
    page.select_option("#order", "unsure")
    values = [rows[name].probability for name in names(page)]
    assert values == sorted(values)


def test_text_and_chips_filter_and_the_count_is_told(visit: Visit) -> None:
    page = visit()
    page.click("#tools [data-chip=wrong]")
    assert len(names(page)) == 6
    assert page.inner_text("#count") == "6 of 24 shown"
    page.fill("#text", "image-003")
    assert names(page) == ["image-003.png"]
    page.fill("#text", "nowhere")
    assert names(page) == []
    assert page.is_visible("#nothing")
    page.click("#clear")
    assert len(names(page)) == 24


def test_a_cell_of_the_confusion_matrix_shows_its_images(visit: Visit) -> None:
    page = visit()
    cell = page.locator(".confusion button[data-true=tower][data-decision=cat]")
    count = int(cell.inner_text())
    cell.click()
    rows = {row.name: row for row in example_page().rows}
    assert len(names(page)) == count > 0
    assert {(rows[name].true_label, rows[name].decision) for name in names(page)} == {("tower", "cat")}


def test_sliders_change_the_pixels(visit: Visit) -> None:
    page = visit()
    first = painted(page)
    page.locator("#opacity").fill("0")
    page.wait_for_function(f"before => ({PIXELS})({json.dumps(MAP)}) !== before", arg=first)
    bare = painted(page)
    thumb = painted(page, "#rows tbody tr:first-child .name canvas")
    assert bare == thumb  # without opacity the map leaves the picture as it is
    page.locator("#opacity").fill("70")
    page.wait_for_function(f"before => ({PIXELS})({json.dumps(MAP)}) === before", arg=first)
    page.locator("#threshold").fill("100")
    page.wait_for_function(f"before => ({PIXELS})({json.dumps(MAP)}) !== before", arg=first)


def test_keys_do_what_the_mouse_does(visit: Visit) -> None:
    page = visit()
    first = painted(page)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    page.wait_for_function(f"before => ({PIXELS})({json.dumps(MAP)}) !== before", arg=first)
    assert page.input_value("#method") == "hires_cam"
    page.keyboard.press("[")
    page.keyboard.press(".")
    assert (page.input_value("#opacity"), page.input_value("#threshold")) == ("65", "5")
    page.keyboard.press("s")
    assert page.input_value("#order") == "unsure"
    second = names(page)[1]
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    assert page.inner_text("#detail-title") == second
    page.keyboard.press("k")
    assert page.inner_text("#detail-title") == names(page)[0]
    page.keyboard.press("Escape")
    assert not page.is_visible("#detail")
    page.keyboard.press("?")
    assert page.is_visible("#help")


def test_the_address_holds_the_view(visit: Visit) -> None:
    page = visit()
    page.click("#tools [data-chip=wrong]")
    page.keyboard.press("[")
    page.click("#rows th[data-column=probability] button")
    page.click("#rows tbody tr:nth-child(2) .open")
    seen, fragment = names(page), page.evaluate("location.hash")
    again = visit(fragment)
    assert names(again) == seen
    assert again.input_value("#opacity") == "65"
    assert again.inner_text("#detail-title") == seen[1]


def test_the_detail_view_has_maps_reasons_and_neighbours(visit: Visit) -> None:
    page = visit("#open=3")
    text = page.inner_text("#detail")
    for part in ("Boat, called tower", "cat against tower", "train-1", "similarity 0.93", "covered", "own scale"):
        assert part in text
    canvases = "() => [...document.querySelectorAll('#detail canvas')].every(canvas => canvas.width > 1)"
    page.wait_for_function(canvases)


def test_canvas_and_overlay_draw_the_same(visit: Visit) -> None:
    from konkyo.draw.overlay import overlay
    from konkyo.report.assets import colour_tables

    page = visit()
    painted(page)
    rgb = page.evaluate(f"""() => {{
        const canvas = document.querySelector({json.dumps(MAP)});
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, canvas.height, Array.from(data)];
    }}""")
    import numpy as np
    import torch
    from PIL import Image

    row = {row.name: row for row in example_page().rows}[names(page)[0]]
    drawn = np.array(rgb[2], dtype=np.float32).reshape(rgb[1], rgb[0], 4)[..., :3]
    assert row.picture is not None
    expected = overlay(row.picture.resize((rgb[0], rgb[1]), Image.Resampling.BICUBIC), row.maps[0].values)
    assert np.abs(drawn - np.asarray(expected, dtype=np.float32)).mean() < 6  # WebP and another enlargement between
    assert set(colour_tables()) == {"sequential", "diverging"}
    assert torch.isfinite(row.maps[0].values).all()


def test_dark_follows_the_system_and_the_switch(visit: Visit) -> None:
    page = visit(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.click("#theme")
    light = page.evaluate(colour)
    assert dark == "rgb(22, 25, 29)"
    assert light == "rgb(251, 251, 249)"
    assert "theme=light" in page.evaluate("location.hash")


def test_japanese_is_in_the_file(visit: Visit) -> None:
    page = visit()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.is_visible("text=rests on the lower right corner >> nth=0")
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "ja"
    assert page.inner_text("#h-images") == "画像"
    assert page.is_visible("text=右下に頼っています >> nth=0")
    assert not page.is_visible("text=rests on the lower right corner >> nth=0")
    assert visit(locale="ja-JP").inner_text("#h-findings") == "所見"


def test_hostile_names_stay_text(visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(html_of(example_page(hostile=True)), encoding="utf-8")
    page = visit(file=file)
    assert HOSTILE in names(page)
    assert page.title() == HOSTILE
    page.click("#tools >> text=wrong")
    page.evaluate("location.hash = '#open=0'")
    page.wait_for_selector("#detail[open]")
    assert page.inner_text("#detail-title") == HOSTILE
    assert page.locator("img[src=x]").count() == 0


def test_print_has_the_images_and_no_controls(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    page.wait_for_timeout(900)
    file = tmp_path / "report.pdf"
    page.pdf(path=str(file), format="A4")
    assert file.stat().st_size > 20_000
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("#print canvas").count() == 10  # six wrong ones, five unsure, one of them both
    evidence = page.locator("#findings > .finding .gallery img")
    assert evidence.count() == 9
    assert all(image.is_visible() for image in evidence.all())
    assert not page.is_visible("#tools")
    assert page.evaluate("[...document.querySelectorAll('details')].every(entry => entry.open)")


@pytest.mark.parametrize("width", [390, 840, 1280])
def test_no_part_of_the_page_is_wider_than_the_window(visit: Visit, tmp_path: Path, width: int) -> None:
    page = example_page()
    values = {f"a measure with a long name, number {k}": k / 9 for k in range(9)}
    file = tmp_path / "wide.html"
    file.write_text(html_of(replace(page, rows=tuple(replace(row, values=values) for row in page.rows))), "utf-8")
    view = visit(file=file, width=width)
    assert view.evaluate("document.documentElement.scrollWidth") <= width


def test_the_asked_class_has_no_column_where_another_column_holds_it(visit: Visit, tmp_path: Path) -> None:
    page, file = example_page(), tmp_path / "asked.html"
    for columns, rows in enumerate(
        ([replace(row, asked=row.true_label) for row in page.rows], [replace(row, asked="dog") for row in page.rows])
    ):
        file.write_text(html_of(replace(page, rows=tuple(rows))), "utf-8")
        assert visit(file=file).locator("#rows th[data-column=asked]").count() == columns


def test_findings_and_images_are_there_without_javascript(visit: Visit) -> None:
    page = visit(java_script_enabled=False)
    assert page.is_visible("text=rests on the lower right corner >> nth=0")
    assert page.locator(".static tbody tr").count() == 24
    assert page.locator(".static img").count() == 24
    assert not page.is_visible("#tools")


@pytest.mark.parametrize("fragment", ["", "#open=3", "#lang=ja"])
def test_axe_finds_nothing_serious(visit: Visit, fragment: str) -> None:
    """In light; in dark, where nothing but colours is another, its contrasts."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(fragment)
    page.evaluate("document.querySelectorAll('details').forEach(entry => (entry.open = true))")
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        painted(page)
        result = axe.Axe().run(page, options={"resultTypes": ["violations"], **rules})
        assert len(result.response["passes"]) > (0 if rules else 15)  # it did look
        serious = [
            (v["id"], v["nodes"][0]["html"][:200])
            for v in result.response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], scheme


def test_the_bar_leads_to_its_part_below_many_rows(visit: Visit, tmp_path: Path) -> None:
    """Rows that are made on the way move what comes after them."""
    file = tmp_path / "many.html"
    file.write_text(html_of(example_page(400)), encoding="utf-8")
    page = visit(file=file)
    for name in ("classes", "provenance", "images"):
        page.click(f".bar a[href='#{name}']")
        page.wait_for_function(
            f"() => {{ const top = document.getElementById('{name}').getBoundingClientRect().top;"
            " const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;"
            " return (top >= -1 && top < 150) || end; }",
            timeout=5000,
        )

"""The survey in a browser: three raters, one of whom reloads, keys alone, a phone, a lost connection, one file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.surveys import METHODS, served, small_form
from konkyo.apps.cli.main import app
from konkyo.survey import collect, write_offline
from konkyo.survey.form import Form
from konkyo.survey.order import order_of
from konkyo.survey.store import Store

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
HOSTILE = "<img src=x onerror=document.title='owned'>"
READY = "[data-answer=left][aria-disabled=false]"
BUTTONS = {"1": "left", "2": "right", "0": "tie", "9": "cannot_judge"}


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages that may ask their own server alone, and must write nothing on the console but what is allowed."""
    contexts, troubles = [], list[str]()

    def opened(address: str, *, may_fail: bool = False, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1000, "height": 800}, "locale": "en-US", **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        own = address.partition("#")[0].rsplit("/", 1)[0]
        page.on("request", lambda r: None if r.url.startswith((own, "data:", "blob:")) else troubles.append(r.url))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        if not may_fail:
            page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def press(page: Any, key: str) -> None:
    page.wait_for_selector(READY)
    page.keyboard.press(key)


def wait_for(page: Any, text: str, where: str = "#status") -> None:
    """Waits until the page says so; a function of Playwright's would need `eval`, which the page's policy forbids."""
    page.locator(where).filter(has_text=text).wait_for()


def asked(page: Any) -> int:
    """Returns the number of the question that is shown."""
    return int(page.inner_text("#progress-text").split()[1])


def violations(page: Any) -> list[str]:
    """Returns what axe-core finds that is serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]


def code_of(page: Any) -> str:
    return str(page.inner_text("#code"))


@pytest.mark.timeout(900)
def test_three_raters_answer_one_after_a_reload(visit: Callable[..., Any], tmp_path: Path) -> None:
    """With keys, with the mouse on a phone and in Japanese, and with a reload in the middle: nothing is lost."""
    form = small_form(tmp_path / "form", target=HOSTILE)
    file, count = tmp_path / "answers.sqlite", len(form.items)
    given: dict[str, list[str]] = {}
    with served(tmp_path / "form", file) as (address, _, process):
        keys = visit(address)  # keys alone: not one click
        assert violations(keys) == []
        while keys.evaluate("document.activeElement.id") != "agree":
            keys.keyboard.press("Tab")
        keys.keyboard.press("Enter")
        keys.wait_for_selector(READY)
        assert violations(keys) == []
        assert keys.inner_text("#question") == f"Which map is better for {HOSTILE}?" or "Left" in keys.inner_text(
            "#question"
        )
        pressed = [list(BUTTONS)[n % 4] for n in range(count)]
        for number, key in enumerate(pressed, 1):
            assert asked(keys) == number
            press(keys, key)
        keys.wait_for_selector("#thanks:visible")
        wait_for(keys, "All answers are saved")
        assert violations(keys) == []
        given[code_of(keys)] = [BUTTONS[key] for key in pressed]

        phone = visit(address, viewport={"width": 360, "height": 640}, locale="ja-JP", has_touch=True, is_mobile=True)
        assert phone.evaluate("document.documentElement.lang") == "ja"
        phone.tap("#agree")
        for number in range(count):
            phone.wait_for_selector(READY)
            assert phone.evaluate("document.documentElement.scrollWidth") <= 360
            box = phone.locator("[data-answer=tie]").bounding_box()
            assert box["y"] + box["height"] <= 640  # without scrolling
            assert min(box["height"], box["width"]) >= 44  # large enough for a finger
            phone.tap(f"[data-answer={'left' if number % 2 else 'right'}]")
        phone.wait_for_selector("#thanks:visible")
        assert "ありがとう" in phone.inner_text("#thanks")
        wait_for(phone, "すべての回答を保存しました")
        given[code_of(phone)] = ["left" if n % 2 else "right" for n in range(count)]

        again = visit(address)
        again.click("#agree")
        for _ in range(2):
            press(again, "1")
        wait_for(again, "All answers are saved")
        code = code_of(again)
        again.reload()
        again.wait_for_selector(READY)
        assert (asked(again), code_of(again)) == (3, code)
        other = visit(f"{address}#{code}")  # and on another device
        other.wait_for_selector(READY)
        assert asked(other) == 3
        other.click("#back")
        other.wait_for_selector(READY)
        assert other.get_attribute("[data-answer=left]", "aria-pressed") == "true"
        press(other, "2")  # a changed mind
        for _ in range(count - 2):
            press(other, "0")
        other.wait_for_selector("#thanks:visible")
        wait_for(other, "All answers are saved")
        given[code] = ["left", "right", *["tie"] * (count - 2)]
        assert keys.title() == "Maps"
        process.kill()
    store = Store(file)
    answers = store.answers()
    store.close()
    for rater, words in given.items():
        order = order_of(form, rater)
        kept = {a.item: a for a in answers if a.rater == rater}
        assert [kept[s.item.id].answer for s in order] == words
        assert [(kept[s.item.id].method_left, kept[s.item.id].method_right) for s in order] == [
            (s.left, s.right) for s in order
        ]
        assert all(290 <= a.ms < 900_000 for a in kept.values())
    assert len(answers) == 3 * count
    check_analysis(form, given, file, tmp_path)


def check_analysis(form: Form, given: dict[str, list[str]], file: Path, folder: Path) -> None:
    """Exports and analyses what was answered, by the commands, and compares with counts by hand."""
    table, analysis = folder / "answers.csv", folder / "analysis"
    form_folder = str(folder / "form")
    for words in (
        ["export", str(file), "--out", str(table)],
        ["analyse", str(table), "--form", form_folder, "--out", str(analysis), "--lang", "en", "--resamples", "50"],
    ):
        reply = CliRunner().invoke(app, ["survey", *words])
        assert reply.exit_code == 0, reply.output
    shown = json.loads((analysis / "result.json").read_text(encoding="utf-8"))
    votes = [
        (showing.left == METHODS[0], word)
        for rater, words in given.items()
        for showing, word in zip(order_of(form, rater), words, strict=True)
        if showing.item.kind == "plain"
    ]
    wins = sum(word == ("left" if on_left else "right") for on_left, word in votes)
    ties, unjudged = (sum(word == kind for _, word in votes) for kind in ("tie", "cannot_judge"))
    rates = {p["ties"]: p for p in shown["preferences"] if p["raters"] == "all"}
    judged = len(votes) - unjudged
    assert (rates["half"]["votes"], rates["dropped"]["votes"]) == (judged, judged - ties)
    assert rates["half"]["rate"] == pytest.approx((wins + ties / 2) / judged)
    assert rates["dropped"]["rate"] == pytest.approx(wins / (judged - ties))
    assert (shown["raters"], shown["items"], shown["answers"]) == (3, 4, 3 * len(form.items))
    assert {quality["rater"] for quality in shown["quality"]} == set(given)
    assert shown["cannot_judge"] == pytest.approx(unjudged / len(votes))
    assert "3 raters compared maps of secret_alpha and secret_beta on 4 items" in (analysis / "paragraph.md").read_text(
        encoding="utf-8"
    )


def test_a_lost_connection_loses_nothing_and_a_double_click_answers_once(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    form = small_form(tmp_path / "form", plain=3, repeats=0, attention=0)
    with served(tmp_path / "form", tmp_path / "a.sqlite") as (address, _, _):
        page = visit(address, may_fail=True)
        page.click("#agree")
        page.wait_for_selector(READY)
        page.dblclick("[data-answer=left]")
        assert asked(page) == 2
        wait_for(page, "All answers are saved")
        page.wait_for_selector(READY)
        page.route("**/api/**", lambda route: route.abort())
        press(page, "2")
        wait_for(page, "1 answers wait")
        code = code_of(page)
        store = Store(tmp_path / "a.sqlite")
        assert len(store.answers_of(code)) == 1
        page.unroute("**/api/**")
        page.reload()  # the answer that waits is in the browser
        page.wait_for_selector(READY)
        assert asked(page) == 3
        wait_for(page, "All answers are saved")
        first, second, _ = (s.item.id for s in order_of(form, code))
        assert store.answers_of(code) == {first: "left", second: "right"}
        store.close()


def test_pictures_larger_and_codes_that_are_not_known(visit: Callable[..., Any], tmp_path: Path) -> None:
    small_form(tmp_path / "form")
    with served(tmp_path / "form", tmp_path / "a.sqlite", invite=2) as (address, links, _):
        page = visit(f"{address}#AAAAAAAA", may_fail=True)
        wait_for(page, "not known", "#consent-trouble")
        assert not page.is_visible("#agree")  # for those who were invited
        page.fill("#code-input", links[0].partition("#")[2].lower())
        page.keyboard.press("Enter")
        page.click("#agree")
        page.wait_for_selector(READY)
        page.click("#left-figure .zoom")
        assert page.is_visible("#larger")
        assert violations(page) == []
        page.keyboard.press("1")  # answers nothing while a picture is large
        page.keyboard.press("Escape")
        assert not page.is_visible("#larger")
        assert asked(page) == 1
        assert all(word not in page.content() for word in METHODS)
        page.goto(links[1])  # the link of another rater, in the same window
        page.wait_for_selector("#agree:visible")
        assert code_of(page) == links[1].partition("#")[2]


def test_one_file_asks_without_a_server(visit: Callable[..., Any], tmp_path: Path) -> None:
    form: Form = small_form(tmp_path / "form", target=HOSTILE)
    file = write_offline(form, tmp_path / "form", tmp_path / "form.html")
    page = visit(file.as_uri())
    assert violations(page) == []
    page.click("#agree")
    for key in "120":
        press(page, key)
    page.wait_for_selector(READY)
    page.reload()
    page.wait_for_selector(READY)
    assert asked(page) == 4
    for _ in range(len(form.items) - 3):
        press(page, "1")
    page.wait_for_selector("#thanks:visible")
    assert violations(page) == []
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "answers.json")
    answers = list(collect(form, [tmp_path / "answers.json"]).answers.values())
    assert [a.answer for a in answers] == ["left", "right", "tie", *["left"] * (len(form.items) - 3)]
    rater = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))["rater"]
    assert [(a.method_left, a.method_right) for a in answers] == [(s.left, s.right) for s in order_of(form, rater)]
    assert download.value.suggested_filename == f"answers-{rater}.json"
    assert page.title() == "Maps"

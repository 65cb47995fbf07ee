"""Answers in words on a page: every word is a button that shows its map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import konkyo
from helpers import speakers
from konkyo.models.texts import blip
from konkyo.report.html import html_of
from konkyo.report.page import HeatMap, ImageRow, Page
from konkyo.tasks.answers import AnswerTask
from konkyo.tasks.responses import Passage, Response

Visit = Callable[..., Any]
PIECES = ("two", " umb", "rellas", " on", " <b>")
RESPONSE = Response("what is there?", (0, 1, 2, 3, 4), PIECES)


def _row(
    tokens: tuple[int, ...], at: int, response: Response = RESPONSE, picture: Image.Image | None = None
) -> ImageRow:
    values = torch.zeros(4)
    values[at] = 1
    passage = Passage(response, tokens)
    return ImageRow(
        "one.png",
        PICTURE if picture is None else picture,
        maps=(HeatMap("grad_cam", values.view(2, 2)),),
        asked=passage.text,
        passage=passage,
    )


PICTURE = Image.new("RGB", (32, 32), (90, 120, 150))
ROWS = (_row((0, 1, 2, 3, 4), 0), _row((0,), 1), _row((1, 2), 2), _row((4,), 3))


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("answers") / "answers.html"
    file.write_text(html_of(Page("Answers", rows=ROWS)), encoding="utf-8")
    return file


def _pressed(page: Any) -> list[str]:
    return list(page.locator("#detail .word[aria-pressed=true]").all_inner_texts())


def test_the_answer_stands_in_every_row_with_its_own_words_marked(visit: Visit, answered: Path) -> None:
    page = visit(file=answered)
    assert page.locator("#rows .said").all_inner_texts() == ["two umbrellas on <b>"] * 4
    assert page.locator("#rows .asks").first.inner_text() == "what is there?"
    third = page.locator("#rows tbody tr").nth(2)
    assert third.locator(".own").all_inner_texts() == ["umbrellas"]
    assert third.locator("button.word:not(.all)").all_inner_texts() == ["two", "umbrellas", "<b>"]  # "on" has no map


def test_a_click_on_a_word_shows_its_map(visit: Visit, answered: Path) -> None:
    page = visit(file=answered)
    page.locator("#rows tbody tr").first.locator("button.word", has_text="umbrellas").click()
    assert _pressed(page) == ["umbrellas"]
    canvas = "#detail figure:nth-of-type(2) canvas"
    drawing = "selector => document.querySelector(selector).toDataURL()"
    page.wait_for_function("selector => (document.querySelector(selector) || {}).width > 1", arg=canvas)
    of_umbrellas = page.evaluate(drawing, canvas)
    page.locator("#detail button.word", has_text="two").click()
    assert _pressed(page) == ["two"]
    assert page.evaluate("document.activeElement.textContent") == "two"
    page.wait_for_function("selector => (document.querySelector(selector) || {}).width > 1", arg=canvas)
    assert page.evaluate(drawing, canvas) != of_umbrellas
    page.locator("#detail button.word.all").click()
    assert _pressed(page) == ["whole answer"]
    assert len(page.locator("#detail .said .own").all_inner_texts()) == 4


def test_answers_of_two_images_are_told_apart(visit: Visit, tmp_path: Path) -> None:
    other = Image.new("RGB", (32, 32), (10, 20, 30))
    rows = (*ROWS, _row((0,), 0, picture=other), _row((3,), 1, picture=other))
    file = tmp_path / "two.html"
    file.write_text(html_of(Page("Answers", rows=rows)), encoding="utf-8")
    page = visit(file=file)
    assert page.locator("#rows tbody tr").nth(4).locator("button.word").all_inner_texts() == ["two", "on"]


def test_pages_without_answers_have_no_column_for_them(visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "none.html"
    file.write_text(html_of(Page("Classes", rows=tuple(replace(row, passage=None) for row in ROWS))), encoding="utf-8")
    assert visit(file=file).locator("#rows th[data-column=answer]").count() == 0


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_an_explanation_brings_its_answer_to_the_page(tmp_path: Path) -> None:
    from konkyo.report.builders import Request
    from konkyo.report.of_explanations import page_of_explanations

    network = speakers.blip_captioner()
    model = konkyo.Model(network, task=AnswerTask(blip.captioner(network, speakers.tokenizer()), longest=3))
    result = konkyo.explain(model, torch.rand(1, 3, 32, 32), target=konkyo.EachToken())
    rows = page_of_explanations([result], Request()).rows
    assert [row.passage for row in rows] == list(result.passages)
    assert [row.asked for row in rows] == list(result.labels)

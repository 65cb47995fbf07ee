"""Forms: what is written is what is read; the order and the sides of every rater; the table of answers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from helpers.surveys import METHODS, small_form
from konkyo.errors import KonkyoError
from konkyo.survey.form import Answer, Form, answer_of, read_answers, write_answers
from konkyo.survey.order import ORDERS, order_of

ANSWER = Answer("ABCD2345", "000", *METHODS, "left", 1200, "2026-01-31T09:30:00Z", "0" * 64, 1)


def test_a_form_is_read_as_it_was_written(tmp_path: Path) -> None:
    form = small_form(tmp_path)
    loaded = Form.load(tmp_path, verify=True)
    assert loaded == form
    assert loaded.form_hash == form.form_hash == json.loads((tmp_path / "form.json").read_text())["form_hash"]


def test_a_form_or_picture_that_was_changed_is_refused(tmp_path: Path) -> None:
    form = small_form(tmp_path)
    text = (tmp_path / "form.json").read_text(encoding="utf-8")
    (tmp_path / "form.json").write_text(text.replace('"cat"', '"dog"'), encoding="utf-8")
    with pytest.raises(KonkyoError, match="was changed after it was made"):
        Form.load(tmp_path)
    (tmp_path / "form.json").write_text(text, encoding="utf-8")
    (tmp_path / form.items[0].original).write_bytes(b"another")
    assert Form.load(tmp_path) == form
    with pytest.raises(KonkyoError, match="is not the picture"):
        Form.load(tmp_path, verify=True)


@pytest.mark.parametrize("name", ["../secret.webp", "/etc/passwd", "a/b.webp", "a.html", ""])
def test_the_names_of_pictures_are_no_paths(tmp_path: Path, name: str) -> None:
    form = small_form(tmp_path)
    item = replace(form.items[0], original=name)
    replace(form, items=(item, *form.items[1:]), digests={**form.digests, name: "0" * 64}).save(tmp_path)
    with pytest.raises(KonkyoError, match="wrong name"):
        Form.load(tmp_path)


def test_orders_are_balanced_and_repeats_are_swapped_and_far(tmp_path: Path) -> None:
    form = small_form(tmp_path, plain=12, repeats=4, attention=2, methods=("a", "b", "c"))
    firsts = Counter[str]()
    for code in ORDERS[:200]:
        order = order_of(form, code + "234567")
        assert order == order_of(form, code)  # the rest of the code does not matter
        assert sorted(s.item.id for s in order) == sorted(item.id for item in form.items)
        shown = {s.item.id: (at, s.left, s.right) for at, s in enumerate(order)}
        plain = [s for s in order if s.item.kind == "plain"]
        pairs = Counter(frozenset((s.left, s.right)) for s in plain)
        assert pairs == {frozenset(pair): 4 for pair in combinations("abc", 2)}
        assert Counter((s.left, s.right) for s in plain) == {(x, y): 2 for x in "abc" for y in "abc" if x != y}
        for item in form.items:
            if item.of is not None:
                at, left, right = shown[item.id]
                first_at, *sides = shown[item.of]
                assert [right, left] == sides
                assert abs(at - first_at) >= 4
        firsts[order[0].item.id] += 1
    assert len(firsts) > 10  # any item may come first
    assert len({tuple((s.item.id, s.left) for s in order_of(form, code)) for code in ORDERS}) == len(ORDERS)


def test_the_order_of_a_code_is_pinned(tmp_path: Path) -> None:
    """Answers of the offline page are checked against it, so no version may change it."""
    order = order_of(small_form(tmp_path, methods=("a", "b")), "7K")
    assert [(s.item.id, s.left) for s in order] == PINNED


PINNED = [("004", "b"), ("000", "a"), ("001", "b"), ("003", "a"), ("r00", "b"), ("002", "b")]


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    answers = [ANSWER, replace(ANSWER, item="001", position=2, answer="tie"), replace(ANSWER, rater="00000000")]
    file = write_answers(answers, tmp_path / "answers.csv")
    assert read_answers(file) == [answers[2], answers[0], answers[1]]
    head = file.read_text(encoding="utf-8").splitlines()[0]
    assert head == "rater,item,method_left,method_right,answer,ms,timestamp,form_hash,position"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "LEFT"}, "unknown answer"),
        ({"ms": "soon"}, "whole numbers"),
        ({"ms": float("inf")}, "whole numbers"),
        ({"ms": -1}, "ms is from 0"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"rater": "x" * 81}, "short word"),
        ({"rater": "a\nb"}, "short word"),
        ({"item": None}, "item is missing"),
    ],
)
def test_wrong_answers_are_refused(change: dict[str, object], message: str) -> None:
    values = {name: getattr(ANSWER, name) for name in ANSWER.__dataclass_fields__} | change
    with pytest.raises(KonkyoError, match=message):
        answer_of(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form_hash": "1" * 64}, "of another form"),
        ({"item": "999"}, "unknown item"),
        ({"method_left": "other"}, "unknown method of item"),
        ({"method_left": METHODS[1]}, "twice"),
    ],
)
def test_answers_of_another_form_are_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    form = small_form(tmp_path)
    values = {name: getattr(ANSWER, name) for name in ANSWER.__dataclass_fields__} | {"form_hash": form.form_hash}
    assert answer_of(values, form).passed(form.items[0]) is None
    with pytest.raises(KonkyoError, match=message):
        answer_of(values | change, form)


def test_a_table_with_an_answer_twice_is_refused(tmp_path: Path) -> None:
    file = write_answers([ANSWER, replace(ANSWER, answer="right")], tmp_path / "answers.csv")
    with pytest.raises(KonkyoError, match="more than once"):
        read_answers(file)

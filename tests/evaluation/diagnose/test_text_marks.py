"""Marks like text: a printed label is found where it is; stripes and plain pictures say what they say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from konkyo.data.samples import Sample, Samples
from konkyo.data.sets.scenes import Scenes
from konkyo.evaluation.diagnose.text import LIKE_TEXT, share_like_text, text_finding, text_mark

CLEAN = [Scenes(10, seed=21, size=160)[i].image for i in range(10)]


def labelled(picture: Image.Image, corner: tuple[int, int] = (110, 138)) -> Image.Image:
    marked = picture.copy()
    x, y = corner
    pen = ImageDraw.Draw(marked)
    pen.rectangle((x, y, x + 45, y + 17), fill="white")
    pen.text((x + 2, y + 1), "AX 207", fill="black", font=ImageFont.load_default(13))
    return marked


def test_a_printed_label_is_found_where_it_is() -> None:
    for picture in CLEAN:
        mark = text_mark(labelled(picture))
        assert mark.score >= LIKE_TEXT
        x0, y0, x1, y1 = mark.box
        assert x0 >= 100
        assert x1 <= 160
        assert y0 >= 130
        assert y1 <= 160


def test_it_looks_only_where_it_is_asked_to() -> None:
    marked = labelled(CLEAN[0])
    assert text_mark(marked, (0, 0, 80, 80)).score < text_mark(marked, (80, 120, 160, 160)).score
    assert share_like_text([marked], [(80, 120, 160, 160)]) == 1


def test_the_score_is_the_product_of_two_shares() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (20, 10))
    assert text_mark(Image.fromarray(stripes)).score == pytest.approx(1.0, abs=0.26)
    assert text_mark(Image.new("L", (20, 20), 255)).score == 0
    checks = np.tile(np.array([100, 180], np.uint8), (20, 10))
    assert text_mark(Image.fromarray(checks)).score == 0


def test_large_pictures_are_looked_at_in_their_own_pixels() -> None:
    large = labelled(CLEAN[1]).resize((640, 640))
    x0, y0, x1, _ = text_mark(large).box
    assert x0 >= 400
    assert x1 <= 640
    assert y0 >= 520


def test_the_question_never_alarms() -> None:
    pictures = [*CLEAN[:6], *(labelled(picture) for picture in CLEAN[4:])]
    samples = Samples(tuple(map(str, range(12))), lambda i: Sample(str(i), pictures[i]))
    finding = text_finding(samples, ["a"] * 6 + ["b"] * 6)
    assert finding.severity == "unknown"
    assert finding.values["share in b"] == 1
    assert "most often in b (6 of 6)" in finding.sentence["en"]
    assert finding.evidence

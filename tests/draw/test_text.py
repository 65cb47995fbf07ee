"""Text in pictures: which fonts draw it, and what becomes of a character that none of them has."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from konkyo.draw import consistency as figures_of_consistency
from konkyo.draw import text as module
from konkyo.draw.curves import curves_figure
from konkyo.draw.sheets import Cell, Row, contact_sheet, gallery, to_image
from konkyo.draw.text import Font, clean, elided, text_lines

quick = settings(max_examples=40, deadline=None)


def drawn(text: str, size: int = 13, bold: bool = False) -> np.ndarray:
    image = Image.new("L", (400, 30), "white")
    Font(size, bold).draw(ImageDraw.Draw(image), (5, 4), clean(text), "black")
    return np.asarray(image)


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has DejaVu Sans only."""
    monkeypatch.setattr(module, "_system_fonts", lambda: ())
    module._file_of.cache_clear()
    yield
    module._file_of.cache_clear()


@quick
@given(st.text(max_size=300), st.integers(20, 300))
def test_long_texts_are_cut_to_the_width(text, width):
    font = Font(13)
    assert font.getlength(elided(text, font, width)) <= width
    lines = text_lines(text, font, width, 3)
    assert len(lines) <= 3
    assert all(font.getlength(line) <= width for line in lines)


def test_what_is_cut_and_what_is_not():
    font = Font(13)
    assert elided("short", font, 200) == "short"
    assert elided("a" * 100 + ".png", font, 100).endswith("png")
    assert text_lines("one two", font, 500, 3) == ["one two"]
    assert text_lines("", font, 500, 3) == []
    assert " ".join(text_lines("one two three four", font, 60, 9)) == "one two three four"
    assert text_lines("one two three four", font, 60, 1)[0].endswith("…")
    assert "".join(text_lines("x" * 50, font, 60, 99)) == "x" * 50


@pytest.mark.parametrize("bold", [False, True])
def test_text_that_dejavu_has_is_drawn_by_it_alone(bold):
    font = Font(13, bold)
    expected = Image.new("L", (400, 30), "white")
    ImageDraw.Draw(expected).text((5, 4), "Plain Ünd ж.png", "black", font.main)
    assert np.array_equal(drawn("Plain Ünd ж.png", bold=bold), np.asarray(expected))
    assert font.getlength("Plain Ünd") == font.main.getlength("Plain Ünd")


PAIRS = {
    "kanji": ("海", "森"), "kana": ("か", "き"), "hangul": ("한", "국"), "thai": ("ก", "ข"), "devanagari": ("क", "ख"),
    "emoji": ("🫁", "🩻"), "plane 2": ("\U00020bb7", "\U00020bb8"), "far private": ("\U0010fffd", "\U0010fffc"),
    "bytes that are no text": ("\udcfe", "\udcff"), "control": ("\x07", "\x08"), "one of a word": ("海の横", "海の縦"),
    "case of a box": ("\u0e05", "\u0e06"), "with latin": ("cat 海.png", "cat 森.png"),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize("size", [13, 18])
@pytest.mark.usefixtures("no_other_fonts")
def test_different_characters_give_different_pictures_without_any_font_for_them(pair, size):
    one, other = (drawn(text, size) for text in pair)
    assert not np.array_equal(one, other)
    assert (one < 128).sum() > 20


@pytest.mark.usefixtures("no_other_fonts")
def test_a_code_point_is_written_in_its_box():
    """Every digit, read back from the pixels, is the one of a font that was typed by hand."""
    digit = {
        "6": ["111", "100", "111", "101", "111"],
        "D": ["110", "101", "101", "101", "110"],
        "7": ["111", "001", "001", "001", "001"],
    }
    ink = drawn("\u6d77") < 128
    rows, columns = np.nonzero(ink)
    box = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.shape == (15, 11)
    assert box[[0, -1]].all()
    assert box[:, [0, -1]].all()
    for place, name in enumerate("6D77"):
        top, left = 2 + 6 * (place // 2), 2 + 4 * (place % 2)
        found = ["".join("01"[int(pixel)] for pixel in line) for line in box[top : top + 5, left : left + 3]]
        assert found == digit[name]
    assert "海" in module.missing()


def test_the_digits_differ():
    assert len(set(module._DIGITS)) == 16


def test_equal_text_is_drawn_equally_however_it_is_coded():
    assert np.array_equal(drawn("が café"), drawn("が café"))  # macOS names files in parts


@pytest.fixture
def with_a_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with a font that has 海 alone, as a box with 0041; beside it, files that are no fonts."""
    from fontTools.ttLib import TTFont

    file = tmp_path / "other.ttf"
    file.write_bytes(module._code_points("A", "Sea"))
    font = TTFont(file)
    for table in font["cmap"].tables:
        table.cmap = {0x6D77: "u000041"}
    font.save(file)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    blank = tmp_path / "LastResort.otf"
    blank.write_bytes(module._code_points("海森", "Last"))
    listed = [str(tmp_path / "broken.ttf"), str(blank), str(file)]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: listed)
    monkeypatch.setattr(module, "_packaged_fonts", list)
    for cached in (module._system_fonts, module._file_of):
        cached.cache_clear()
    yield str(file)
    for cached in (module._system_fonts, module._file_of):
        cached.cache_clear()


def test_a_font_of_the_machine_that_has_the_character_draws_it(with_a_font):
    assert module._file_of("海", False) == with_a_font
    module._missing.clear()
    assert (drawn("海") < 128).sum() > 20
    assert module.missing() == ""
    drawn("海森")
    assert module.missing() == "森"
    assert module._families("海森")[0] == "Sea"


@pytest.mark.usefixtures("no_other_fonts")
def test_figures_of_matplotlib_draw_every_character():
    def figure(title: str, tick: str) -> np.ndarray:
        drawing = Figure(figsize=(3, 2), layout="constrained")
        panel = drawing.subplots()
        panel.set_title(title, parse_math=False)
        panel.plot([0, 1], label=title)
        panel.set_xticks([0, 1], [tick, "b"])
        drawing.legend()
        return np.asarray(to_image(drawing))

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of glyphs that it lacks
        plain = figure("海 \udcff", "猫")
        assert not np.array_equal(plain, figure("森 \udcff", "猫"))
        assert not np.array_equal(plain, figure("海 \udcfe", "猫"))
        assert not np.array_equal(plain, figure("海 \udcff", "鳥"))


@pytest.mark.usefixtures("no_other_fonts")
def test_the_figures_of_the_package_draw_every_character():
    names, maps = ["海", "\udcff $x$"], torch.rand(2, 4, 4)
    picture = (Image.new("RGB", (20, 20)), torch.rand(4, 4), "0.1")
    for name in ("海", "森"):
        drawings = [
            figures_of_consistency.class_maps([name, *names], torch.cat([maps, maps[:1]]), maps.new_zeros(3, 4, 4)),
            figures_of_consistency.matrix([name, *names], torch.rand(3, 3), "mse"),
            figures_of_consistency.deviations([name, *names], [[0.1], [0.2], [0.3]], "mse"),
            figures_of_consistency.extremes([figures_of_consistency.Section(name, [picture], [picture])]),
            curves_figure({"deletion": {name: [1.0, 0.0]}}, {"deletion": "↓"}),
        ]
        assert all(drawing.width > 10 for drawing in drawings)


@pytest.mark.parametrize("part", ["title", "file", "label", "note", "column", "message"])
def test_a_sheet_shows_which_character_it_is(part):
    def sheet(character: str) -> np.ndarray:
        texts = dict.fromkeys(("title", "file", "label", "note", "column", "message"), "a") | {part: character}
        cells = [Cell(torch.eye(3), texts["note"]), Cell(None, texts["message"])]
        row = Row(Image.new("RGB", (50, 50)), texts["file"], texts["label"], cells)
        return np.asarray(contact_sheet([row], [texts["column"], "b"], title=texts["title"]))

    assert not np.array_equal(sheet("海"), sheet("森"))


def test_a_gallery_shows_which_character_it_is():
    def sheet(label: str) -> np.ndarray:
        return np.asarray(gallery([Row(Image.new("RGB", (50, 50)), "a", label, [Cell(torch.eye(3))], (1, 1, 9, 9))]))

    assert not np.array_equal(sheet("海 (probability 0.5)"), sheet("森 (probability 0.5)"))

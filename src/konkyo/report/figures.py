"""Contact sheets: images down, methods across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from konkyo.errors import KonkyoError
from konkyo.files import replacing
from konkyo.report.overlay import Limits, Map, is_signed, overlay

_INK, _GREY, _AMBER, _PANEL = "#1a1a1a", "#606060", "#8f4a00", "#f1f1f1"
_TEXT, _HEADING = 13, 18  # font sizes in pixels
_LINE = 17  # from one line of text to the next
_GAP, _MARGIN = 10, 16
_BAR = (180, 12)
_LONGEST_NOTE = 4  # lines
_ACROSS = 11  # more columns than that stand below each other
_WIDTH = 1600  # of all cells together, as far as
_SIDES = (176, 320)  # the smallest and the largest cell allow it


@dataclass(frozen=True)
class Cell:
    """What one method says of one image."""

    map: Map | None
    """(h, w), drawn over the row's picture; None: the note is written in its place."""
    note: str = ""
    """A remark under the picture, or why there is no map."""


@dataclass(frozen=True)
class Row:
    """One image and a cell per method."""

    image: Image.Image
    title: str
    """Usually the name of the file."""
    subtitle: str = ""
    """Usually the class and its score."""
    cells: Sequence[Cell] = field(default=())


def contact_sheet(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    title: str = "",
    shared: bool = False,
    colour_bar: bool = True,
) -> Image.Image:
    """An RGB sheet: each row its picture, then a cell under each of the column titles.

    `shared` gives the maps of a row one scale, which is written under its picture; otherwise each map has its own.
    `colour_bar` adds the colours in use at the foot. Long names lose their middle; of many columns each row is told in
    several lines. KonkyoError: no rows, or a row with another number of cells than there are columns.
    """
    if not rows:
        raise KonkyoError("a contact sheet needs at least one row")
    for row in rows:
        if len(row.cells) != len(columns):
            raise KonkyoError(f"row {row.title!r} has {len(row.cells)} cells for {len(columns)} columns")
    bands = _bands(len(columns))
    across = max(len(band) for band in bands)
    side = min(max(_WIDTH // (across + 1), _SIDES[0]), _SIDES[1])
    pictures = [_fitted(row.image, side) for row in rows]
    side = max(_SIDES[0], *(picture.width for picture in pictures))
    signed = _signed(rows, shared)
    names = [_names([columns[i] for i in band], side) for band in bands]
    strips = [] if len(bands) > 1 or not columns else list(names)  # names once on top, or with every part of a row
    for row, picture, kinds in zip(rows, pictures, signed, strict=True):
        for band, heading in zip(bands, names, strict=True):
            part = replace(row, cells=[row.cells[i] for i in band])
            strips += [heading] if len(bands) > 1 else []
            limits = _range([c.map for c in row.cells if c.map is not None]) if shared else None
            strips.append(_strip(part, picture, [kinds[i] for i in band], side, limits))
    if colour_bar:
        strips.append(_bars(signed, shared))
    top = _MARGIN + (_HEADING + _GAP if title else 0)
    gaps = [_GAP // 2 if strip in names else _GAP for strip in strips]
    width = max((side + _GAP) * (across + 1) - _GAP, strips[-1].width) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, top + sum(s.height for s in strips) + sum(gaps[:-1]) + _MARGIN), "white")
    if title:
        heading_font = _font(_HEADING, bold=True)
        draw = ImageDraw.Draw(sheet)
        draw.text((_MARGIN, _MARGIN), _elided(title, heading_font, width - 2 * _MARGIN), _INK, heading_font)
    for strip, gap in zip(strips, gaps, strict=True):
        sheet.paste(strip, (_MARGIN, top))
        top += strip.height + gap
    return sheet


def _bands(columns: int) -> list[range]:
    """The columns that stand beside each other: all, or as many equal parts as keep a sheet readable."""
    parts = max(1, -(-columns // _ACROSS))
    across = max(1, -(-columns // parts))
    return [range(start, min(start + across, columns)) for start in range(0, max(columns, 1), across)]


def _names(columns: Sequence[str], side: int) -> Image.Image:
    """The titles of columns, as a strip."""
    bold = _font(_TEXT, bold=True)
    strip = Image.new("RGB", ((side + _GAP) * (len(columns) + 1) - _GAP, _LINE), "white")
    for i, name in enumerate(columns, start=1):
        ImageDraw.Draw(strip).text((i * (side + _GAP), 0), _elided(name, bold, side), _INK, bold)
    return strip


def save_image(image: Image.Image, path: str | Path) -> Path:
    """Writes the picture in the format of the suffix, under a temporary name first. -> the path"""
    path = picture_name(path)
    try:
        with replacing(path) as temporary:
            image.save(temporary, quality=92)  # of the formats that lose something
    except ValueError as error:
        raise KonkyoError(f"{path} cannot be written: {error}") from error
    return path


def picture_name(path: str | Path) -> Path:
    """The path, if its suffix says how to save a picture; KonkyoError otherwise."""
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise KonkyoError(f"{path.name!r} does not say how to save a picture; end the name in .png, .jpg or .webp")
    return path


# --- parts ------------------------------------------------------------------------------------------------------------


def _signed(rows: Sequence[Row], shared: bool) -> list[list[bool | None]]:
    """Which cells are drawn on the diverging scale, None where there is no map: whole rows if they share a scale,
    otherwise whole columns, so that a method looks the same throughout."""
    rows_of: list[list[Map | None]] = [[cell.map for cell in row.cells] for row in rows]
    lines = rows_of if shared else [list(column) for column in zip(*rows_of, strict=True)]
    kinds = [any(is_signed(map_) for map_ in line if map_ is not None) for line in lines]
    return [
        [None if map_ is None else kinds[i if shared else j] for j, map_ in enumerate(row)]
        for i, row in enumerate(rows_of)
    ]


def _strip(
    row: Row, picture: Image.Image, signed: Sequence[bool | None], side: int, limits: Limits | None
) -> Image.Image:
    """A row: cells `side` wide, text below the pictures."""
    captions = [[(row.title, _INK)]]
    if row.subtitle:
        captions[0].append((row.subtitle, _GREY))
    if limits is not None:
        low, high = limits
        scale = f"±{max(-low, abs(high)):.3g}" if low < 0 else f"{low:.3g} to {high:.3g}"
        captions[0].append((f"scale {scale}", _GREY))
    for cell in row.cells:
        note = [] if cell.map is None else _wrapped(cell.note, side, _LONGEST_NOTE)
        captions.append([(line, _AMBER) for line in note])
    tall = max(picture.height, side // 2)  # leaves room for a message beside a flat picture
    lines = max(map(len, captions))
    strip = Image.new("RGB", ((side + _GAP) * len(captions) - _GAP, tall + _GAP // 2 + lines * _LINE), "white")
    draw = ImageDraw.Draw(strip)
    strip.paste(picture, (0, 0))
    for i, (cell, diverging) in enumerate(zip(row.cells, signed, strict=True), start=1):
        x = i * (side + _GAP)
        if cell.map is not None:
            strip.paste(overlay(picture, cell.map, limits=limits, signed=diverging), (x, 0))
        else:
            _message(draw, cell.note or "no map", (x, 0, x + side - 1, tall - 1))
    for i, caption in enumerate(captions):
        for j, (line, colour) in enumerate(caption):
            font = _font(_TEXT, bold=i == j == 0)
            at = (i * (side + _GAP), tall + _GAP // 2 + j * _LINE)
            draw.text(at, _elided(line, font, side), colour, font)
    return strip


def _message(draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int]) -> None:
    """Text in the middle of a panel."""
    draw.rectangle(box, _PANEL)
    lines = _wrapped(text, box[2] - box[0] - 2 * _GAP, (box[3] - box[1] - _GAP) // _LINE)
    y = (box[1] + box[3] - len(lines) * _LINE) // 2
    for line in lines:
        draw.text((box[0] + _GAP, y), line, _GREY, _font(_TEXT))
        y += _LINE


def _bars(signed: Sequence[Sequence[bool | None]], shared: bool) -> Image.Image:
    """The colours in use, as they look over grey, side by side."""
    kinds = [kind for kind in (False, True) if any(kind in row for row in signed)]
    font = _font(_TEXT)
    note = "one scale per row" if shared else "every map on its own scale"
    wide = _BAR[0] + 2 * _GAP
    total = len(kinds) * wide + round(font.getlength(note))
    strip = Image.new("RGB", (total if kinds else 1, _BAR[1] + _LINE + 4 if kinds else 1), "white")
    draw = ImageDraw.Draw(strip)
    for i, kind in enumerate(kinds):
        ends = (-1.0, 1.0) if kind else (0.0, 1.0)
        ramp = torch.linspace(*ends, _BAR[0])[None].expand(_BAR[1], -1)
        strip.paste(overlay(Image.new("RGB", _BAR, "#969696"), ramp, limits=ends), (i * wide, 0))
        names = ("negative", "0", "positive") if kind else ("low", "high")
        for j, name in enumerate(names):
            share = j / (len(names) - 1)
            x = i * wide + share * (_BAR[0] - font.getlength(name))
            draw.text((round(x), _BAR[1] + 3), name, _GREY, font)
    if kinds:
        draw.text((len(kinds) * wide, -2), note, _GREY, font)
    return strip


def _range(maps: Sequence[Map]) -> Limits | None:
    """The lowest and highest finite value of all."""
    values = [np.asarray(m.detach().cpu().double() if isinstance(m, torch.Tensor) else m, float).ravel() for m in maps]
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.empty(0)
    return (float(known.min()), float(known.max())) if known.size else None


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture enlarged or shrunk until its long side is `side`."""
    share = side / max(image.size)
    size = (max(round(image.width * share), 1), max(round(image.height * share), 1))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3)


# --- text -------------------------------------------------------------------------------------------------------------


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # for the font it brings; `import konkyo` stays light

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def _clean(text: str) -> str:
    """One line that any font can be asked to draw."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _elided(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, its middle replaced by an ellipsis if it is too wide: beginnings and ends tell names apart."""
    text = _clean(text)
    if font.getlength(text) <= width:
        return text
    keep = next((k for k in range(min(len(text), 200) - 1, 0, -1) if font.getlength(_cut(text, k)) <= width), 0)
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    return text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]


def _wrapped(text: str, width: float, lines: int) -> list[str]:
    """The text in at most so many lines; the last one ends in an ellipsis where there was more."""
    font = _font(_TEXT)
    done: list[str] = []
    line = ""
    for word in _clean(text).split():
        joined = f"{line} {word}".strip()
        while font.getlength(joined) > width:
            if line:
                done.append(line)
                joined, line = word, ""
            else:  # a word wider than the line
                fits = next(
                    (k for k in range(min(len(joined), 200) - 1, 1, -1) if font.getlength(joined[:k]) <= width), 1
                )
                done.append(joined[:fits])
                joined = joined[fits:]
        line = joined
    done += [line] if line else []
    if len(done) <= lines:
        return done
    last = done[max(lines, 1) - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*done[: max(lines, 1) - 1], last + "…"]

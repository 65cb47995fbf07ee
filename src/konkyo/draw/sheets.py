"""Sheets of maps: images down and methods across, or the detections of an image."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from konkyo.draw.overlay import OPACITY, Limits, Map, boxed, is_signed, outlined, overlay
from konkyo.draw.text import Font, complete, elided, text_lines
from konkyo.errors import KonkyoError
from konkyo.utils.files import replacing
from konkyo.utils.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURE = "konkyo.figure"  # the entry of a picture's `info` that has the figure it was drawn from
_INK, _GREY, _AMBER, _PANEL = "#1a1a1a", "#606060", "#8f4a00", "#f1f1f1"
_TEXT, _HEADING = 13, 18  # font sizes in pixels
_LINE = 17  # from one line of text to the next
_GAP, _MARGIN = 10, 16
_BAR = (180, 12)
_LONGEST_NOTE = 4  # lines
_MOST_COLUMNS = 11  # more columns than that stand below each other
_WIDTH = 1600  # of all cells together, as far as
_CELL_SIDES = (176, 320)  # the smallest and the largest cell allow it
_PANELS = 5  # of a gallery beside each other


@dataclass(frozen=True)
class Cell:
    """A cell shows what one method says of one image."""

    map: Map | None
    """(h, w), drawn over the row's picture; None: the note is written in its place."""
    note: str = ""
    """A remark under the picture, or why there is no map."""


@dataclass(frozen=True)
class Row:
    """A row is one image and a cell per method."""

    image: Image.Image
    title: str
    """Usually the name of the file."""
    subtitle: str = ""
    """Usually the class and its score."""
    cells: Sequence[Cell] = field(default=())
    box: Sequence[float] | None = None
    """xyxy in pixels of the image: what the row is about, drawn in its picture and in every cell."""
    part: Map | None = None
    """(h, w) over the image: the region that the row is about, whose outline is drawn in the same places."""
    asked: str = ""
    """What the model says of the target, where it decided something else."""
    decided: str = ""
    """What the model decided itself."""
    truth: str = ""
    """What is true, where the model decided wrongly."""
    brightness: float = 1.0
    """How bright the row's maps are drawn, of 1."""


def contact_sheet(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    title: str = "",
    shared: bool = False,
    colour_bar: bool = True,
    abreast: int = 1,
) -> Image.Image:
    """Draws an RGB sheet: each row its picture, then a cell under each of the column titles.

    `abreast`: so many rows stand beside each other, where the cells of one stand in one line.

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
    abreast = min(abreast, len(rows)) if len(bands) == 1 else 1
    across = max(len(band) for band in bands)
    side = min(max(_WIDTH // ((across + 1) * abreast), _CELL_SIDES[0]), _CELL_SIDES[1])
    pictures = [_scaled_to(row.image, side) for row in rows]
    side = max(_CELL_SIDES[0], *(picture.width for picture in pictures))
    signed = _signed(rows, shared)
    names = [_title_strip([columns[i] for i in band], side) for band in bands]
    strips = [] if len(bands) > 1 or not columns else list(names)  # names once on top, or with every part of a row
    for row, picture, kinds in zip(rows, pictures, signed, strict=True):
        for band, heading in zip(bands, names, strict=True):
            part = replace(row, cells=[row.cells[i] for i in band])
            strips += [heading] if len(bands) > 1 else []
            limits = _finite_range([c.map for c in row.cells if c.map is not None]) if shared else None
            strips.append(_strip(part, picture, [kinds[i] for i in band], side, limits))
    if abreast > 1:
        names = [_beside(names * abreast)] if columns else []
        parts = strips[-len(rows) :]
        strips = [*names, *(_beside(parts[start : start + abreast]) for start in range(0, len(parts), abreast))]
    if colour_bar:
        strips.append(_bars(signed, shared, paler=_paler(rows)))
    return _stacked(strips, title, close=names)


def drawings_below_each_other(drawings: Sequence[Image.Image], title: str = "") -> Image.Image:
    """Draws pictures of any sizes below each other, under a title: those of videos, volumes and signals."""
    return _stacked(drawings, title)


def gallery(rows: Sequence[Row], *, title: str = "", colour_bar: bool = True) -> Image.Image:
    """Draws an RGB sheet of one image's detections: the image with all boxes, numbered, then each row's one cell.

    KonkyoError: no rows, or a row that has not one cell.
    """
    if not rows or any(len(row.cells) != 1 for row in rows):
        raise KonkyoError("a gallery needs at least one row, and one cell in each")
    across = math.ceil((len(rows) + 1) / math.ceil((len(rows) + 1) / _PANELS))
    side = min(_WIDTH // across, _CELL_SIDES[1])
    whole = _scaled_to(rows[0].image, side)
    panels = [_numbered(rows, whole)]
    captions = [[(rows[0].title, _INK), (counted(len(rows), "detection"), _GREY)]]
    signed = [[kind] for (kind,) in _signed(rows, shared=False)]
    for number, (row, (kind,)) in enumerate(zip(rows, signed, strict=True), start=1):
        (cell,), picture = row.cells, _scaled_to(row.image, side)
        name, _, score = row.subtitle.partition(" (")
        captions.append([(f"{number}  {name}", _INK), *([(score.removesuffix(")"), _GREY)] if score else [])])
        captions[-1] += _decision(row)
        if cell.map is None:
            _message(ImageDraw.Draw(picture), cell.note or "no map", (0, 0, picture.width - 1, picture.height - 1))
        else:
            picture = _with_box(row, overlay(picture, cell.map, signed=kind, opacity=OPACITY * row.brightness))
            captions[-1] += [(line, _AMBER) for line in text_lines(cell.note, Font(_TEXT), side, _LONGEST_NOTE)]
        panels.append(picture)
    tall, lines = max(p.height for p in panels), max(map(len, captions))
    side = max(_CELL_SIDES[0], *(p.width for p in panels))
    strips = []
    for start in range(0, len(panels), across):
        part = list(zip(panels[start : start + across], captions[start : start + across], strict=True))
        strip = Image.new("RGB", ((side + _GAP) * across - _GAP, tall + _GAP // 2 + lines * _LINE), "white")
        for i, (panel, caption) in enumerate(part):
            strip.paste(panel, (i * (side + _GAP), 0))
            _caption(strip, caption, (i * (side + _GAP), tall + _GAP // 2), side)
        strips.append(strip)
    return _stacked(strips + ([_bars(signed, shared=False, paler=_paler(rows))] if colour_bar else []), title)


def to_image(figure: Figure) -> Image.Image:
    """Returns a figure of matplotlib's as a picture, which keeps it: `save_image` writes it as SVG and PDF, too."""
    complete(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB")
    picture.info[_FIGURE] = figure
    return picture


def _bands(columns: int) -> list[range]:
    """Returns the columns that stand beside each other: all, or as many equal parts as keep a sheet readable."""
    parts = max(1, -(-columns // _MOST_COLUMNS))
    across = max(1, -(-columns // parts))
    return [range(start, min(start + across, columns)) for start in range(0, max(columns, 1), across)]


def _title_strip(columns: Sequence[str], side: int) -> Image.Image:
    """Draws the titles of columns, as a strip."""
    bold = Font(_TEXT, bold=True)
    strip = Image.new("RGB", ((side + _GAP) * (len(columns) + 1) - _GAP, _LINE), "white")
    for i, name in enumerate(columns, start=1):
        bold.draw(ImageDraw.Draw(strip), (i * (side + _GAP), 0), elided(name, bold, side), _INK)
    return strip


def save_image(image: Image.Image, path: str | Path) -> Path:
    """Writes the picture in the format of the suffix, under a temporary name first. -> the path

    Figures of matplotlib's become lines and letters in .svg and .pdf; other pictures have no .svg.
    """
    path, figure = Path(path), image.info.get(_FIGURE)
    if path.suffix.lower() not in (".svg", ".pdf"):
        figure = None
    path = picture_name(path) if figure is None else path
    try:
        with replacing(path) as temporary:
            if figure is None:
                # quality is of the formats that lose something; PNG's highest level takes three times as long for 2 %
                image.save(temporary, quality=92, compress_level=1, compress_type=zlib.Z_RLE)
            else:  # without a date, so that equal figures are equal files
                figure.savefig(temporary, metadata={"Date" if path.suffix.lower() == ".svg" else "CreationDate": None})
    except ValueError as error:
        raise KonkyoError(f"{path} cannot be written: {error}") from error
    return path


def picture_name(path: str | Path) -> Path:
    """Returns the path, if its suffix says how to save a picture. KonkyoError otherwise."""
    path = Path(path)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise KonkyoError(f"{path.name!r} does not say how to save a picture; end the name in .png, .jpg or .webp")
    return path


# --- parts ------------------------------------------------------------------------------------------------------------


def _stacked(strips: Sequence[Image.Image], title: str, close: Sequence[Image.Image] = ()) -> Image.Image:
    """Puts the strips below each other under a title; nearer to the next are those in `close`."""
    top = _MARGIN + (_HEADING + _GAP if title else 0)
    gaps = [_GAP // 2 if any(strip is one for one in close) else _GAP for strip in strips]
    width = max(strip.width for strip in strips) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, top + sum(s.height for s in strips) + sum(gaps[:-1]) + _MARGIN), "white")
    if title:
        font = Font(_HEADING, bold=True)
        font.draw(ImageDraw.Draw(sheet), (_MARGIN, _MARGIN), elided(title, font, width - 2 * _MARGIN), _INK)
    for strip, gap in zip(strips, gaps, strict=True):
        sheet.paste(strip, (_MARGIN, top))
        top += strip.height + gap
    return sheet


def _beside(strips: Sequence[Image.Image]) -> Image.Image:
    """Puts strips of one width beside each other."""
    wide = strips[0].width + 2 * _GAP
    line = Image.new("RGB", (wide * len(strips) - 2 * _GAP, max(strip.height for strip in strips)), "white")
    for place, strip in enumerate(strips):
        line.paste(strip, (place * wide, 0))
    return line


def _with_box(row: Row, picture: Image.Image) -> Image.Image:
    """Returns the row's picture, at whatever size, with its box."""
    if row.part is not None:
        picture = outlined(picture, row.part, width=max(1, round(max(picture.size) / 200)))
    if row.box is None:
        return picture
    across, down = picture.width / row.image.width, picture.height / row.image.height
    box = [side * share for side, share in zip(row.box, (across, down) * 2, strict=True)]
    return boxed(picture, box, width=max(1, round(max(picture.size) / 150)), edge=1)


def _numbered(rows: Sequence[Row], picture: Image.Image) -> Image.Image:
    """Returns the picture with every row's box and its number in the corner."""
    font, share = Font(_TEXT - 2, bold=True), picture.width / rows[0].image.width
    boxes = [
        (n, row.box) for n, row in enumerate(rows, start=1) if row.box is not None and all(map(math.isfinite, row.box))
    ]
    for _, box in boxes:
        picture = boxed(picture, [side * share for side in box], width=1, edge=1)
    draw = ImageDraw.Draw(picture)
    taken = list[tuple[int, int, int]]()
    for number, (left, top, *_) in boxes:
        wide, tall = round(font.getlength(str(number))) + 4, _TEXT
        x = round(min(max(left * share, 0), picture.width - wide))
        y = round(min(max(top * share, 0), picture.height - tall))
        while clash := [end for start, row, end in taken if start < x + wide and x < end and abs(row - y) < tall]:
            x = max(clash)  # beside the numbers that are there
        taken.append((x, y, x + wide))
        draw.rectangle((x, y, x + wide - 1, y + tall - 1), fill="black")
        draw.text((x + wide / 2, y + tall / 2), str(number), "white", font.main, anchor="mm")
    return picture


def _caption(
    strip: Image.Image, lines: Sequence[tuple[str, str]], at: tuple[int, int], side: int, *, bold: bool = True
) -> None:
    """Lines of (text, colour), each at most `side` wide; whether the first one is bold."""
    for j, (line, colour) in enumerate(lines):
        font = Font(_TEXT, bold=bold and j == 0)
        font.draw(ImageDraw.Draw(strip), (at[0], at[1] + j * _LINE), elided(line, font, side), colour)


def _decision(row: Row) -> list[tuple[str, str]]:
    """Returns the lines on what the model decided; it stands out where that is not what the row explains."""
    asked = [(row.asked, _GREY)] if row.asked else []
    decided = [(row.decided, _AMBER if row.asked else _GREY)] if row.decided else []
    return asked + decided + ([(row.truth, _AMBER)] if row.truth else [])


def _signed(rows: Sequence[Row], shared: bool) -> list[list[bool | None]]:
    """Tells which cells are drawn on the diverging scale; None where there is no map.

    Rows that share a scale agree, otherwise whole columns do, so that a method looks the same throughout.
    """
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
    """Draws a row: cells `side` wide, text below the pictures."""
    captions = [[(row.title, _INK)]]
    if row.subtitle:
        captions[0] += [(line, _GREY) for line in text_lines(row.subtitle, Font(_TEXT), side, 2)]
    captions[0] += _decision(row)
    if limits is not None:
        low, high = limits
        scale = f"±{max(-low, abs(high)):.3g}" if low < 0 else f"{low:.3g} to {high:.3g}"
        captions[0].append((f"scale {scale}", _GREY))
    for cell in row.cells:
        note = [] if cell.map is None else text_lines(cell.note, Font(_TEXT), side, _LONGEST_NOTE)
        captions.append([(line, _AMBER) for line in note])
    tall = max(picture.height, side // 2)  # leaves room for a message beside a flat picture
    lines = max(map(len, captions))
    strip = Image.new("RGB", ((side + _GAP) * len(captions) - _GAP, tall + _GAP // 2 + lines * _LINE), "white")
    draw = ImageDraw.Draw(strip)
    strip.paste(_with_box(row, picture), (0, 0))
    for i, (cell, diverging) in enumerate(zip(row.cells, signed, strict=True), start=1):
        x = i * (side + _GAP)
        if cell.map is not None:
            opacity = OPACITY * row.brightness
            overlaid = overlay(picture, cell.map, limits=limits, signed=diverging, opacity=opacity)
            strip.paste(_with_box(row, overlaid), (x, 0))
        else:
            _message(draw, cell.note or "no map", (x, 0, x + side - 1, tall - 1))
    for i, caption in enumerate(captions):
        _caption(strip, caption, (i * (side + _GAP), tall + _GAP // 2), side, bold=i == 0)
    return strip


def _message(draw: ImageDraw.ImageDraw, text: str, box: tuple[int, int, int, int]) -> None:
    """Writes text in the middle of a panel."""
    draw.rectangle(box, _PANEL)
    lines = text_lines(text, Font(_TEXT), box[2] - box[0] - 2 * _GAP, (box[3] - box[1] - _GAP) // _LINE)
    y = (box[1] + box[3] - len(lines) * _LINE) // 2
    for line in lines:
        Font(_TEXT).draw(draw, (box[0] + _GAP, y), line, _GREY)
        y += _LINE


def _paler(rows: Sequence[Row]) -> bool:
    """Tells whether a reader sees that not all maps are equally bright."""
    return any(row.brightness < 0.95 for row in rows)


def _bars(signed: Sequence[Sequence[bool | None]], shared: bool, paler: bool) -> Image.Image:
    """Draws the colours in use, as they look over grey, side by side; with a word on maps that are `paler`."""
    kinds = [kind for kind in (False, True) if any(kind in row for row in signed)]
    font = Font(_TEXT)
    note = "one scale per row" if shared else "every map on its own scale"
    note += "; the less probable a target, the paler" if paler else ""
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
            font.draw(draw, (round(x), _BAR[1] + 3), name, _GREY)
    if kinds:
        font.draw(draw, (len(kinds) * wide, -2), note, _GREY)
    return strip


def _finite_range(maps: Sequence[Map]) -> Limits | None:
    """Returns the lowest and highest finite value of all."""
    values = [np.asarray(m.detach().cpu().double() if isinstance(m, torch.Tensor) else m, float).ravel() for m in maps]
    known = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.empty(0)
    return (float(known.min()), float(known.max())) if known.size else None


def _scaled_to(image: Image.Image, side: int) -> Image.Image:
    """Returns the picture enlarged or shrunk until its long side is `side`."""
    share = side / max(image.size)
    size = (max(round(image.width * share), 1), max(round(image.height * share), 1))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3)

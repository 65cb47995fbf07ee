"""Two pictures beside each other, with lines between places that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw

from konkyo.draw.text import Font, text_lines

Place: TypeAlias = "tuple[float, float]"
Side: TypeAlias = "tuple[Image.Image, Sequence[str]]"
"""A picture, and the lines that stand below it."""

_TALL = 320  # pixels of both pictures
_GAP = 12
_SIZE = 13  # of the words
_NARROW = 220  # pixels that words need, whatever the picture


def beside(a: Side, b: Side, lines: Sequence[tuple[Place, Place, float]] = ()) -> Image.Image:
    """Draws two pictures at one height, with words below each, and lines between places of both.

    `lines`: x, y in the first picture, x, y in the second, and a value; the larger the value, the wider the line.
    """
    pictures = [picture.convert("RGB") for picture, _ in (a, b)]
    scales = [_TALL / picture.height for picture in pictures]
    pictures = [
        picture.resize((max(1, round(picture.width * scale)), _TALL), Image.Resampling.BICUBIC)
        for picture, scale in zip(pictures, scales, strict=True)
    ]
    widths = [max(_NARROW, picture.width) for picture in pictures]
    texts = [_wrapped(words, width) for (_, words), width in zip((a, b), widths, strict=True)]
    step = round(_SIZE * 1.35)
    canvas = Image.new("RGB", (sum(widths) + _GAP, _TALL + max(map(len, texts)) * step + _SIZE), "white")
    lefts = [0, widths[0] + _GAP]
    pen = ImageDraw.Draw(canvas)
    for picture, text, left in zip(pictures, texts, lefts, strict=True):
        canvas.paste(picture, (left, 0))
        for number, line in enumerate(text):
            face = Font(_SIZE, bold=number == 0)
            face.draw(pen, (left, _TALL + _SIZE // 2 + number * step), line, "#1a1a1a" if number == 0 else "#505050")
    strongest = max((value for *_, value in lines), default=1.0)
    for start, end, value in lines[::-1]:  # the strongest above the others
        ends = [
            (left + place[0] * scale, place[1] * scale)
            for place, left, scale in zip((start, end), lefts, scales, strict=True)
        ]
        width = max(1, round(4 * value / strongest))
        pen.line(ends, fill="black", width=width + 2)
        pen.line(ends, fill="white", width=width)
        for x, y in ends:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill="white", outline="black")
    return canvas


def marked(picture: Image.Image, place: Place) -> Image.Image:
    """Draws a ring around a place, x and y in pixels of the picture."""
    marked_ = picture.convert("RGB").copy()
    pen, radius = ImageDraw.Draw(marked_), max(4, max(picture.size) // 25)
    x, y = place
    line = max(1, radius // 4)
    pen.ellipse(
        (x - radius - line, y - radius - line, x + radius + line, y + radius + line), outline="black", width=3 * line
    )
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline="white", width=line)
    return marked_


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    return [part for line in words for part in text_lines(line, Font(_SIZE), width - 4, 3)]

"""Text in pictures: every character is drawn, by a font that has it, or else as its code point."""

from __future__ import annotations

import atexit
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from io import BytesIO
from itertools import count, groupby
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from PIL import ImageDraw, ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST = (
    "notosanscjk", "notosansjp", "sourcehansans", "ipaexg", "ipag", "takao", "vl-gothic", "mplus", "hiragino",
    "ヒラギノ", "yugoth", "meiryo", "msgothic", "wqy", "droidsansfallback", "pingfang", "msyh", "nanum", "malgun",
    "noto", "unifont",
)  # fmt: skip
"""Beginnings of fonts' file names in small letters, the ones to be asked first for a character."""
_PACKAGES = ("matplotlib_fontja", "japanize_matplotlib", "koreanize_matplotlib", "mplfonts")
"""Packages of Python that bring fonts: the first one is that of the extra "fonts". None of them is imported."""
_NEVER = ("lastresort", "adobeblank")  # one picture for many characters
_HEAVY = ("bold", "black", "heavy", "light", "thin", "italic", "oblique", "serif", "mono", "mincho")
_SURROGATES, _PRIVATE = range(0xD800, 0xE000), 0x100000
"""Halves of characters, which stand for bytes of file names that are no text; no font takes them as they are."""
_DIGITS = (
    "75557", "26227", "71747", "71717", "55711", "74717", "74757", "71111",
    "75757", "75717", "25755", "65656", "74447", "65556", "74747", "74744",
)  # fmt: skip
"""The digits 0 to F, 3 x 5 pixels: an octal digit is a line of three."""
_PIXEL = 100  # units of the font of code points, 13 pixels high
_NO_HINTS = b"\xb0\x00\x21" * 3  # push a byte, pop it: FreeType bends the boxes of fonts that have no program

_missing = dict[str, None]()
_numbers = count()  # of fonts of code points


@dataclass(frozen=True)
class Font:
    """A font is DejaVu Sans at a size in pixels; what it lacks comes from other fonts."""

    size: int
    bold: bool = False

    @property
    def main(self) -> ImageFont.FreeTypeFont:
        """Returns DejaVu Sans itself."""
        return _truetype(_dejavu(self.bold), self.size)

    def getlength(self, text: str) -> float:
        """Returns how many pixels wide the text is."""
        return sum(font.getlength(part) for part, font in self._parts(text))

    def draw(self, canvas: ImageDraw.ImageDraw, at: tuple[float, float], text: str, colour: str) -> None:
        """Draws the text with its upper left corner at (x, y)."""
        x, base = at[0], at[1] + self.main.getmetrics()[0]
        for part, font in self._parts(text):
            canvas.text((x, base), part, colour, font, anchor="ls")
            x += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
        """Yields the parts of the text, each with the font that has all of it."""
        for file, characters in groupby(text, lambda character: _file_of(character, self.bold)):
            part = "".join(characters)
            if file is not None:
                yield part, _truetype(file, self.size)
            else:
                yield from ((character, _boxed(character, self.size)) for character in part)


def drawable(text: str) -> str:
    """Returns the text with halves of characters as characters of their own; equal text is coded equally."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(chr(_PRIVATE + ord(c)) if ord(c) in _SURROGATES else c for c in composed)


def clean(text: str) -> str:
    """Returns the text as one line in which every character can be drawn."""
    return " ".join(drawable(text).split())


def elided(text: str, font: Font, width: float) -> str:
    """Returns the text, its middle replaced by an ellipsis if it is too wide: beginnings and ends tell names apart."""
    text = clean(text)
    if font.getlength(text) <= width:
        return text
    keep = next((k for k in range(min(len(text), 200) - 1, 0, -1) if font.getlength(_cut(text, k)) <= width), 0)
    return _cut(text, keep)


def text_lines(text: str, font: Font, width: float, lines: int) -> list[str]:
    """Returns the text in at most so many lines; the last one ends in an ellipsis where there was more."""
    done: list[str] = []
    line = ""
    for word in clean(text).split():
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


def complete(figure: Figure) -> None:
    """Gives every text of a figure of matplotlib's the fonts that have its characters."""
    from matplotlib.text import Text

    for artist in figure.findobj(Text):
        assert isinstance(artist, Text)
        artist.set_text(drawable(artist.get_text()))
        if (
            not artist.get_text().isascii()
        ):  # DejaVu Sans itself, too: the user may have made another font the usual one
            families = [*artist.get_fontfamily(), "DejaVu Sans", *_families(artist.get_text())]
            artist.set_fontfamily(list(dict.fromkeys(families)))


def missing() -> str:
    """Returns the characters that had to be drawn as code points until now, since no font of this machine has them."""
    return "".join(_missing)


def _cut(text: str, keep: int) -> str:
    return text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]


# --- fonts ------------------------------------------------------------------------------------------------------------


@cache
def _dejavu(bold: bool) -> str:
    from matplotlib import get_data_path  # for the font it brings; `import konkyo` stays light

    return str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"))


@cache
def _truetype(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@cache
def _characters(file: str) -> frozenset[int]:
    """Returns the code points that a file's font draws at any size; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
        ImageFont.truetype(file, 13)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def _packaged_fonts() -> list[str]:
    """Returns the font files that installed packages of Python bring."""
    specs = [find_spec(name) for name in _PACKAGES]
    folders = [Path(folder) / "fonts" for spec in specs if spec for folder in spec.submodule_search_locations or ()]
    return [str(file) for folder in folders for file in sorted(folder.glob("*.[ot]t[fc]"))]


@cache
def _system_fonts() -> Sequence[str]:
    """Returns the font files of this machine and of packages, in the order in which they are asked."""
    from matplotlib.font_manager import findSystemFonts

    def order(file: str) -> tuple[int, int, str]:
        name = Path(file).name.lower()
        first = next((place for place, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))
        return first, sum(word in name for word in _HEAVY), file

    fonts = sorted([*findSystemFonts(), *_packaged_fonts()], key=order)
    return [file for file in fonts if not Path(file).name.lower().startswith(_NEVER)]


@lru_cache(maxsize=65536)
def _file_of(character: str, bold: bool) -> str | None:
    """Returns the file of the first font that has the character; None where none has it."""
    code = ord(character)
    if code in _characters(usual := _dejavu(bold)):
        return usual
    file = next((file for file in _system_fonts() if code in _characters(file)), None)
    if file is None:
        _missing[character] = None
    return file


@cache
def _boxed(character: str, size: int) -> ImageFont.FreeTypeFont:
    font = BytesIO(_code_points(character, "code points"))
    return ImageFont.truetype(font, size, layout_engine=ImageFont.Layout.BASIC)  # others leave out what has no shape


def _families(text: str) -> list[str]:
    """Returns the names by which matplotlib finds the fonts that have what DejaVu Sans lacks."""
    files = {c: _file_of(c, False) for c in text if c != "\n"}
    families = [_family_of(file) for file in dict.fromkeys(files.values()) if file not in (None, _dejavu(False))]
    if absent := "".join(sorted(c for c, file in files.items() if file is None)):
        families.append(_family_of_boxes(absent))
    return families


@cache
def _family_of(file: str | None) -> str:
    """Returns the family of a font file, which matplotlib knows from now on."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    assert file is not None
    if all(entry.fname != file for entry in fontManager.ttflist):
        fontManager.addfont(file)
    return FT2Font(file).family_name


@cache
def _folder() -> Path:
    """Returns a folder for fonts, which is removed when the process ends."""
    folder = mkdtemp(prefix="konkyo-fonts-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _family_of_boxes(characters: str) -> str:
    number = next(_numbers)
    file = _folder() / f"{number}.ttf"
    file.write_bytes(_code_points(characters, f"konkyo code points {number}"))
    return _family_of(str(file))


@cache
def _code_points(characters: str, family: str) -> bytes:
    """Returns a TrueType font that draws each of the characters as its code point: hexadecimal digits in a box."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables.ttProgram import Program

    names = {ord(character): f"u{ord(character):06X}" for character in characters}
    glyphs, widths = {".notdef": TTGlyphPen(None).glyph()}, {".notdef": (0, 0)}
    for code, name in names.items():
        pen = TTGlyphPen(None)
        pixels, wide = _box(code - _PRIVATE if code - _PRIVATE in _SURROGATES else code)
        for left, bottom, across, up in pixels:
            x1, y1, x2, y2 = (n * _PIXEL for n in (left, bottom, left + across, bottom + up))
            pen.moveTo((x1, y1))
            for corner in ((x1, y2), (x2, y2), (x2, y1)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[name], widths[name] = pen.glyph(), ((wide + 2) * _PIXEL, _PIXEL)
    builder = FontBuilder(13 * _PIXEL, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap(names)
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(widths)
    builder.setupHorizontalHeader(ascent=12 * _PIXEL, descent=-3 * _PIXEL)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    program = builder.font["prep"] = newTable("prep")
    program.program = Program()
    program.program.fromBytecode(_NO_HINTS)
    builder.font.save(buffer := BytesIO())
    return buffer.getvalue()


def _box(code: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """Returns a box with the code's digits in two lines, as rectangles (left, bottom, width, height), and its width."""
    digits = f"{code:04X}"
    digits = digits.zfill(6) if len(digits) > 4 else digits
    across = len(digits) // 2
    wide, tall, bottom = 4 * across + 3, 15, -3
    pixels = [(1, bottom, wide, 1), (1, bottom + tall - 1, wide, 1), (1, bottom, 1, tall), (wide, bottom, 1, tall)]
    for place, digit in enumerate(digits):
        x, top = 3 + 4 * (place % across), bottom + tall - 3 - 6 * (place // across)
        for down, line in enumerate(_DIGITS[int(digit, 16)]):
            pixels += [(x + k, top - down, 1, 1) for k in range(3) if int(line) & 4 >> k]
    return pixels, wide

"""How an explanation shows itself: in a line or three, in a notebook, as a figure, and as a picture with a caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from konkyo.errors import KonkyoError
from konkyo.explanation.rows import Rows, numbers_of, selected
from konkyo.explanation.words import (
    decided_in_words,
    decision_of,
    diagnosis_in_words,
    lines_of,
    name_of,
    score_in_words,
    truth_in_words,
)
from konkyo.utils import markup
from konkyo.utils.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from konkyo.explanation.result import Explanation

SHOWN = 12
"""Overlays in a notebook; the others are told."""
_HTML_BYTES, _PNG_BYTES = 180_000, 100_000
_QUALITIES = ((208, 82), (208, 65), (176, 55), (144, 45), (112, 35), (64, 30))  # (longest side, quality of JPEG)
_SHEET_ROWS = 6  # of the picture for a front end that shows no HTML
_NAMED = 4  # rows named in a repr
_CAPTION_WIDTH = 300  # pixels at least
_NO_PICTURES = "The pictures are not known: they are not saved with an explanation. Maps alone are shown."


def words_of(result: Explanation) -> str:
    """Returns the explanation in two lines, and more where a map is doubtful or its method has notes."""
    images, grid = len(set(result.image_index.tolist())), "x".join(map(str, result.signed.shape[1:]))
    head = f"Explanation: {counted(len(result), 'map')} {grid} of {counted(images, 'image')}, {_made_by(result)}"
    parts = [_short(result, row) for row in range(min(_NAMED, len(result)))]
    lines = [head, "  " + ", ".join(parts) + (", ..." if len(result) > _NAMED else "")] if parts else [head]
    rest = (_absences(result), _doubts(result), notes_of(result))
    return "\n".join([*lines, *("  " + line for line in rest if line)])


def notes_of(result: Explanation) -> str:
    """Returns the method's notes of the first rows: "gap 0.012, -0.3; sum 3.1, 2.2"; "" where there are none."""
    more = ", ..." if len(result) > _NAMED else ""
    return "; ".join(
        f"{name} {', '.join(f'{value:.3g}' for value in values[:_NAMED].tolist())}{more}"
        for name, values in result.notes.items()
        if len(values)
    )


def html_of(result: Explanation) -> str:
    """Returns up to twelve overlays with what is said of each, below 300 kB; one that cannot be drawn is told."""
    head = markup.title(words_of(result).partition("\n")[0].removeprefix("Explanation: "))
    doubts = _doubts(result)
    notes = [markup.note(_NO_PICTURES)] if result.images is None and len(result) else []
    notes += [markup.note(f"{absences}.")] if (absences := _absences(result)) else []
    notes += [markup.note(f"{doubts}.")] if doubts else []
    notes += [markup.note(f"{noted}.")] if (noted := notes_of(result)) else []
    notes += [markup.note(assumption) for assumption in result.assumptions]
    count = min(SHOWN, len(result))
    pictures: Sequence[tuple[bytes, int] | None]
    try:
        pictures = _encoded([drawn(result, row) for row in range(count)])
    except KonkyoError as error:  # signals, volumes, images of many channels
        notes.append(markup.note(f"Not drawn: {error}."))
        pictures = [None] * count
    cards = "".join(_card(result, row, picture) for row, picture in enumerate(pictures))
    grid = f'<div style="display:flex;flex-wrap:wrap;gap:14px">{cards}</div>' if cards else ""
    more = len(result) - count
    rest = (
        markup.note(f"... and {more} more: result.sheet() shows all, result[{count}:] the next ones.") if more else ""
    )
    return markup.block(head, *notes, grid, rest)


def png_of(result: Explanation) -> bytes | None:
    """Returns a small sheet of the first rows, for front ends that show no HTML; None where nothing can be drawn."""
    try:
        picture = selected(result, range(min(_SHEET_ROWS, len(result)))).sheet()
    except KonkyoError:
        return None
    for share in (1.0, 0.75, 0.5, 0.3, 0.15):
        size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
        buffer = BytesIO()
        picture.resize(size, reducing_gap=3).quantize(128).save(buffer, "png", optimize=True)
        if len(buffer.getvalue()) <= _PNG_BYTES:
            break
    return buffer.getvalue()


def plot(result: Explanation, rows: Rows | None, columns: int, ax: Axes | None, style: dict[str, Any]) -> Figure:
    """Returns a figure of overlays with their scales; `Explanation.plot` says more."""
    from konkyo.draw.clips import shared_limits
    from konkyo.draw.overlay import scale_of
    from konkyo.draw.panels import Panel, figure_of
    from konkyo.explanation.places import is_picture
    from konkyo.explanation.sheet import maps_of

    flat = is_picture(result)
    maps, panels = maps_of(result) if flat else result.maps, []
    columns = columns if flat else 1
    for row in numbers_of(result, rows):
        low, high = scale_of(maps[row], style.get("limits"))[1:] if flat else shared_limits(maps[row])
        doubt = diagnosis_in_words(result, row)
        lines = [*lines_of(result, row), *([f"! {doubt}"] if doubt else [])]
        panels.append(Panel(drawn(result, row, **style), lines, (low, high) if high > low else None))
    scale = "every map on one scale" if "limits" in style else "every map on its own scale"
    return figure_of(panels, columns, f"{_made_by(result)}; {scale}", ax)


def drawn(result: Explanation, row: int, **style: Any) -> Image.Image:
    """Returns a row's overlay, or its map alone where the picture is not known."""
    from konkyo.draw.overlay import OPACITY, overlay
    from konkyo.explanation.places import is_picture
    from konkyo.explanation.sheet import ground_of

    if result.images is not None or not is_picture(result):
        return result.overlay(row, **style)
    opacity = OPACITY * result.brightness(row, style.pop("brightness", "probability"))
    return overlay(ground_of(result, row), result.maps[row], **{"opacity": opacity, **style})


def captioned(result: Explanation, row: int, picture: Image.Image, caption: str | bool) -> Image.Image:
    """Returns the picture over a strip that says what it shows; a small picture is enlarged until words fit.

    `caption`: the text, or True for class, score, decision, method and diagnosis.
    """
    from konkyo.draw.text import Font, text_lines
    from konkyo.explanation.places import is_picture

    if caption is True:
        lines = [*lines_of(result, row), _made_by(result)]
        doubt = diagnosis_in_words(result, row, message=True)
    else:
        lines, doubt = str(caption).splitlines() or [""], ""
    if picture.width < _CAPTION_WIDTH:
        times = -(-_CAPTION_WIDTH // picture.width)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    size = max(13, round(picture.width / 40)) if is_picture(result) else 14
    font, bold, edge, step = Font(size), Font(size, bold=True), size // 2, round(size * 1.35)
    texts = [
        (part, bold if number == 0 else font, "#1a1a1a" if number < 2 else "#505050")
        for number, line in enumerate(lines)
        for part in text_lines(line, bold if number == 0 else font, picture.width - 2 * edge, 3)
    ]
    texts += [(part, font, "#8f4a00") for part in text_lines(doubt, font, picture.width - 2 * edge, 4)]
    strip = Image.new("RGB", (picture.width, picture.height + len(texts) * step + 2 * edge), "white")
    strip.paste(picture, (0, 0))
    canvas = ImageDraw.Draw(strip)
    for number, (text, face, colour) in enumerate(texts):
        face.draw(canvas, (edge, picture.height + edge + number * step), text, colour)
    return strip


# --- parts ------------------------------------------------------------------------------------------------------------


def _made_by(result: Explanation) -> str:
    return f"{result.method} at {result.layer}" + (f" of {result.model}" if result.model else "")


def _short(result: Explanation, row: int) -> str:
    """Returns a row in a word or two, as in "cat (P 0.93)"."""
    decision = decision_of(result, row)
    if decision is None or decision.asked_probability is None:
        return score_in_words(result, row, place=False)
    probability = decision.of_the_asked.partition(",")[0]
    return f"{result.labels[row]} ({probability})"


def _absences(result: Explanation) -> str:
    """Returns how many images have no map, and why the first has none; "" where all have some."""
    if not result.absences:
        return ""
    return f"{counted(len(result.absences), 'image')} without a map: {next(iter(result.absences.values()))}"


def _doubts(result: Explanation) -> str:
    """Returns how many maps are doubtful, and of which kinds; "" where none is."""
    kinds = Counter(d.kind for d in result.diagnosis if not d.ok)
    count = sum(kinds.values())
    listed = ", ".join(f"{kind} ({number})" if len(kinds) > 1 else kind for kind, number in kinds.most_common())
    if not count:
        return ""
    return f"doubtful: {count} of {counted(len(result), 'map')}: {listed}"


def _card(result: Explanation, row: int, picture: tuple[bytes, int] | None) -> str:
    """Returns an overlay with what is said of it."""
    score, doubt = score_in_words(result, row), diagnosis_in_words(result, row)
    lines = [f'<div style="opacity:0.75">{markup.escaped(name)}</div>' if (name := name_of(result, row)) else ""]
    lines.append(f"<div><b>{markup.escaped(score)}</b></div>")
    for words in (decided_in_words(result, row), truth_in_words(result, row, also_right=True)):
        lines.append(f"<div>{markup.escaped(words)}</div>" if words else "")
    if doubt:
        message = result.diagnosis[row].message
        full = markup.escaped(diagnosis_in_words(result, row, message=True))
        lines.append(
            f'<details><summary title="{full}"><b>&#9888; {markup.escaped(doubt)}</b></summary>'
            f"{markup.escaped(message)}</details>"
        )
    elif result.diagnosis:
        lines.append('<div style="opacity:0.75">&#10003; ok</div>')
    alt = f"Map of {result.method} for {score}" + (f", {doubt}" if doubt else "")
    shown = "" if picture is None else markup.picture(picture[0], "jpeg", alt, width=picture[1])
    return f'<div style="width:208px;overflow-wrap:anywhere">{shown}{"".join(lines)}</div>'


def _encoded(pictures: Sequence[Image.Image]) -> list[tuple[bytes, int]]:
    """Returns the pictures as JPEG with their widths on the page, small enough for a notebook to keep."""
    for side, quality in _QUALITIES:
        files = []
        for picture in pictures:
            share = side / max(picture.size)
            size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
            buffer = BytesIO()
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=3).save(
                buffer, "jpeg", quality=quality, optimize=True
            )
            files.append((buffer.getvalue(), round(208 * picture.width / max(picture.size))))
        if sum(len(data) for data, _ in files) * 4 / 3 <= _HTML_BYTES:
            break
    return files

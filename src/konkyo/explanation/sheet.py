"""Explanations as contact sheets: a row per target, a column per method, of any number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from konkyo.draw.sheets import (
    Cell,
    Row,
    contact_sheet,
    drawings_below_each_other,
    gallery,
    picture_name,
    save_image,
)
from konkyo.errors import KonkyoError, NotApplicable
from konkyo.explanation.places import is_picture
from konkyo.explanation.words import (
    box_of,
    decided_in_words,
    diagnosis_in_words,
    image_name,
    lines_of,
    of_the_asked,
    score_in_words,
    truth_in_words,
)
from konkyo.utils.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from konkyo.explanation.result import Explanation

ROWS_OF_A_PAGE = 40
_ABREAST = 3  # rows of one method beside each other
_LONG_SIDE = 224  # of the grey that stands for a picture which is not known


def ground_of(result: Explanation, row: int) -> Image.Image:
    """Returns the picture that a row's map is drawn over; where none is known, a grey one of the map's shape."""
    if result.images is not None:
        return result.picture(row)
    grid = tuple(result.signed.shape[1:])
    if len(grid) != 2:
        raise KonkyoError(f"maps (h, w) can be drawn; these have the grid {grid}")
    share = _LONG_SIDE / max(grid)
    return Image.new("RGB", (max(1, round(grid[1] * share)), max(1, round(grid[0] * share))), "#969696")


def maps_of(result: Explanation) -> Tensor:
    """Returns the maps as they lie on the picture: of a picture with a border, without the border."""
    if result.regions is None or not len(result) or result.images is None:
        return result.maps
    width, height = result.picture(0).size
    # No larger than the cells of a sheet; a coarse map stays coarse, so that it is drawn on the scale of coarse maps.
    share = min(1.0, (60 if result.maps[0].numel() < 60 * 60 else 400) / max(width, height))
    return result.at((max(1, round(height * share)), max(1, round(width * share))))


def rows_of(
    results: Mapping[str, Explanation | NotApplicable], title: str | None = None, brightness: str = "probability"
) -> list[Row]:
    """Returns a row of a contact sheet per target, a cell per method.

    `title` None: the name of each row's image. KonkyoError: no method could be applied.
    """
    done = {name: result for name, result in results.items() if not isinstance(result, NotApplicable)}
    if not done:
        raise KonkyoError("; ".join(map(str, results.values())) or "a sheet needs an explanation")
    one = next(iter(done.values()))
    maps = {name: maps_of(result) for name, result in done.items()}
    rows = []
    for row in range(len(one)):
        cells = [
            Cell(None, f"not applicable: {str(result).partition(': ')[2]}")
            if isinstance(result, NotApplicable)
            else Cell(maps[name][row], diagnosis_in_words(result, row))
            for name, result in results.items()
        ]
        rows.append(
            Row(
                ground_of(one, row),
                image_name(one, row) if title is None else title,
                score_in_words(one, row, place=False),  # the box is drawn
                cells,
                asked=of_the_asked(one, row),
                decided=decided_in_words(one, row),
                truth=truth_in_words(one, row),
                brightness=one.brightness(row, brightness),
                box=None if one.images is None else box_of(one, row),
                part=one.part(row),
            )
        )
    return rows


def _captions(result: Explanation, row: int) -> list[str]:
    """Returns what is written below a row that is no picture."""
    doubt = diagnosis_in_words(result, row, message=True)
    return [*lines_of(result, row), *([f"! {doubt}"] if doubt else [])]


def sheet(result: Explanation, path: str | Path | None, page: int, title: str | None, brightness: str) -> Image.Image:
    """Returns a page of the sheet; `Explanation.sheet` says more."""
    if not len(result):
        raise KonkyoError("a sheet needs a row at least; this explanation has none")
    pages = -(-len(result) // ROWS_OF_A_PAGE)
    if not 1 <= page <= pages:
        raise KonkyoError(f"page {page} of a sheet with {counted(pages, 'page')} ({len(result)} rows)")
    rows = rows_of({result.method: result}, brightness=brightness) if is_picture(result) else []
    heading = f"{result.method} at {result.layer}" + (f" of {result.model}" if result.model else "")
    heading = heading if title is None else title
    if path is None:
        return _page(result, rows, page, pages, heading)
    path = picture_name(path)
    drawings = [_page(result, rows, number, pages, heading) for number in range(1, pages + 1)]
    for number, drawing in enumerate(drawings, start=1):
        save_image(drawing, path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return drawings[page - 1]


def _page(result: Explanation, rows: Sequence[Row], page: int, pages: int, title: str) -> Image.Image:
    title += f" ({page} of {pages})" if pages > 1 and title and not rows else ""
    if not rows:
        numbers = range((page - 1) * ROWS_OF_A_PAGE, min(page * ROWS_OF_A_PAGE, len(result)))
        return drawings_below_each_other(
            [result.overlay(n, caption="\n".join(_captions(result, n))) for n in numbers], title
        )
    part = rows[(page - 1) * ROWS_OF_A_PAGE : page * ROWS_OF_A_PAGE]
    title += f" ({page} of {pages})" if pages > 1 and title else ""
    of_one_image = result.images is not None and len(set(result.image_index.tolist())) == 1
    if of_one_image and len(rows) > 1 and pages == 1 and all(row.box is not None for row in rows):
        return gallery(rows, title=title)
    if result.images is None:
        part = [replace(row, title=f"{row.title} (no picture)") for row in part]
    return contact_sheet(part, [result.method], title=title, abreast=_ABREAST)

"""report(): any result of konkyo as one HTML file that anybody can open."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.diagnose.findings import Text
from konkyo.models.base import Model
from konkyo.report.builders import Request, page_of
from konkyo.report.html import Language, html_of, strings
from konkyo.report.page import ImageRow, Page
from konkyo.utils.files import write_text

PICTURES = 500
"""So many rows have pictures at most, unless more are asked for."""
_LISTED = 6  # so many pictures of a shortlist are shown above the table
_PRIVATE = ("file", "folder", "path", "command", "data", "train", "user", "host")
_SUFFIX = r"\.(?:png|jpe?g|webp|bmp|gif|tiff?|dcm|nii|mh[ad]|np[yz]|csv|tsv|txt|json|safetensors|pth?|onnx)(?:\.gz)?\b"
_PATHS = re.compile(
    rf"\S*[\\/][^\n]*?{_SUFFIX}"  # a path to a file, which may have spaces
    r"|(?<!\w)(?:[A-Z]:)?[\\/]\w\S*"  # a folder
    r"|\b[a-z]+\d*:[^\s\d]\S*"  # data, as in folder:DIR
    rf"|[^\s'\"(]+{_SUFFIX}",  # a file's name
    re.IGNORECASE,
)


def report(
    result: Any,
    path: str | Path,
    *,
    title: str | None = None,
    lang: Language = "auto",
    pictures: int | Literal["all"] = PICTURES,
    anonymous: bool = False,
    command: str | None = None,
    model: Model | None = None,
) -> Path:
    """Writes the report of a result into one HTML file, which needs no network and no Python. -> the path

    `result`: an Explanation, several (a list, or what `compare` returns), or another result that a builder knows.
    `lang`: "en", "ja", or "auto" for the reader's browser; both are in the file. `pictures`: how many rows have
    pictures at most, flagged ones first; all rows are in the table. `anonymous`: without names of files, and without
    the command. `command`: the command line that makes it again. `model`: adds the hash of its weights.
    KonkyoError: a result that no builder knows, or a file that cannot be written.
    """
    if lang not in (offer := ("auto", "en", "ja")):
        raise unknown("language", lang, offer)
    if pictures != "all" and (isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 0):
        raise KonkyoError(f'pictures is a number of images, 0 or more, or "all"; got {pictures!r}')
    to = Path(path)
    if to.suffix.lower() not in (".html", ".htm"):
        raise KonkyoError(f"a report is written as .html; got {to.name!r}")
    page = page_of(result, Request(title, model, command, None if pictures == "all" else pictures))
    page = page if title is None else replace(page, title=title)
    page = page if command is None else replace(page, command=command)
    page = page if pictures == "all" else with_fewer_pictures(page, pictures)
    write_text(to, html_of(anonymised(page) if anonymous else page, lang=lang))
    return to


def with_fewer_pictures(page: Page, most: int) -> Page:
    """Returns the page with pictures and maps in `most` rows at most, and a note that says which.

    Two thirds of them go to rows that a class or a shortlist shows, then to those with flags, in their order. The rest
    is spread evenly over the other rows that have a picture.
    """
    rows = page.rows
    if len(rows) <= most:
        return page
    named = {k for card in page.classes for k in (*card.typical, *card.deviant)}
    named |= {k for entry in page.shortlists for k in entry.rows[:_LISTED]}
    able = [k for k, row in enumerate(rows) if row.picture is not None] or list(range(len(rows)))
    flagged = [k for k in able if rows[k].flags or rows[k].correct is False or k in named]
    flagged.sort(key=lambda k: k not in named)  # those that the page shows elsewhere, too, come first
    others = [k for k in able if k not in set(flagged)]
    first = flagged[: max(most * 2 // 3, most - len(others))]
    rest = most - len(first)
    chosen = {*first, *(others[k * len(others) // rest] for k in range(min(rest, len(others))))}
    fewer = tuple(row if k in chosen else _bare(row) for k, row in enumerate(rows))
    note = {lang: text["pictures.left"].format(shown=len(chosen), total=len(rows)) for lang, text in strings().items()}
    return replace(page, rows=fewer, notes=(*page.notes, note))


def _bare(row: ImageRow) -> ImageRow:
    return replace(row, picture=None, maps=(), contrasts=(), neighbours=(), evidence=())


def anonymised(page: Page) -> Page:
    """Returns the page without names of files: images are numbered, and the command and folders are left out.

    Names and paths are replaced in sentences, too. Names of classes stay, and so does what the pictures show.
    """
    numbers: dict[str, int] = {}
    for row in page.rows:
        numbers.setdefault(row.name, len(numbers) + 1)
    for row in page.rows:
        for neighbour in row.neighbours:
            numbers.setdefault(neighbour.name, len(numbers) + 1)
    classes_known = {name for row in page.rows for name in (row.decision, row.true_label, row.asked)}
    names = sorted((name for name in numbers if name and name not in classes_known), key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)) if names else None

    def clean(text: str) -> str:
        known = text if pattern is None else pattern.sub(lambda match: f"image {numbers[match[0]]}", text)
        return _PATHS.sub("(a file)", known)

    def cleaned(text: Text) -> Text:
        return {lang: clean(value) for lang, value in text.items()}

    rows = tuple(
        replace(
            row,
            name=f"image {numbers[row.name]}",
            why=cleaned(row.why),
            neighbours=tuple(replace(n, name=f"image {numbers[n.name]}") for n in row.neighbours),
            evidence=tuple(replace(e, caption=cleaned(e.caption)) for e in row.evidence),
        )
        for row in page.rows
    )
    findings = tuple(
        replace(
            f,
            subject=clean(f.subject),
            sentence=cleaned(f.sentence),
            next_step=cleaned(f.next_step),
            evidence=tuple(replace(e, caption=cleaned(e.caption)) for e in f.evidence),
        )
        for f in page.findings
    )
    classes = tuple(
        replace(card, evidence=tuple(replace(e, caption=cleaned(e.caption)) for e in card.evidence))
        for card in page.classes
    )
    tables = tuple(
        replace(t, rows=[[clean(cell) if isinstance(cell, str) else cell for cell in line] for line in t.rows])
        for t in page.tables
    )
    return replace(
        page,
        title=clean(page.title),
        verdict=cleaned(page.verdict),
        rows=rows,
        findings=findings,
        classes=classes,
        tables=tables,
        figures=tuple(replace(e, caption=cleaned(e.caption)) for e in page.figures),
        notes=tuple(map(cleaned, page.notes)),
        provenance=_public(page.provenance, clean),
        command="",
    )


def _public(provenance: Mapping[str, str], clean: Callable[[str], str]) -> dict[str, str]:
    return {
        name: clean(value)
        for name, value in provenance.items()
        if not any(word in name.lower().split() for word in _PRIVATE)
    }

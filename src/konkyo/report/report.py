"""report(): any result of konkyo as one HTML file that anybody can open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.diagnose.findings import Evidence, Text
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
    r"\S*\.py:\w+"  # the function that builds a model
    r"|\btrained/\S+|\bhf/\.\S+"  # a folder of weights
    rf"|\S*[\\/][^\n]*?{_SUFFIX}"  # a path to a file, which may have spaces
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
    cleaner = _Cleaner.of(page)
    rows = (
        replace(
            row,
            name=cleaner.image(row.name),
            why=cleaner.text(row.why),
            neighbours=tuple(replace(n, name=cleaner.image(n.name)) for n in row.neighbours),
            evidence=cleaner.evidence(row.evidence),
        )
        for row in page.rows
    )
    findings = (
        replace(
            finding,
            subject=cleaner.string(finding.subject),
            sentence=cleaner.text(finding.sentence),
            next_step=cleaner.text(finding.next_step),
            evidence=cleaner.evidence(finding.evidence),
        )
        for finding in page.findings
    )
    tables = (
        replace(t, rows=[[cleaner.string(cell) if isinstance(cell, str) else cell for cell in line] for line in t.rows])
        for t in page.tables
    )
    return replace(
        page,
        title=cleaner.string(page.title),
        verdict=cleaner.text(page.verdict),
        rows=tuple(rows),
        findings=tuple(findings),
        classes=tuple(replace(card, evidence=cleaner.evidence(card.evidence)) for card in page.classes),
        tables=tuple(tables),
        figures=cleaner.evidence(page.figures),
        notes=tuple(map(cleaner.text, page.notes)),
        provenance={n: cleaner.string(v) for n, v in page.provenance.items() if not _is_private(n)},
        command="",
    )


@dataclass(frozen=True)
class _Cleaner:
    """It knows the images of a page by number, and takes names of files and paths out of what is said."""

    numbers: Mapping[str, int]
    pattern: re.Pattern[str] | None
    """The names that are replaced in sentences: not those that are names of classes, too."""

    @classmethod
    def of(cls, page: Page) -> _Cleaner:
        """Returns the cleaner of a page: its rows are numbered first, then what resembles them."""
        names = [row.name for row in page.rows] + [n.name for row in page.rows for n in row.neighbours]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
        classes = {name for row in page.rows for name in (row.decision, row.true_label, row.asked)}
        replaced = sorted((name for name in numbers if name and name not in classes), key=len, reverse=True)
        either = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in replaced)
        return cls(numbers, re.compile(either) if replaced else None)

    def image(self, name: str) -> str:
        """Returns what an image is called."""
        return f"image {self.numbers[name]}"

    def string(self, string: str) -> str:
        """Returns words without names of images and paths."""
        known = string if self.pattern is None else self.pattern.sub(lambda match: self.image(match[0]), string)
        return _PATHS.sub("(a file)", known)

    def text(self, text: Text) -> Text:
        """Returns words without them in every language."""
        return {lang: self.string(words) for lang, words in text.items()}

    def evidence(self, pictures: Sequence[Evidence]) -> tuple[Evidence, ...]:
        """Returns pictures with their captions cleaned."""
        return tuple(replace(picture, caption=self.text(picture.caption)) for picture in pictures)


def _is_private(name: str) -> bool:
    return any(word in name.lower().split() for word in _PRIVATE)

"""The report that commands write beside their results: its options, the page's file, and the command that made it."""

from __future__ import annotations

import json
import locale
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.errors import KonkyoError, unknown

if TYPE_CHECKING:
    from konkyo.models import Model
    from konkyo.report.page import Page

LANGUAGES = ("auto", "en", "ja")
Language = Annotated[str, typer.Option("--lang", help="The report's language at first: en, ja, or auto.")]
PictureCount = Annotated[
    str, typer.Option("--pictures", help="How many images of the report have pictures: a number, or all.")
]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="No file names and no command in the report.")]


@dataclass(frozen=True)
class ReportOptions:
    """Whether a report is written, and how."""

    report: Annotated[
        Path | None, typer.Option("--report", help="Also write FILE.html: everything on one page, for anybody.")
    ] = None
    lang: Language = "auto"
    pictures: PictureCount = "500"
    anonymous: Anonymous = False

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            raise unknown("--lang", self.lang, LANGUAGES)
        if self.pictures != "all" and not re.fullmatch("[0-9]+", self.pictures):
            raise KonkyoError(f"--pictures is a number or all; got {self.pictures!r}")
        if self.report is not None and self.report.suffix.lower() not in (".html", ".htm"):
            raise KonkyoError(f"--report is a file FILE.html; got {self.report.name!r}")

    @property
    def most(self) -> int | None:
        """Returns how many images have pictures at most; None: all."""
        return None if self.pictures == "all" else int(self.pictures)


def language_of(lang: str) -> str:
    """Returns the language of the terminal's sentences; "auto" is that of the locale. KonkyoError: another one."""
    if lang not in LANGUAGES:
        raise unknown("--lang", lang, LANGUAGES)
    if lang != "auto":
        return lang
    return "ja" if (locale.getlocale()[0] or "").startswith("ja") else "en"


def write_report(page: Page, options: ReportOptions) -> str:
    """Writes the page into the file of the options, and says so."""
    from konkyo.report.report import report

    assert options.report is not None
    pictures: Any = "all" if (most := options.most) is None else most
    path = report(page, options.report, lang=options.lang, pictures=pictures, anonymous=options.anonymous)  # type: ignore[arg-type] # checked
    return f"report: {path} ({path.stat().st_size / 1e6:.1f} MB)"


def made_by(model: Model | None) -> dict[str, Any]:
    """Returns what a command notes about itself beside its results: what made them, and the command line."""
    from konkyo.report.provenance import of_model, of_versions

    values = {} if model is None else of_model(model)
    return {"provenance": values | of_versions(), "command": command_line()}


def note_origin(folder: Path, model: Model | None) -> None:
    """Writes provenance.json beside results: what made them, and the command line."""
    from konkyo.utils.files import write_text

    write_text(folder / "provenance.json", json.dumps(made_by(model), indent=1))


def report_of_folder(folder: Path, options: ReportOptions) -> list[str]:
    """Writes the report of a folder, if one is asked for, and says so."""
    if options.report is None:
        return []
    from konkyo.report.builders import Request
    from konkyo.report.folder import page_of_folder

    return [write_report(page_of_folder(folder, Request(most=options.most)), options)]


def command_line() -> str:
    """Returns the command that runs now, its paths shortened to names."""
    return shlex.join(
        ["konkyo", *(re.sub(r"[^=:,]+", lambda part: _shortened(part[0]), word) for word in sys.argv[1:])]
    )


def _shortened(text: str) -> str:
    path = Path(text)
    return path.name if "/" in text and path.name and (path.is_absolute() or path.exists()) else text

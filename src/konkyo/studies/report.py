"""The files of a study that its report reads, those that the report writes, and its page as `konkyo.report` makes it.

Importing this makes folders of studies known there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from konkyo.data.images import open_image
from konkyo.draw.sheets import save_image
from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose.findings import Evidence
from konkyo.evaluation.result import Table, latex
from konkyo.report.builders import Request
from konkyo.report.folder import reader
from konkyo.report.page import Page, TableBlock, words
from konkyo.report.provenance import of_versions
from konkyo.report.report import report
from konkyo.studies.base import MAPS, STUDY, TestPicture, read_maps
from konkyo.utils.files import csv_of, read_json, write_text


def read_settings(folder: Path, kind: str) -> dict[str, Any]:
    """Returns the settings of a study of this kind ("gaze", "vib").

    KonkyoError: another folder, a file that cannot be read.
    """
    path = folder / STUDY
    if not path.is_file():
        raise KonkyoError(f"{folder} holds no study of `konkyo train {kind}`: {STUDY} was expected")
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("kind") != kind:
        raise KonkyoError(f"{folder} holds no study of {kind}: {STUDY} is of something else")
    return settings


def read_test_pictures(folder: Path) -> list[TestPicture]:
    """Returns the test pictures of a study, with the paths of their files; none where the study has no index of them.

    KonkyoError: an index that cannot be read.
    """
    path = folder / "pictures" / "index.json"
    if not path.is_file():
        return []
    try:
        return [TestPicture(str(e["name"]), str(e["label"]), str(path.parent / e["file"])) for e in read_json(path)]
    except (LookupError, TypeError) as error:
        raise KonkyoError(f"{path}: a list of name, label and file was expected ({error})") from error


def read_test_maps(folder: Path, count: int) -> Tensor:
    """Returns the raw maps (count, h, w) of a network of the study. KonkyoError: another number, or no maps."""
    maps = read_maps(folder)
    if len(maps) != count:
        raise KonkyoError(f"{folder / MAPS} has {len(maps)} maps of {count} pictures")
    return maps


def open_picture(picture: TestPicture) -> Image.Image:
    """Returns the picture in RGB. KonkyoError: its file cannot be read."""
    return open_image(picture.file)


def save_report(
    folder: Path,
    text: str,
    description: Mapping[str, Any],
    tables: Mapping[str, Iterable[Mapping[str, Any]]],
    pictures: Mapping[str, Image.Image],
    page: Page,
) -> Path:
    """Writes report.md, .html and .json, tables.tex, a csv file per table with rows, and pictures. -> the folder"""
    for name, picture in pictures.items():
        save_image(picture, folder / name)
    tables_of_page = (([*t.head], [[str(cell) for cell in row] for row in t.rows]) for t in page.tables)
    write_text(folder / "tables.tex", "\n".join(map(latex, tables_of_page)))
    for name, rows in tables.items():
        if rows:
            write_text(folder / f"{name}.csv", csv_of(rows))
    write_text(folder / "report.json", json.dumps(description, indent=1) + "\n")
    write_text(folder / "report.md", text)
    report(page, folder / "report.html")
    return folder


def study_page(
    title: str,
    settings: Mapping[str, Any],
    tables: Mapping[str, Table],
    pictures: Mapping[str, Image.Image],
    remarks: Sequence[str],
) -> Page:
    """Returns the page of a study: its tables that have rows, its pictures by file name, and its remarks."""
    provenance = {name: json.dumps(value) for name, value in settings.items() if isinstance(value, (dict, list))}
    provenance |= {name: str(value) for name, value in settings.items() if not isinstance(value, (dict, list))}
    return Page(
        title=title,
        verdict=words(remarks[0]) if remarks else {},
        tables=tuple(TableBlock(words(name), *table) for name, table in tables.items() if table[1]),
        figures=tuple(Evidence(picture, words(Path(name).stem)) for name, picture in pictures.items()),
        provenance={**provenance, **of_versions()},
        notes=tuple(map(words, remarks[1:])),
    )


@reader(STUDY)
def page_of_study(folder: Path, _request: Request) -> Page:
    """Returns the page of what `konkyo train gaze` or `konkyo train vib` left in a folder. KonkyoError: another one."""
    settings = read_json(folder / STUDY)
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if kind == "gaze":
        from konkyo.studies.gaze.report import report_gaze  # which imports this

        return report_gaze(folder).page()
    if kind == "vib":
        from konkyo.studies.vib.report import report_vib

        return report_vib(folder).page()
    raise KonkyoError(f"{folder / STUDY} is of a study of gaze or vib; got {kind!r}")

"""Folders of studies, as `konkyo.report` reads them. Importing this makes them known."""

from __future__ import annotations

from pathlib import Path

from konkyo.errors import KonkyoError
from konkyo.report.builders import Request
from konkyo.report.folder import reader
from konkyo.report.page import Page
from konkyo.studies.base import STUDY
from konkyo.studies.gaze.report import report_gaze
from konkyo.studies.vib.report import report_vib
from konkyo.utils.files import read_json


@reader(STUDY)
def page_of_study(folder: Path, _request: Request) -> Page:
    """Returns the page of what `konkyo train gaze` or `konkyo train vib` left in a folder. KonkyoError: another one."""
    settings = read_json(folder / STUDY)
    kind = settings.get("kind") if isinstance(settings, dict) else None
    if kind == "gaze":
        return report_gaze(folder).page()
    if kind == "vib":
        return report_vib(folder).page()
    raise KonkyoError(f"{folder / STUDY} is of a study of gaze or vib; got {kind!r}")

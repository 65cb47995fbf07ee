"""Download: the maps, the report, and the Python that makes the maps again."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gradio as gr
from markupsafe import Markup

from konkyo.apps.web.page import Page
from konkyo.apps.web.session import Session
from konkyo.apps.web.words import word
from konkyo.errors import KonkyoError
from konkyo.report.report import report

FORMATS = {"npz": "application/zip", "safetensors": "application/octet-stream", "png": "image/png", "html": "text/html"}
"""Suffix -> type of the files on offer; html is the report."""


def links_view(session: Session) -> str:
    """Returns links to the files that were made last; they hold the files themselves, and nothing lies on the disk."""
    if not session.files:
        return word(session.lang, "download.none" if session.results else "maps.first")
    links = [
        Markup('<li><a download="{}" href="data:{};base64,{}">{}</a> ({:.0f} kB)</li>').format(
            name, FORMATS[name.rpartition(".")[2]], base64.b64encode(data).decode("ascii"), name, len(data) / 1000
        )
        for name, data in session.files.items()
    ]
    return str(Markup("<ul>{}</ul>").format(Markup("").join(links)))


def code_view(session: Session) -> str:
    """Returns the Python that makes the same maps; "" where nothing is chosen."""
    return session.code() if session.chosen is not None and session.picture is not None else ""


def prepare(suffix: str, session: Session) -> None:
    """Makes the files of a format: one per map, or the report of all. KonkyoError: there are no maps."""
    if not session.results:
        raise KonkyoError(word(session.lang, "maps.first"))
    stem = re.sub(r"[^\w-]+", "-", Path(session.name).stem)[:60].strip("-") or "picture"
    with tempfile.TemporaryDirectory(prefix="konkyo-") as folder:
        if suffix == "html":
            to = Path(folder) / f"{stem}.html"
            report(dict(session.results), to, title=session.name, lang=session.lang)  # type: ignore[arg-type]
            session.files = {to.name: to.read_bytes()}
        else:
            written = [
                result.save(Path(folder) / f"{stem}.{re.sub(r'[^a-z0-9_]+', '-', name)}.{suffix}")
                for name, result in session.results.items()
            ]
            session.files = {path.name: path.read_bytes() for path in written}


def download_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    with gr.Row():
        for suffix in FORMATS:
            button = page.named(gr.Button(elem_id=f"download-{suffix}"), value=f"download.{suffix}")
            made: Callable[[Session], None] = partial(prepare, suffix)
            page.on(button.click, made)
    page.drawing(links_view, lambda s: (s.files, bool(s.results)), elem_id="links")
    code = page.named(
        gr.Code(language="python", interactive=False, elem_id="code", buttons=["copy"], show_line_numbers=False),
        label="download.code",
    )
    page.shown(code, code_view)

"""The layout of the page: where the panels stand, and what happens when it is opened or its language changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from konkyo.apps.web.page import Page, known
from konkyo.apps.web.panels.choose import choose_panel
from konkyo.apps.web.panels.compare import compare_panel
from konkyo.apps.web.panels.cover import cover_panel
from konkyo.apps.web.panels.curves import curves_panel
from konkyo.apps.web.panels.download import download_panel
from konkyo.apps.web.panels.explain import explain_panel, maps_panel
from konkyo.apps.web.panels.neighbours import neighbours_panel
from konkyo.apps.web.panels.path import path_panel
from konkyo.apps.web.session import Session
from konkyo.apps.web.shelf import Shelf
from konkyo.apps.web.words import LANGUAGES, language_of

PANELS: dict[str, Callable[[Page], None]] = {
    "maps": maps_panel,
    "compare": compare_panel,
    "cover": cover_panel,
    "curves": curves_panel,
    "path": path_panel,
    "neighbours": neighbours_panel,
    "download": download_panel,
}
_LANGUAGE = "language => { document.documentElement.lang = language; return [language]; }"


def theme_of() -> Any:
    """Returns the theme: fonts of the reader's own system, for none is fetched from anywhere."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Hiragino Sans", "Noto Sans CJK JP", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"]
    )
    grey, blue = "#475569", "#1d4ed8"  # of enough contrast on white
    return theme.set(
        body_text_color_subdued=grey,
        block_info_text_color=grey,
        block_label_text_color=grey,
        block_title_text_color=grey,
        color_accent=blue,
        button_primary_background_fill=blue,
        button_primary_background_fill_hover="#1e40af",
    )


def blocks_of(shelf: Shelf) -> Any:
    """Returns the page."""
    with gr.Blocks(title="konkyo", analytics_enabled=False, delete_cache=(600, 1800), fill_width=True) as blocks:
        page = Page(shelf)
        with gr.Row(elem_classes="head"):
            page.named(gr.Markdown(elem_classes="head"), value="head")
            language = gr.Radio(
                [("English", "en"), ("日本語", "ja")],
                value="en",
                label="Language / 言語",
                elem_id="language",
                scale=0,
                min_width=270,
            )
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                choose_panel(page)
            with gr.Column(scale=3, min_width=320):
                explain_panel(page)
                with gr.Tabs(elem_id="tabs"):
                    for key, panel in PANELS.items():
                        with page.named(gr.Tab(elem_id=f"tab-{key}"), label=f"tab.{key}"):
                            panel(page)
        page.wire()
        outputs = [*page.outputs, *page.worded, language]

        def opened(session: Session | None, request: gr.Request) -> Iterator[list[Any]]:
            session = known(page, session)
            session.sent.clear()  # a new page shows nothing yet
            session.lang = language_of(request.headers.get("accept-language"))
            yield [*page.values(session), *page.words(session), session.lang]

        def translated(session: Session | None, lang: Any) -> list[Any]:
            session = known(page, session)
            session.lang = lang if lang in LANGUAGES else "en"
            return [*page.values(session), *page.words(session), session.lang]

        started = blocks.load(opened, [page.state], outputs, api_visibility="private", show_progress="hidden")
        started.then(None, [language], [language], js=_LANGUAGE, api_visibility="private")
        language.input(
            translated, [page.state, language], outputs, api_visibility="private", show_progress="hidden"
        ).then(None, [language], [language], js=_LANGUAGE, api_visibility="private")
    return blocks

"""The command that serves the web page."""

from __future__ import annotations

from typing import Annotated

import typer

from konkyo.apps.cli.options import Port
from konkyo.apps.cli.terminal import print_note


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model to offer beside those that ship; repeatable. Files are read only if named here.",
        ),
    ] = None,
    allow_ids: Annotated[
        bool,
        typer.Option(
            "--allow-ids", help="Users may name any model of torchvision, timm and transformers; it may be fetched."
        ),
    ] = False,
    data: Annotated[
        str, typer.Option("--data", "-d", help="Whose pictures are offered as samples; drawn scenes.")
    ] = "",
    port: Port = 7860,
) -> None:
    """Serve a web page on which models are explained: choose, click, see maps, cover, compare."""
    from konkyo.apps.web.server import serve as serve_page
    from konkyo.apps.web.shelf import Shelf

    shelf = Shelf(tuple(models or ()), allow_ids, data)
    for name in shelf.names or shelf.offer[:1]:  # what cannot be loaded is said now, and not to the first user
        print_note(f"loading {name} ...")
        shelf.model(name)

    def ready(address: str) -> None:
        print_note(f"konkyo is at {address} (Ctrl+C ends it)")

    serve_page(shelf, port=port, ready=ready)

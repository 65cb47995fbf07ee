"""HTML that a notebook shows: escaped text, tables, and pictures inside the page. No script, and no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

_CELL = "padding:2px 8px;text-align:left;vertical-align:top;border:0"


def escaped(text: object) -> str:
    """Returns text as it stands between tags or in an attribute, whatever it holds.

    >>> escaped('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    return escape(str(text).encode("utf-8", "replace").decode())


def picture(data: bytes, kind: str, alt: str, *, width: int | None = None) -> str:
    """Returns an `img` that holds the picture itself. `kind`: "png", "jpeg" or "webp"; `alt`: the picture in words."""
    wide = "" if width is None else f' width="{width}"'
    return (
        f'<img src="data:image/{kind};base64,{b64encode(data).decode()}" alt="{escaped(alt)}"{wide} '
        'style="max-width:100%;display:block;margin:0">'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table. Its cells are HTML already: text goes through `escaped` before."""
    first = "".join(f'<th scope="col" style="{_CELL}">{cell}</th>' for cell in head)
    lines = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return (
        '<table style="border-collapse:collapse;font-size:13px;margin:4px 0 8px">'
        f"<thead><tr>{first}</tr></thead><tbody>{lines}</tbody></table>"
    )


def block(*parts: str) -> str:
    """Returns the parts below each other, as one output of a notebook."""
    return f'<div style="font-size:13px;line-height:1.4">{"".join(part for part in parts if part)}</div>'


def title(text: str) -> str:
    """Returns a heading line."""
    return f'<div style="font-weight:600;font-size:14px;margin:2px 0 6px">{escaped(text)}</div>'


def note(text: str) -> str:
    """Returns a remark under what it is about."""
    return f'<div style="opacity:0.75;margin:4px 0">{escaped(text)}</div>'

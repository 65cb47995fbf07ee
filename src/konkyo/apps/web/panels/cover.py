"""Cover: a region is covered, and the scores that move are shown beside those of other places."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gradio as gr
from markupsafe import Markup

from konkyo.apps.web.page import Page, box_of, event_data, number_of
from konkyo.apps.web.pictures import image, stage
from konkyo.apps.web.session import Session
from konkyo.apps.web.words import word
from konkyo.errors import KonkyoError, unknown
from konkyo.evaluation.perturbation import cover

FILLS = ("blur", "mean", "noise")


def region_view(session: Session) -> str:
    """Returns the picture to draw a rectangle on, with the region that was covered last."""
    seen = session.seen()
    region = None
    if seen is not None and session.region is not None:
        sides = (seen.width, seen.height) * 2
        region = [share * side for share, side in zip(session.region, sides, strict=True)]
    description = word(session.lang, "cover.picture" if seen else "picture.none")
    return stage(seen, description=description, drag=True, region=region)


def covering_view(session: Session) -> str:
    """Returns what covering did: the score and the decision before and after, and what other places did."""
    covering = session.covering
    if covering is None or session.chosen is None:
        return word(session.lang, "cover.none")
    rows = [
        (word(session.lang, "cover.before"), f"{covering.before:.3f}", covering.decision),
        (word(session.lang, "cover.after"), f"{covering.after:.3f}", covering.decision_after),
    ]
    if covering.controls:
        mean = sum(covering.controls) / len(covering.controls)
        low, high = min(covering.controls), max(covering.controls)
        label = word(session.lang, "cover.controls", count=len(covering.controls))
        rows.append((label, f"{mean:.3f}", f"{low:.3f} … {high:.3f}"))
    head = [session.chosen.label, word(session.lang, "cover.score"), word(session.lang, "cover.decision")]
    lines = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td class="number">{}</td><td>{}</td></tr>').format(*row) for row in rows
    )
    heads = Markup("").join(Markup('<th scope="col">{}</th>').format(text) for text in head)
    key = "cover.falls" if covering.fall >= 0 else "cover.rises"
    words = word(session.lang, key, fall=f"{abs(covering.fall):.3f}", controls=_signed(covering.control_fall))
    return str(
        Markup('<p class="said">{}</p><table class="moves"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(
            words, heads, lines
        )
        + Markup('<div class="cards"><figure class="card">{}<figcaption>{}</figcaption></figure></div>').format(
            image(covering.picture, word(session.lang, "cover.picture.after")),
            word(session.lang, "cover.picture.after"),
        )
    )


def _signed(fall: float) -> str:
    return "-" if math.isnan(fall) else f"{fall:.3f}"


def cover_region(session: Session, box: tuple[float, float, float, float], fill: Any) -> None:
    """Covers a region, shares of the sides of what the model sees, and keeps what that did. KonkyoError: no region."""
    if fill not in FILLS:
        raise unknown("fill", str(fill)[:40], FILLS)
    left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in box)
    if not (right - left > 0.005 and bottom - top > 0.005):
        raise KonkyoError(word(session.lang, "cover.empty"))
    with session.running() as run:
        result, model, picture = session.any_result(run)
        covering = cover(model, picture, result, (left, top, right, bottom), fill=fill, check=run.check)
        session.region, session.covering = (left, top, right, bottom), covering


def drawn_region(session: Session, fill: Any, event: gr.EventData) -> None:
    """Covers the rectangle that was drawn; a click alone does nothing."""
    seen, data = session.seen(), event_data(event)
    if seen is not None and "box" in data:
        x0, y0, x1, y1 = box_of(data["box"])
        cover_region(session, (x0 / seen.width, y0 / seen.height, x1 / seen.width, y1 / seen.height), fill)


def typed_region(session: Session, left: Any, top: Any, right: Any, bottom: Any, fill: Any) -> None:
    """Covers the region whose sides were typed, in percent."""
    x0, y0, x1, y1 = (number_of(side) / 100 for side in (left, top, right, bottom))
    cover_region(session, (x0, y0, x1, y1), fill)


def cover_panel(page: Page) -> None:
    """Builds the panel, and says what its events do."""
    page.named(gr.Markdown(), value="cover.how")
    with gr.Row():
        with gr.Column(min_width=280):
            region = page.drawing(region_view, lambda s: (s.model_name, s.picture, s.region), elem_id="region")
        with gr.Column(min_width=280):
            fill = page.named(gr.Dropdown(list(FILLS), value=FILLS[0], elem_id="fill"), label="cover.fill")
            with gr.Row():
                sides = [
                    page.named(
                        gr.Number(value, minimum=0, maximum=100, precision=0, min_width=70, elem_id=f"side-{name}"),
                        label=f"cover.{name}",
                    )
                    for name, value in (("left", 33), ("top", 33), ("right", 66), ("bottom", 66))
                ]
            go = page.named(gr.Button(elem_id="cover"), value="cover.go")
            page.drawing(covering_view, lambda s: (s.covering, s.chosen), elem_id="covering")
    for component, side in zip(sides, range(4), strict=True):
        page.shown(component, partial(_side, side), lambda s: (s.region,))
    page.on(region.select, drawn_region, [fill])
    page.on(go.click, typed_region, [*sides, fill])


def _side(side: int, session: Session) -> Any:
    return gr.update() if session.region is None else round(100 * session.region[side])

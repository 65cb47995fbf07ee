"""Pictures of the page as HTML: pictures with boxes, cards of maps, a slider between two, an animation."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from PIL import Image

from konkyo.apps.web.choices import Choice
from konkyo.report.assets import data_uri

SIDE = 640
"""The longer side of a picture that is shown, in pixels; smaller ones are enlarged by the browser."""
_THUMBNAIL = 112


def image(picture: Image.Image, description: str, side: int = SIDE) -> Markup:
    """Returns a picture, as data in the page: nothing of it lies in a file."""
    return Markup('<img src="{}" alt="{}" draggable="false">').format(data_uri(picture, side), description)


def stage(
    picture: Image.Image | None,
    choices: Sequence[Choice] = (),
    chosen: Choice | None = None,
    *,
    description: str = "",
    drag: bool = False,
    region: Sequence[float] | None = None,
) -> str:
    """Returns the picture in which things are chosen: boxes are buttons, and points and rectangles are told.

    The component that holds it tells the event `select` with `choice`, or with `x` and `y`, or with `box`.
    """
    if picture is None:
        return str(Markup('<p class="empty">{}</p>').format(description))
    boxes = [(number, choice) for number, choice in enumerate(choices) if choice.box is not None]
    if chosen is not None and chosen.box is not None and chosen not in choices:
        known = [choice for choice in choices if choice.box == chosen.box]
        boxes += [] if known else [(-1, chosen)]
    boxes.sort(key=lambda entry: -entry[1].area)
    parts = [image(picture, description)]
    for number, choice in boxes:
        assert choice.box is not None
        pressed = chosen is not None and chosen.box == choice.box
        attributes = Markup('type="button" data-choice="{}" aria-pressed="{}" aria-label="{}"').format(
            number, str(pressed).lower(), choice.words
        )
        tag = "button" if number >= 0 else "span"
        parts.append(
            Markup('<{} class="box" {} style="{}"><span class="tag">{}</span></{}>').format(
                Markup(tag),
                attributes if number >= 0 else "",
                _place(choice.box, picture),
                choice.words,
                Markup(tag),
            )
        )
    if region is not None:
        parts.append(Markup('<span class="region" style="{}"></span>').format(_place(region, picture)))
    return str(
        Markup('<div class="stage" data-width="{}" data-height="{}"{} style="aspect-ratio:{}/{}">{}</div>').format(
            picture.width,
            picture.height,
            Markup(" data-drag") if drag else "",
            picture.width,
            picture.height,
            Markup("").join(parts),
        )
    )


def thumbnails(entries: Sequence[tuple[Image.Image, str]], chosen: int | None = None) -> str:
    """Returns pictures that are buttons; the component that holds them tells `select` with `choice`."""
    parts = [
        Markup('<button type="button" class="thumbnail" data-choice="{}" aria-pressed="{}">{}</button>').format(
            number, str(number == chosen).lower(), image(picture, name, _THUMBNAIL)
        )
        for number, (picture, name) in enumerate(entries)
    ]
    return str(Markup('<div class="thumbnails">{}</div>').format(Markup("").join(parts)))


def chips(labels: Sequence[str], chosen: int | None = None) -> str:
    """Returns words that are buttons; the component that holds them tells `select` with `choice`."""
    parts = [
        Markup('<button type="button" class="chip" data-choice="{}" aria-pressed="{}">{}</button>').format(
            number, str(number == chosen).lower(), label
        )
        for number, label in enumerate(labels)
    ]
    return str(Markup('<div class="chips">{}</div>').format(Markup("").join(parts)))


def card(title: str, picture: Image.Image | None, lines: Sequence[str], doubt: str = "", side: int = SIDE) -> Markup:
    """Returns a map with what is said of it; `doubt` stands out."""
    drawing = "" if picture is None else image(picture, title, side)
    paragraphs = Markup("").join(Markup("<p>{}</p>").format(line) for line in lines if line)
    warning = Markup('<p class="doubt">{}</p>').format(doubt) if doubt else ""
    return Markup('<figure class="card">{}<figcaption><h3>{}</h3>{}{}</figcaption></figure>').format(
        drawing, title, paragraphs, warning
    )


def cards(entries: Sequence[Markup], label: str = "") -> str:
    """Returns cards side by side."""
    if not entries:
        return str(Markup('<p class="empty">{}</p>').format(label))
    return str(Markup('<div class="cards">{}</div>').format(Markup("").join(entries)))


def slider(before: tuple[Image.Image, str], after: tuple[Image.Image, str], label: str) -> str:
    """Returns two pictures of one size on top of each other; a slider uncovers the one or the other."""
    size = before[0].size
    other = after[0] if after[0].size == size else after[0].resize(size)
    return str(
        Markup(
            '<div class="reveal" style="--at:50%"><div class="reveal-pictures" style="aspect-ratio:{}/{}">{}{}'
            '<span class="reveal-line"></span></div><div class="reveal-names"><span>{}</span><span>{}</span></div>'
            '<input type="range" min="0" max="100" value="50" data-reveal aria-label="{}"></div>'
        ).format(*size, image(before[0], before[1]), image(other, after[1]), before[1], after[1], label)
    )


def animation(frames: Sequence[Image.Image], captions: Sequence[str], label: str, play: str) -> str:
    """Returns pictures one after the other, moved by a slider or played."""
    parts = [
        Markup('<figure class="frame"{}>{}<figcaption>{}</figcaption></figure>').format(
            "" if number == 0 else Markup(" hidden"), image(frame, caption, 320), caption
        )
        for number, (frame, caption) in enumerate(zip(frames, captions, strict=True))
    ]
    return str(
        Markup(
            '<div class="animation"><div class="frames">{}</div><div class="controls">'
            '<button type="button" data-play>{}</button>'
            '<input type="range" min="0" max="{}" value="0" data-frame aria-label="{}"></div></div>'
        ).format(Markup("").join(parts), play, len(frames) - 1, label)
    )


def _place(box: Sequence[float], picture: Image.Image) -> str:
    """Returns a box of the picture as shares of its sides, for a style."""
    left, right = (min(max(side / picture.width, 0), 1) * 100 for side in (box[0], box[2]))
    top, bottom = (min(max(side / picture.height, 0), 1) * 100 for side in (box[1], box[3]))
    return f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"

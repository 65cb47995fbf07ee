"""How concepts show themselves: in lines, in a notebook, and as sheets of their maps over the images."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from konkyo.draw.sheets import Cell, Row, contact_sheet
from konkyo.errors import KonkyoError
from konkyo.utils import markup

if TYPE_CHECKING:
    from konkyo.concepts.factorisation import Concepts
    from konkyo.concepts.importance import Importance

_NAMED = 4  # concepts of a repr
_SHOWN = 3  # images per concept in a notebook


def words_of(concepts: Concepts) -> str:
    """Returns the concepts in two lines."""
    grid = "x".join(map(str, concepts.maps.shape[2:]))
    head = (
        f"Concepts: {len(concepts)} with maps {grid} in {len(concepts.maps)} images, at {concepts.layer} of "
        f"{concepts.model.name}; they leave out {concepts.error:.0%} of the features"
    )
    parts = [f"{j + 1}: {title_of(concepts, j)}" for j in range(min(_NAMED, len(concepts)))]
    return f"{head}\n  {', '.join(parts)}{', ...' if len(concepts) > _NAMED else ''}"


def title_of(concepts: Concepts, concept: int, importance: Importance | None = None) -> str:
    """Returns what is said of a concept: its share of the energy, its class, what it counts."""
    parts = [f"{float(concepts.energy[concept]):.0%}"]
    if concepts.labels[concept]:
        parts.append(concepts.labels[concept])
    if importance is not None:
        parts.append(f"counts {float(importance.values[concept]):.2f}")
    return " ".join(parts)


def html_of(concepts: Concepts) -> str:
    """Returns the examples of every concept as one picture."""
    head = markup.title(words_of(concepts).partition("\n")[0].removeprefix("Concepts: "))
    try:
        picture = examples_of(concepts, _SHOWN, None, 112)
    except KonkyoError as error:  # signals, volumes
        return markup.block(head, markup.note(f"Not drawn: {error}."))
    buffer = BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80)
    return markup.block(head, markup.picture(buffer.getvalue(), "jpeg", "the images that hold most of every concept"))


def sheet_of(concepts: Concepts, images: Sequence[int]) -> Image.Image:
    """Returns a sheet with a row per image and a column per concept. KonkyoError: maps that are no pictures."""
    _require_pictures(concepts)
    columns = [f"concept {j + 1}: {title_of(concepts, j)}" for j in range(len(concepts))]
    rows = [
        Row(concepts.picture(i), concepts.names[i], cells=[Cell(map_.cpu()) for map_ in concepts.maps[i]])
        for i in images
    ]
    heading = f"concepts at {concepts.layer} of {concepts.model.name}"
    return contact_sheet(rows, columns, title=heading)


def examples_of(
    concepts: Concepts, k: int, importance: Importance | None, side: int, only: Sequence[int] | None = None
) -> Image.Image:
    """Returns a row per concept: the k images that hold most of it. By importance, where it is known, else by energy.

    The maps of a concept have one scale, from 0 to their highest value, so that a faint one is faint.
    """
    from konkyo.draw.overlay import overlay
    from konkyo.draw.text import Font, elided

    _require_pictures(concepts)
    if k < 1:
        raise KonkyoError(f"1 image or more per concept was expected; got {k}")
    order = range(len(concepts)) if importance is None else importance.values.argsort(descending=True).tolist()
    chosen = [j for j in order if only is None or j in only]
    if not chosen:
        raise KonkyoError(f"only: concepts from 0 to {len(concepts) - 1} were expected; got {only}")
    gap, strips = 4, []
    for j in chosen:
        limits = (0.0, max(float(concepts.maps[:, j].amax()), 1e-12))
        cells = [
            overlay(concepts.picture(i), concepts.maps[i, j].cpu(), limits=limits) for i in concepts.strongest(j, k)
        ]
        strip = Image.new("RGB", (len(cells) * (side + gap) - gap, side + 24), "white")
        for column, cell in enumerate(cells):
            scale = side / max(cell.size)
            size = (max(1, round(cell.width * scale)), max(1, round(cell.height * scale)))
            small = cell.resize(size, Image.Resampling.BICUBIC)
            strip.paste(small, (column * (side + gap) + (side - size[0]) // 2, 24 + (side - size[1]) // 2))
        words = elided(f"concept {j + 1}: {title_of(concepts, j, importance)}", Font(13), strip.width)
        Font(13).draw(ImageDraw.Draw(strip), (0, 3), words, "#1a1a1a")
        strips.append(strip)
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height + gap for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + gap
    return sheet


def _require_pictures(concepts: Concepts) -> None:
    if concepts.maps.ndim != 4:
        raise KonkyoError(f"maps (N, r, h, w) of pictures can be drawn; these are {tuple(concepts.maps.shape)}")

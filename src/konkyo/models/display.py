"""How a model shows itself: in a line, and in a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from konkyo.errors import KonkyoError
from konkyo.utils import markup

if TYPE_CHECKING:
    from konkyo.models.base import Model

_CLASSES = 12  # names in a notebook


def words_of(model: Model) -> str:
    """Returns the model in a line: name, classes, size of its images, automatic layer, device. Nothing is run.

    The layer is there once a trace has found it, which the first explanation makes.
    """
    parts = [model.name, model.task.noun, f"{len(model.classes)} classes" if model.classes else "classes without names"]
    shape = _shape(model)
    if shape is not None:
        parts.append("x".join(map(str, shape[1:])))
        if layer := "+".join(layer.name for layer in model.known_layers(shape)):
            parts.append(layer)
    return f"Model({', '.join([*parts, _device(model)])})"


def html_of(model: Model) -> str:
    """Returns a table of what the model is; the automatic layer is looked for, by one traced forward and backward."""
    module, shape = model.module, _shape(model)
    count = sum(parameter.numel() for parameter in module.parameters())
    names = ", ".join(model.classes[:_CLASSES]) + (", ..." if len(model.classes) > _CLASSES else "")
    layer = "depends on the size of the images, which no preprocessing says"
    if shape is not None:
        try:
            layer = " + ".join(part.name for part in model.automatic_layers(shape)) or "none: no module puts out a grid"
        except KonkyoError as error:
            layer = f"not known: {error}"
    prepared = "none: it takes tensors that are preprocessed" if model.preprocess is None else repr(model.preprocess)
    rows = {
        "network": f"{type(module).__name__}, {count:,} parameters, on {_device(model)}",
        "task": model.task.noun,
        "classes": f"{len(model.classes)}: {names}" if model.classes else "no names",
        "preprocessing": prepared,
        "images": "any" if shape is None else " x ".join(map(str, shape)),
        "automatic layer": layer,
    }
    body = [[f"<b>{markup.escaped(name)}</b>", markup.escaped(value)] for name, value in rows.items()]
    return markup.block(markup.title(model.name), markup.table((), body))


def _shape(model: Model) -> tuple[int, ...] | None:
    """Returns the shape (C, H, W) of images of its preprocessing, where that does not depend on the picture's."""
    preprocess = model.preprocess
    if preprocess is None:
        return None
    size = preprocess.side
    if size is None or (preprocess.crop is None and not isinstance(size, (tuple, list))):
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return (len(preprocess.mean), *sides)


def _device(model: Model) -> str:
    like = model.like()
    return "cpu" if like is None else str(like.device)

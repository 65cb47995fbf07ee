"""The commands that list what there is: methods, metrics, and the layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.apps.cli.options import Device, Json, ModelOptions, Question, Weights, question_of, setup_of, size_of
from konkyo.apps.cli.terminal import print_json, print_table
from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from konkyo.engine.trace import Site
    from konkyo.models import Model

from konkyo.apps.cli.pictures import failures_of


def list_methods(as_json: Json = False) -> None:
    """List the methods with what they need and their options."""
    from konkyo.methods.base import methods

    registered = methods()
    if as_json:
        table: dict[str, Any] = {
            name: {
                "summary": m.summary,
                "needs": m.needs,
                "layer": m.layer or "feature grid",
                "options": {o: repr(p.default) for o, p in m.options.items()},
            }
            for name, m in registered.items()
        }
        print_json(table)
        return
    rows = [
        (n, m.summary, ", ".join(f"{o}={p.default!r}" for o, p in m.options.items())) for n, m in registered.items()
    ]
    print_table(["method", "what it gives", "options"], rows)


def list_metrics(as_json: Json = False) -> None:
    """List the metrics with what they need and their options."""
    from konkyo.metrics import metrics as registered

    metrics = registered()
    if as_json:
        table = {
            name: {
                "summary": m.description,
                "better": m.better,
                "needs": m.needs,
                "options": {o: repr(p.default) for o, p in m.options.items()},
            }
            for name, m in metrics.items()
        }
        print_json(table)
        return
    rows = [
        (n, m.better, m.description, ", ".join(f"{o}={p.default!r}" for o, p in m.options.items()))
        for n, m in sorted(metrics.items())
    ]
    print_table(["metric", "better", "what it gives", "options"], rows)


def layers(
    model: Annotated[str, typer.Argument(help="As --model elsewhere.")],
    size: Annotated[
        str | None, typer.Option(help="Image size in pixels, or HEIGHTxWIDTH; default: the model's own.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the image; default: the model's own, or 3.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also the modules whose output is no grid.")] = False,
    question: Question = None,
    weights: Weights = "default",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """List the layers that can be explained, and whether the output uses them; an arrow marks the automatic one."""
    setup = setup_of(model, ModelOptions(weights=weights, device=device))
    if setup.model.takes_pictures:
        shape = _of_pictures(setup.model, size, channels)
    else:
        shape = _of_places(setup.model, size, channels)
    with failures_of(setup.model):
        network = setup.model.prompted(question=question_of(question))
        automatic = [layer.name for layer in network.automatic_layers(shape)]
        sites = [s for s in network.sites(shape) if every or s.layer is not None or s.name in automatic]
    _print_layers(sites, automatic, as_json)


def _of_pictures(model: Model, size: str | None, channels: int | None) -> tuple[int, ...]:
    """Returns the shape of the pictures that options mean, (C, H, W)."""
    preprocess = model.preprocess
    side = (size_of(size) if size else None) or (preprocess and preprocess.side) or 224
    height, width = side if isinstance(side, tuple) else (side, side)
    return channels or (len(preprocess.mean) if preprocess else 3), height, width


def _of_places(model: Model, size: str | None, channels: int | None) -> tuple[int, ...]:
    """Returns the shape of the inputs (C, *places) that options mean, of a network of other inputs than pictures."""
    from konkyo.models.readers import Clips

    reader, places = model.reader, model.axes.places if model.axes else ()
    sides = [int(part) for part in (size or "").lower().split("x") if part.isdigit()]
    if isinstance(reader, Clips) and not size:
        side = reader.picture.side or 112
        sides = [reader.frames, *(side if isinstance(side, tuple) else (side, side))]
    if not sides or (places and len(sides) != len(places)):
        order = "x".join(name.upper() for name in places) or "the size of an input"
        raise KonkyoError(f"--size says how large an input of {model.name} is: {order}, as in 16x112x112; got {size!r}")
    usual = 3 if places == Clips.places else 1
    return (channels or usual, *sides)


def _print_layers(sites: Sequence[Site], automatic: Sequence[str], as_json: bool) -> None:
    """Prints layers as a table, or as JSON."""
    if as_json:
        listed = [
            {"name": s.name, "kind": s.kind, "shape": s.shape, "grid": s.grid, "used": s.used, "place": s.place}
            for s in sites
        ]
        print_json({"automatic": "+".join(automatic) or None, "layers": listed})
        return
    rows = [
        (
            ("→ " if s.name in automatic else "  ") + s.name + (f"#{s.call}" if s.calls > 1 else ""),
            s.kind,
            "x".join(map(str, s.shape)),
            "x".join(map(str, s.grid)),
            "yes" if s.used else "no",
        )
        for s in sites
    ]
    # A detector's may be none of those that the trace takes for a grid.
    rows += [(f"→ {name}", "", "", "", "") for name in automatic if name not in {s.name for s in sites}]
    print_table(["layer", "module", "output", "grid", "used"], rows)

"""What the commands have in common: their options, and how these become a model, targets and methods."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from konkyo.models import Model

out, err = Console(), Console(stderr=True)

Images = Annotated[list[str], typer.Argument(help="Image files, folders (searched through), or quoted globs.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="konkyo/NAME, torchvision/NAME, timm/NAME, hf/ID, hf/FOLDER, trained/FOLDER, or FILE.py:FUNCTION.",
    ),
]
Weights = Annotated[str, typer.Option(help="A .safetensors or .pth file, 'default' (pretrained), or 'random'.")]
Labels = Annotated[Path | None, typer.Option(help="Class names: a line each (after a tab, if any), or JSON.")]
Resize = Annotated[str | None, typer.Option(help="Short side in pixels, HEIGHTxWIDTH, or 'none'.")]
Crop = Annotated[str | None, typer.Option(help="Side of the centre crop in pixels, HEIGHTxWIDTH, or 'none'.")]
Mean = Annotated[str | None, typer.Option(help="Mean per channel, as in 0.485,0.456,0.406; one value: grey images.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation per channel.")]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", "-c", help="Class name or index to explain; of a detector, to keep; repeatable."),
]
Top = Annotated[
    int | None,
    typer.Option(min=1, help="So many of the highest classes (1, without --class); of detections, the best (all)."),
]
Score = Annotated[
    float | None, typer.Option("--score", help="Detectors: what is detected with a higher score than this; 0.5.")
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", help="Detectors: what overlaps x1,y1,x2,y2 (in pixels) most; repeatable."),
]
Of = Annotated[
    str | None,
    typer.Option("--of", help="Detectors: probability, logit, x1, y1, x2, y2 or combined; what is explained."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", "-l", help="Layer name, 'input', or 'stages'; repeated: fused, shallow to deep."),
]
FuseName = Annotated[
    str | None, typer.Option("--fuse", help="How several layers become one: layer_cam, max, mean, sum or product.")
]
Not = Annotated[str | None, typer.Option("--not", help="Contrast: why each --class and not this one.")]
Budget = Annotated[
    int | None, typer.Option(min=1, help="Most forwards per image for methods that perturb; important ones first.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="A method's option, as in steps=100; repeatable.")
]
Seed = Annotated[int, typer.Option(help="Seed of methods that draw at random.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default: cuda where there is one.")]
PrecisionName = Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16 for the model's forwards.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
Colours = Annotated[str | None, typer.Option("--cmap", help="A matplotlib colour map for the overlays.")]


@dataclass
class Setup:
    """A model as the options describe it."""

    model: Model
    settings: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What is to be explained, as the options say it."""

    classes: list[str] | None = None
    top: int | None = None
    against: str | None = None
    score: float | None = None
    boxes: list[str] | None = None
    of: str | None = None


PREPARATION = ("resize", "crop", "mean", "std")


def files_of(images: list[str]) -> list[Path]:
    """The image files that paths, folders and globs name."""
    from konkyo.data.images import find_images

    return find_images(images)


def setup_of(
    name: str,
    weights: str,
    labels: Path | None,
    preparation: tuple[str | None, str | None, str | None, str | None],
    device: str | None,
) -> Setup:
    """The model that the options describe."""
    import torch

    import konkyo
    from konkyo.models import Preprocess, load

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(name, weights=None if weights == "random" else weights, device=device)
    resize, crop, mean, std = preparation
    changes: dict[str, Any] = {}
    if resize is not None:
        changes["resize"] = size_of(resize)
    if crop is not None:
        changes["crop"] = size_of(crop)
    if mean is not None:
        changes["mean"] = _numbers(mean)
    if std is not None:
        changes["std"] = _numbers(std)
    usual = Preprocess(**model.task.preprocessing)
    if model.preprocess is None and len(changes) < 4:
        missing = ", ".join(f"{key} {getattr(usual, key)}" for key in PREPARATION if key not in changes)
        note = f"note: {name} does not say how to prepare pictures; taken as usual: {missing}"
        err.print(escape(note), soft_wrap=True, highlight=False)
    if changes or model.preprocess is None:
        model = replace(model, preprocess=replace(model.preprocess or usual, **changes))
    if labels is not None:
        model = replace(model, classes=_labels(labels))
    settings = {
        "model": name,
        "weights": weights,
        "preprocess": repr(model.preprocess),
        "device": device,
        "versions": {"konkyo": konkyo.__version__, "torch": torch.__version__},
    }
    return Setup(model, settings)


def target_of(setup: Setup, wanted: Wanted) -> Any:
    """The target that the options ask for. KonkyoError: an option that the model has no use for."""
    from konkyo.tasks.base import TargetOptions

    options = TargetOptions(
        tuple(_class(c) for c in wanted.classes or ()),
        wanted.top,
        None if wanted.against is None else _class(wanted.against),
        wanted.score,
        tuple(_box(text) for text in wanted.boxes or ()),
        wanted.of,
    )
    return setup.model.task.request(options, setup.model.name)


def _box(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise KonkyoError(f"--box is left,top,right,bottom in pixels, as in 20,30,80,90; got {text!r}")
    return numbers


def require_paths(names: list[str], of: str | None) -> None:
    """KonkyoError where --path goes with none of the methods."""
    from konkyo.methods.base import find, methods

    if of == "combined":
        raise KonkyoError("--path: what is --of combined has five paths, and none of its own")
    if not any(find(name).traces_path() for name in names):
        offer = ", ".join(name for name, m in methods().items() if m.traces_path())
        raise KonkyoError(f"--path goes with methods that integrate along a path: {offer}; got {', '.join(names)}")


def _class(text: str) -> int | str:
    return int(text) if re.fullmatch("-?[0-9]+", text) else text


def request_of(
    method: str, target: Any, layer: list[str] | None, option: list[str] | None
) -> tuple[list[str], dict[str, Any]]:
    """(method names, arguments of `explanations`)"""
    from konkyo.methods.base import find, methods

    every = methods()
    wanted = list(every) if method.strip() == "all" else [name for name in method.split(",") if name.strip()]
    names = list(dict.fromkeys(find(name.strip()).name for name in wanted))
    if not names:
        raise KonkyoError("--method names no method; `konkyo methods` lists them")
    options = {}
    for item in option or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise KonkyoError(f"--option is NAME=VALUE, as in steps=100; got {item!r}")
        options[key.strip()] = _value(value.strip())
    layers: Any = layer[0] if layer and len(layer) == 1 else layer or None
    return names, {"target": target, "layer": layers, "options": options}


def _value(text: str) -> Any:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text


def size_of(text: str) -> int | tuple[int, int] | None:
    """A side, (height, width), or None for "none"."""
    if text.lower() == "none":
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if sides and min(sides) < 1:
        raise KonkyoError(f"a size is at least 1 pixel; got {text!r}")
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise KonkyoError(f"a size is a number of pixels, HEIGHTxWIDTH, or 'none'; got {text!r}")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise KonkyoError(f"numbers separated by commas were expected, as in 0.5,0.5,0.5; got {text!r}") from None


def _labels(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KonkyoError(f"labels cannot be read from {path}: {error}") from error
    if path.suffix == ".json":
        try:
            names = json.loads(text)
            if isinstance(names, dict):
                names = [names[str(i)] for i in range(len(names))]
            if not isinstance(names, list):
                raise ValueError(type(names).__name__)
            return tuple(str(name[-1] if isinstance(name, list) else name) for name in names)
        except (ValueError, LookupError) as error:
            raise KonkyoError(f'{path} is no JSON list of names, nor an object {{"0": name, ...}}: {error}') from error
    return tuple(line.split("\t")[-1].strip() for line in text.splitlines() if line.strip())


# --- on the terminal --------------------------------------------------------------------------------------------------


def progress(items: Iterable[Any], what: str) -> Iterator[tuple[Any, Callable[[int, int], None]]]:
    """Every item, and whom to tell how far the work on it is."""
    listed = list(items)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        variants = bar.add_task("variants", visible=False)

        def told(done: int, total: int) -> None:
            bar.update(variants, completed=done, total=total, visible=done < total)

        for item in bar.track(listed, description=what):
            yield item, told


def print_table(columns: list[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text under their columns."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    printer = out if out.is_terminal else Console(width=1000)  # in a pipe, names must not be cut
    printer.print(table)

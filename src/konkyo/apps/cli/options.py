"""What the commands have in common: their options, and how these become a model, targets and methods."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.apps.cli.terminal import print_note
from konkyo.errors import KonkyoError, unknown
from konkyo.utils.files import parse_json, read_text

if TYPE_CHECKING:
    from konkyo.models import Model

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
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default: cuda where there is one.")]
Question = Annotated[list[str] | None, typer.Option("--question", help="What a model that answers questions is asked.")]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", "-l", help="Layer name, 'input', or 'stages'; repeated: fused, shallow to deep."),
]
PrecisionName = Annotated[str | None, typer.Option("--precision", help="fp32, bf16 or fp16 for the model's forwards.")]
Batch = Annotated[int, typer.Option("--batch", "--batch-size", min=1, help="Images at a time.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="The port of the page's address; 0: any free one.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, nothing else.")]
Data = Annotated[
    str,
    typer.Option("--data", "-d", help="scenes:COUNT[,objects=1], lesions:COUNT, coco:DIR, voc:DIR, folder:DIR, ..."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Measure so many samples, drawn by the seed; all.")]
Metrics = Annotated[
    str, typer.Option("--metrics", help="As in ebpg@box,deletion(protocol=seed); `konkyo metrics` lists them.")
]
WhatIsExplained = Annotated[
    str, typer.Option("--explained", help="Classifiers: the model's decision, or the sample's label.")
]
Folder = Annotated[
    Path, typer.Option("--out", help="Folder for tables, curves and values; an interrupted run goes on from there.")
]

Format = Annotated[
    str, typer.Option("--format", help="Of figures: png, or svg or pdf, which print sharply at any size.")
]


def figure_format(text: str) -> Any:
    """Returns the format of figures. KonkyoError: another one."""
    if text not in (offer := ("png", "svg", "pdf")):
        raise unknown("--format", text, offer)
    return text


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded, and how its pictures are prepared."""

    weights: Weights = "default"
    labels: Annotated[Path | None, typer.Option(help="Class names: a line each (after a tab, if any), or JSON.")] = None
    resize: Annotated[str | None, typer.Option(help="Short side in pixels, HEIGHTxWIDTH, or 'none'.")] = None
    crop: Annotated[str | None, typer.Option(help="Side of the centre crop in pixels, HEIGHTxWIDTH, or 'none'.")] = None
    mean: Annotated[
        str | None, typer.Option(help="Mean per channel, as in 0.485,0.456,0.406; one value: grey images.")
    ] = None
    std: Annotated[str | None, typer.Option(help="Standard deviation per channel.")] = None
    interpolation: Annotated[
        str | None,
        typer.Option("--interpolation", help="Resizing: nearest, box, bilinear, hamming, bicubic or lanczos."),
    ] = None
    device: Device = None
    texts: Annotated[
        str | None,
        typer.Option("--texts", help="Models of images and texts: the classes, as in 'a cat;a dog'."),
    ] = None
    template: Annotated[
        str, typer.Option("--template", help="What each of --texts is put into, at {}; several apart by ';'.")
    ] = "{}"


@dataclass(frozen=True)
class TargetOptions:
    """What of an image is explained."""

    classes: Annotated[
        list[str] | None,
        typer.Option("--class", "-c", help="Class name or index to explain; of a detector, to keep; repeatable."),
    ] = None
    top: Annotated[
        int | None,
        typer.Option(min=1, help="So many of the highest classes (1, without --class); of detections, the best (all)."),
    ] = None
    against: Annotated[str | None, typer.Option("--not", help="Contrast: why each --class and not this one.")] = None
    score: Annotated[
        float | None, typer.Option("--score", help="Detectors: what is detected with a higher score than this; 0.5.")
    ] = None
    box: Annotated[
        list[str] | None,
        typer.Option("--box", help="Detectors: what overlaps x1,y1,x2,y2 (in pixels) most; segmenters: the region."),
    ] = None
    region: Annotated[
        str | None,
        typer.Option("--region", help="Segmenters: where the class is 'predicted' (the default), or 'all'."),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Segmenters: a picture as large as the image, black outside of the region."),
    ] = None
    pixel: Annotated[
        list[str] | None, typer.Option("--pixel", help="Segmenters: x,y in pixels of the image; repeatable.")
    ] = None
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="KIND:VALUE, as in class:cat or pixel:120:64; repeatable."),
    ] = None
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", help="Embeddings: an image that the images are likened to; repeated: their mean."),
    ] = None
    question: Question = None
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="The text that is explained, in place of what the model answers in words."),
    ] = None
    of: Annotated[
        str | None,
        typer.Option(
            "--of", help="Detectors: probability, logit, x1, y1, x2, y2, combined or mask; what is explained."
        ),
    ] = None


@dataclass(frozen=True)
class MethodOptions:
    """The methods' own options, and their seed."""

    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="A method's option, as in steps=100; repeatable.")
    ] = None
    seed: Seed = 0


@dataclass(frozen=True)
class ForwardOptions:
    """Where in the network maps are made, and with how many forwards of which precision."""

    layer: Layers = None
    fuse: Annotated[
        str | None,
        typer.Option("--fuse", help="How several layers become one: layer_cam, max, mean, sum or product."),
    ] = None
    budget: Annotated[
        int | None, typer.Option(min=1, help="Most forwards per image for methods that perturb; important ones first.")
    ] = None
    precision: PrecisionName = None
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images explained in one forward; the maps are the same.")
    ] = 1


@dataclass(frozen=True)
class DrawingOptions:
    """How maps are drawn."""

    title: Annotated[str, typer.Option("--title", help="What stands over the sheet.")] = ""
    brightness: Annotated[
        str,
        typer.Option("--brightness", help="probability: the less probable its target, the paler a map; or full."),
    ] = "probability"

    def __post_init__(self) -> None:
        if self.brightness not in (offer := ("probability", "full")):
            raise unknown("--brightness", self.brightness, offer)


@dataclass(frozen=True)
class MatchingOptions:
    """Which detections are measured."""

    score: Annotated[float, typer.Option("--score", help="Detectors: what is detected with a higher score.")] = 0.3
    iou: Annotated[
        float, typer.Option("--iou", help="Detectors: least overlap with a thing of the class; 0: all detections.")
    ] = 0.5


@dataclass
class Setup:
    """A model as the options describe it."""

    model: Model
    settings: dict[str, Any]


PREPARATION = ("resize", "crop", "mean", "std")


def layer_of(layers: list[str] | None) -> str | list[str] | None:
    """Returns the layer, or the layers to be fused, that --layer names; None: it was not given."""
    return layers[0] if layers and len(layers) == 1 else layers or None


def names_in(text: str) -> list[str]:
    """Returns names separated by commas, which may have options in parentheses.

    >>> names_in("ebpg@box, deletion(steps=10,protocol=seed)")
    ['ebpg@box', 'deletion(steps=10,protocol=seed)']
    """
    return [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]


def numbers_by_name(option: str, text: str, example: str) -> dict[str, float]:
    """Reads NAME=NUMBER, several apart by commas. KonkyoError: something else."""
    values = dict[str, float]()
    for part in names_in(text):
        name, _, value = part.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError:
            raise KonkyoError(f"{option} takes NAME=NUMBER, as in {example}; got {part!r}") from None
    return values


def require_explained(explained: str) -> None:
    """KonkyoError: --explained is neither of its two words."""
    if explained not in (offer := ("decision", "label")):
        raise unknown("--explained", explained, offer)


def question_of(questions: list[str] | None) -> str | None:
    """Returns the question that is asked of all images. KonkyoError: several."""
    if questions and len(questions) > 1:
        raise KonkyoError(f"--question is one for all images; got {', '.join(map(repr, questions))}. Run once for each")
    return questions[0] if questions else None


def files_of(images: list[str]) -> list[Path]:
    """Returns the image files that paths, folders and globs name."""
    from konkyo.data.images import find_images

    return find_images(images)


def setup_of(name: str, options: ModelOptions) -> Setup:
    """Returns the model that the options describe."""
    import torch

    import konkyo
    from konkyo.models import Preprocess, load
    from konkyo.models.blackbox import BlackBox

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    texts = [text.strip() for text in (options.texts or "").split(";") if text.strip()]
    weights = None if options.weights == "random" else options.weights
    templates = [template.strip() for template in options.template.split(";") if template.strip()]
    model = load(name, weights=weights, device=device, texts=texts, template=templates)
    changes: dict[str, Any] = {}
    for side in ("resize", "crop"):
        if (text := getattr(options, side)) is not None:
            changes[side] = size_of(text)
    for colours in ("mean", "std"):
        if (text := getattr(options, colours)) is not None:
            changes[colours] = _numbers(text)
    if options.interpolation is not None:
        changes["interpolation"] = options.interpolation.lower()
    bytes_alone = isinstance(model.module, BlackBox) and model.module.takes_bytes
    raw: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3} if bytes_alone else {}
    usual = Preprocess(**{**model.task.preprocessing, **raw})
    if not model.takes_pictures and changes:
        model = _with_frames(model, changes)
    if model.takes_pictures and model.preprocess is None and not set(PREPARATION) <= set(changes):
        missing = ", ".join(f"{key} {getattr(usual, key)}" for key in PREPARATION if key not in changes)
        note = f"note: {name} does not say how to prepare pictures; taken as usual: {missing}"
        print_note(note)
    if model.takes_pictures and (changes or model.preprocess is None):
        model = replace(model, preprocess=replace(model.preprocess or usual, **changes))
    if options.labels is not None:
        model = replace(model, classes=_labels(options.labels))
    settings = {
        "model": name,
        "weights": options.weights,
        "labels": None if options.labels is None else hashlib.sha256(repr(model.classes).encode()).hexdigest()[:16],
        "preprocess": repr(model.preprocess),
        **({} if model.takes_pictures else {"reader": repr(model.reader)}),
        "device": device,
        **({"texts": texts, "template": options.template} if texts else {}),
        "versions": {"konkyo": konkyo.__version__, "torch": torch.__version__},
    }
    return Setup(model, settings)


def target_of(setup: Setup, what: TargetOptions) -> Any:
    """Returns the target that the options ask for. KonkyoError: an option that the model has no use for."""
    from konkyo.targets.answers import in_text
    from konkyo.targets.classes import Each
    from konkyo.targets.similarity import Similarity
    from konkyo.targets.specs import class_of_text, parse_target
    from konkyo.tasks.answers import AnswerTask
    from konkyo.tasks.base import TargetRequest

    options = TargetRequest(
        tuple(class_of_text(c) for c in what.classes or ()),
        what.top,
        None if what.against is None else class_of_text(what.against),
        what.score,
        tuple(_box(text) for text in what.box or ()),
        what.of,
        _region(what.region),
        None if what.mask is None else str(what.mask),
        tuple(_pixel(text) for text in what.pixel or ()),
    )
    if what.reference:
        names = options.names(*(field.name for field in fields(options)))
        if names or what.target:
            raise KonkyoError(
                f"--reference says what is explained; {', '.join(names or ['--target'])} would say it again"
            )
        return Similarity(what.reference[0] if len(what.reference) == 1 else tuple(what.reference))
    if what.target:
        if names := options.names(*(field.name for field in fields(options))):
            raise KonkyoError(f"--target says what is explained; {', '.join(names)} would say it again")
        targets = [parse_target(text) for text in what.target]
        targets = targets if what.answer is None else [in_text(target, what.answer) for target in targets]
        return targets[0] if len(targets) == 1 else Each(*targets)
    if what.answer is not None:
        if not isinstance(setup.model.task, AnswerTask):
            raise KonkyoError(
                f"--answer: {setup.model.name} does not answer in words; --class names what it chooses from"
            )
        options = replace(options, classes=(what.answer, *options.classes))
    return setup.model.task.request(options, setup.model.name)


def _box(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise KonkyoError(f"--box is left,top,right,bottom in pixels, as in 20,30,80,90; got {text!r}")
    return numbers


def _region(text: str | None) -> str | None:
    if text not in (None, "predicted", "all"):
        raise KonkyoError(f"--region is predicted or all; got {text!r}. --mask FILE or --box is a region of your own")
    return text


def _pixel(text: str) -> tuple[float, float]:
    numbers = _numbers(text)
    if len(numbers) != 2:
        raise KonkyoError(f"--pixel is x,y in pixels of the image, as in 120,80; got {text!r}")
    return numbers[0], numbers[1]


def require_paths(names: list[str], of: str | None) -> None:
    """KonkyoError where --path goes with none of the methods."""
    from konkyo.methods.base import find, methods

    if of == "combined":
        raise KonkyoError("--path: what is --of combined has five paths, and none of its own")
    if not any(find(name).traces_path() for name in names):
        offer = ", ".join(name for name, m in methods().items() if m.traces_path())
        raise KonkyoError(f"--path goes with methods that integrate along a path: {offer}; got {', '.join(names)}")


def request_of(
    method: str, options: MethodOptions, target: Any = None, forward: ForwardOptions = ForwardOptions()
) -> tuple[list[str], dict[str, Any]]:
    """Returns the names of the methods, and the arguments of `explanations`."""
    from konkyo.methods.base import find, methods

    every = methods()
    chosen = list(every) if method.strip() == "all" else [name for name in method.split(",") if name.strip()]
    names = list(dict.fromkeys(find(name.strip()).name for name in chosen))
    if not names:
        raise KonkyoError("--method names no method; `konkyo methods` lists them")
    values = {}
    for item in options.option or ():
        key, equals, value = item.partition("=")
        if not equals:
            raise KonkyoError(f"--option is NAME=VALUE, as in steps=100; got {item!r}")
        values[key.strip()] = _value(value.strip())
    return names, {
        "target": target,
        "layer": layer_of(forward.layer),
        "options": values,
        "fuse": forward.fuse,
        "budget": forward.budget,
        "seed": options.seed,
        "precision": forward.precision,
    }


def _with_frames(model: Model, changes: Mapping[str, Any]) -> Model:
    """Returns a model of videos whose frames are prepared in another way. KonkyoError: one of something else."""
    from konkyo.models.readers import Clips

    if not isinstance(model.reader, Clips):
        raise KonkyoError(f"{', '.join(changes)}: {model.name} takes no pictures, and says itself how files are read")
    return replace(model, reader=replace(model.reader, picture=replace(model.reader.picture, **changes)))


def _value(text: str) -> Any:
    try:
        if re.fullmatch(r"\d+(,\d+)+", text):  # a number for every place, as in window=2,16,16
            return tuple(int(part) for part in text.split(","))
        return parse_json(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def size_of(text: str) -> int | tuple[int, int] | None:
    """Returns a side, (height, width), or None for "none"."""
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
        text = read_text(path)
    except KonkyoError as error:
        raise KonkyoError(f"labels cannot be read: {error}") from error
    if path.suffix == ".json":
        try:
            names = parse_json(text)
            if isinstance(names, dict):
                names = [names[str(i)] for i in range(len(names))]
            if not isinstance(names, list):
                raise ValueError(type(names).__name__)
            return tuple(str(name[-1] if isinstance(name, list) else name) for name in names)
        except (ValueError, LookupError) as error:
            raise KonkyoError(f'{path} is no JSON list of names, nor an object {{"0": name, ...}}: {error}') from error
    return tuple(line.split("\t")[-1].strip() for line in text.splitlines() if line.strip())

"""The command line. torch and matplotlib are imported by the commands that need them, so that --help is quick."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from konkyo.apps.cli.consistency import consistency
from konkyo.apps.cli.measure import benchmark, evaluate, metrics, sanity
from konkyo.apps.cli.options import (
    Boxes,
    Budget,
    Classes,
    Colours,
    Crop,
    Device,
    FuseName,
    Images,
    Json,
    Labels,
    Layers,
    Mean,
    ModelName,
    Not,
    Of,
    Options,
    PrecisionName,
    Resize,
    Score,
    Seed,
    Std,
    Top,
    Wanted,
    Weights,
    err,
    files_of,
    out,
    print_table,
    progress,
    request_of,
    require_paths,
    setup_of,
    size_of,
    target_of,
)
from konkyo.apps.cli.report import report
from konkyo.apps.cli.train import train
from konkyo.errors import ImageError, KonkyoError, KonkyoWarning, NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

    from konkyo.draw.sheets import Row
    from konkyo.explanation.result import Explanation
    from konkyo.models import Model
    from konkyo.targets.detections import Detections

app = typer.Typer(
    name="konkyo",
    help="Shows what in an image a vision model decided on.",
    epilog="Exit status: 0 all done, 1 nothing could be done (and why), 2 wrong usage, 3 some images skipped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def explain(
    images: Images,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[
        str,
        typer.Option("--method", help="One or several, as in cam,layer_cam, or 'all'; grad_cam, of detectors odam."),
    ] = "",
    classes: Classes = None,
    top: Top = None,
    against: Not = None,
    score: Score = None,
    box: Boxes = None,
    of: Of = None,
    layer: Layers = None,
    fuse: FuseName = None,
    to: Annotated[Path, typer.Option("--out", help="Folder for pictures, maps and manifest.json.")] = Path(
        "konkyo-out"
    ),
    maps: Annotated[str, typer.Option(help="Format of the raw maps: npz or safetensors.")] = "npz",
    resume: Annotated[bool, typer.Option("--resume", help="Leave out images that the folder's manifest has.")] = False,
    path: Annotated[bool, typer.Option("--path", help="Also draw the paths that methods integrate along.")] = False,
    weights: Weights = "default",
    labels: Labels = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    option: Options = None,
    budget: Budget = None,
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionName = None,
    cmap: Colours = None,
    as_json: Json = False,
) -> None:
    """Explain images: an overlay and a raw map per image, class and method, and a manifest of it all.

    Of a detector: per detection instead of class, and a sheet of all detections of an image.
    """
    if maps not in ("npz", "safetensors"):
        raise KonkyoError(f"--maps is npz or safetensors; got {maps!r}")
    files = files_of(images)
    files = [f for f in files if to.resolve() not in f.resolve().parents] or files  # not what an earlier run wrote
    setup = setup_of(model, weights, labels, (resize, crop, mean, std), device)
    target = target_of(setup, Wanted(classes, top, against, score, box, of))
    names, request = request_of(method or ("odam" if setup.detects else "grad_cam"), target, layer, option)
    if path:
        require_paths(names, of)
    request |= {"fuse": fuse, "budget": budget, "seed": seed, "precision": precision}
    settings = {**setup.settings, "methods": names, **{k: repr(v) for k, v in request.items()}}
    manifest = _Manifest(to / "manifest.json", settings, resume=resume)
    names_on_disk = _unique_names(files, manifest)
    for file, told in progress(files, "explaining"):
        if manifest.has(file):
            continue
        with manifest.image(file) as entry, _interrupted(manifest):
            entry["name"] = names_on_disk[file]
            found = _explained(setup.model, file, names, {**request, "progress": told}, entry)
            for name, result in found.items():
                if isinstance(result, NotApplicable):
                    entry.setdefault("not_applicable", []).append(str(result))
                elif len(result):
                    plain = name.replace("(", "-").replace(")", "")
                    _write(result, to / f"{entry['name']}.{plain}", maps, cmap, entry)
            if path:
                _write_paths(found, to / entry["name"], entry)
            if setup.detects:
                _write_detections(found, file, to / f"{entry['name']}.detections.png", target, entry)
            told_of = ", ".join(dict.fromkeys(m["explained"] for m in entry.get("maps", ()))) or entry.get("nothing")
            if told_of and not as_json:
                out.print(escape(f"{file.name}: {told_of}"), soft_wrap=True, highlight=False)
    _report(manifest, as_json, [f"pictures, maps and manifest in {to}"])


@app.command()
def compare(
    images: Images,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Several, as in grad_cam,layer_cam, or 'all'; default: the seven CAMs, of detectors the six compared "
            "in the paper on IG-ODAM.",
        ),
    ] = "",
    classes: Classes = None,
    top: Top = None,
    against: Not = None,
    score: Score = None,
    box: Boxes = None,
    of: Of = None,
    layer: Layers = None,
    fuse: FuseName = None,
    to: Annotated[Path, typer.Option("--out", help="The contact sheet: .png, .jpg or .webp.")] = Path("konkyo.png"),
    shared: Annotated[bool, typer.Option("--shared", help="One colour scale per row instead of one per map.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 40,
    weights: Weights = "default",
    labels: Labels = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    option: Options = None,
    budget: Budget = None,
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionName = None,
    as_json: Json = False,
) -> None:
    """Compare methods on a contact sheet: a row per image and class (or detection), a column per method."""
    from konkyo.draw.sheets import contact_sheet, picture_name, save_image
    from konkyo.explanation.explain import OF_DETECTORS, SEVEN_CAMS

    picture_name(to)
    files = files_of(images)
    setup = setup_of(model, weights, labels, (resize, crop, mean, std), device)
    target = target_of(setup, Wanted(classes, top, against, score, box, of))
    usual = OF_DETECTORS if setup.detects else SEVEN_CAMS
    names, request = request_of(method or ",".join(usual), target, layer, option)
    request |= {"fuse": fuse, "budget": budget, "seed": seed, "precision": precision}
    manifest = _Manifest(None, {**setup.settings, "methods": names, **{k: repr(v) for k, v in request.items()}})
    rows: list[Row] = []
    for file, told in progress(files[:limit], "comparing"):
        with manifest.image(file) as entry:
            found = _explained(setup.model, file, names, {**request, "progress": told}, entry)
            rows += _rows(found, file.name, entry)
            if setup.detects and not entry.get("maps"):
                entry["nothing"] = _nothing(target)
                if not as_json:
                    out.print(escape(f"{file.name}: {entry['nothing']}"), soft_wrap=True, highlight=False)
    if len(files) > limit:
        err.print(f"{len(files) - limit} of {len(files)} images left out (--limit {limit})")
    notes = []
    if rows:
        save_image(contact_sheet(rows, names, title=setup.model.name, shared=shared), to)
        manifest.values["sheet"] = str(to)
        notes.append(f"contact sheet: {to}")
    _report(manifest, as_json, notes)


@app.command(name="methods")
def list_methods(as_json: Json = False) -> None:
    """List the methods with what they need and their options."""
    from konkyo.methods.base import methods

    found = methods()
    if as_json:
        table: dict[str, Any] = {
            name: {
                "summary": m.summary,
                "needs": m.needs,
                "layer": m.layer or "feature grid",
                "options": {o: repr(p.default) for o, p in m.options.items()},
            }
            for name, m in found.items()
        }
        print(json.dumps(table, indent=2))  # noqa: T201 - standard output is what was asked for
        return
    rows = [(n, m.summary, ", ".join(f"{o}={p.default!r}" for o, p in m.options.items())) for n, m in found.items()]
    print_table(["method", "what it gives", "options"], rows)


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="As --model elsewhere.")],
    size: Annotated[
        str | None, typer.Option(help="Image size in pixels, or HEIGHTxWIDTH; default: the model's own.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the image; default: the model's own, or 3.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also the modules whose output is no grid.")] = False,
    weights: Weights = "default",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """List the layers that can be explained, with shapes and gradient norms; an arrow marks the automatic one."""
    setup = setup_of(model, weights, None, (None, None, None, None), device)
    own = setup.model.preprocess
    side = (size_of(size) if size else None) or (own and (own.crop or own.resize)) or 224
    height, width = side if isinstance(side, tuple) else (side, side)
    shape = (channels or (len(own.mean) if own else 3), height, width)
    with _failures_of(setup.model):
        automatic = setup.model.automatic_layer(shape)
        sites = [
            s
            for s in setup.model.sites(shape)
            if every or s.layer is not None or (automatic is not None and s.name == automatic.name)
        ]
    if as_json:
        listed = [
            {"name": s.name, "kind": s.kind, "shape": s.shape, "grid": s.grid, "gradient": s.gradient} for s in sites
        ]
        print(json.dumps({"automatic": automatic and automatic.name, "layers": listed}, indent=2))  # noqa: T201
        return
    rows = [
        (
            ("→ " if automatic and s.name == automatic.name else "  ") + s.name,
            s.kind,
            "x".join(map(str, s.shape)),
            "x".join(map(str, s.grid)),
            "0" if s.gradient == 0 else f"{s.gradient:.2g}",
        )
        for s in sites
    ]
    if automatic and automatic.name not in {s.name for s in sites}:  # a detector's, which the trace takes for no grid
        rows.append((f"→ {automatic.name}", "", "", "", ""))
    print_table(["layer", "module", "output", "grid", "gradient norm"], rows)


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--out", help="Folder for images and contact sheet.")] = Path("out/demo"),
    number: Annotated[int, typer.Option("--scenes", min=1, help="How many scenes.")] = 6,
) -> None:
    """Explain shipped scenes: classes with the shipped classifier, and every detection with the shipped detector."""
    from konkyo.data.sets.scenes import CLASSES, Scenes
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.explanation.explain import SEVEN_CAMS
    from konkyo.targets.classes import Each

    setup = setup_of("konkyo/scenes-classifier", "default", None, (None, None, None, None), None)
    rows: list[Row] = []
    on_object = Counter[str]()
    scenes = Scenes(number, seed=DEMO_SEED, size=256, objects=(1, 2))
    for index, (scene, _) in enumerate(progress(scenes, "explaining")):
        path = save_image(scene.image, to / f"scene-{index}.png")
        labels = list(dict.fromkeys(scene.labels.tolist()))
        found = _explained(
            setup.model, path, list(SEVEN_CAMS), {"target": Each(*[CLASSES[label] for label in labels])}, {}
        )
        rows += _rows(found, path.name, {})
        for name, result in found.items():
            if not isinstance(result, NotApplicable):
                for maps, label in zip(result.at((256, 256)), labels, strict=True):
                    objects = scene.masks[scene.labels == label].any(0)
                    on_object[name] += bool(objects.flatten()[maps.cpu().argmax()])
    title = "What the scenes classifier looks at: one row per image and class, one column per method"
    sheet = save_image(contact_sheet(rows, SEVEN_CAMS, title=title), to / "contact-sheet.png")
    peaks = ", ".join(f"{name} {on_object[name]}" for name in SEVEN_CAMS)
    out.print(f"{number} scenes, {len(rows)} rows of an image and a class, {len(SEVEN_CAMS)} methods")
    out.print(f"rows whose map is highest on the class's own object: {peaks}", soft_wrap=True, highlight=False)
    out.print(f"contact sheet: {sheet}", soft_wrap=True, highlight=False)
    _demo_of_detector(to)


def _demo_of_detector(to: Path) -> None:
    """Every detection on two scenes by the methods that are compared for detectors."""
    from konkyo.data.sets.scenes import Scenes
    from konkyo.draw.sheets import contact_sheet, save_image
    from konkyo.explanation.explain import OF_DETECTORS
    from konkyo.targets.detections import Detections
    from konkyo.utils.tensors import overlap

    if importlib.util.find_spec("transformers") is None:
        note = "left out: the detector, which needs transformers: pip install 'konkyo[transformers]'"
        out.print(escape(note), soft_wrap=True, highlight=False)
        return
    setup = setup_of("konkyo/scenes-detr", "default", None, (None, None, None, None), None)
    scenes = Scenes(2, seed=DEMO_SEED, size=256, objects=(2, 4))
    rows: list[Row] = []
    on_object, of_objects = Counter[str](), 0
    for index, (scene, told) in enumerate(progress(scenes, "explaining detections")):
        path = save_image(scene.image, to / f"objects-{index}.png")
        request = {"target": Detections(), "options": {"masks": 500}, "progress": told}
        found = _explained(setup.model, path, list(OF_DETECTORS), request, {})
        rows += _rows(found, path.name, {})
        done = {name: result for name, result in found.items() if not isinstance(result, NotApplicable)}
        boxes = next(iter(done.values())).boxes
        shares = [overlap(scene.boxes, box) for box in ([] if boxes is None else boxes.cpu())]
        matched = {row: int(share.argmax()) for row, share in enumerate(shares) if share.max() > 0.5}
        of_objects += len(matched)
        for name, result in done.items():
            maps = result.at((256, 256)).cpu()
            on_object[name] += sum(bool(scene.masks[at].flatten()[maps[row].argmax()]) for row, at in matched.items())
    if not rows:
        out.print("the detector found nothing")
        return
    title = "What the scenes detector looks at: one row per detection, one column per method"
    sheet = save_image(contact_sheet(rows, OF_DETECTORS, title=title), to / "detections.png")
    peaks = ", ".join(f"{name} {on_object[name]}" for name in OF_DETECTORS)
    out.print(f"{len(scenes)} scenes, {len(rows)} detections, {of_objects} of them of an object (IoU above 0.5)")
    out.print(f"of these, the map is highest on the object itself: {peaks}", soft_wrap=True, highlight=False)
    out.print(f"contact sheet of detections: {sheet}", soft_wrap=True, highlight=False)


DEMO_SEED = 2033
"""Scenes of this seed were never trained on: training draws from other seeds."""


app.command()(evaluate)
app.command()(metrics)
app.command()(sanity)
app.command()(consistency)
app.add_typer(benchmark, name="benchmark")
app.add_typer(train, name="train")
app.add_typer(report, name="report")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from konkyo import __version__

        out.print(f"konkyo {__version__}")
        raise typer.Exit


def main() -> None:
    """The `konkyo` command: errors of the user's making are told in a line, without a traceback."""
    warnings.simplefilter("ignore", KonkyoWarning)  # told with each image
    try:
        app()
    except KonkyoError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


# --- work -------------------------------------------------------------------------------------------------------------


def _explained(
    model: Model, file: Path, names: list[str], request: Mapping[str, Any], entry: dict[str, Any]
) -> dict[str, Explanation | NotApplicable]:
    from konkyo.data.images import open_image
    from konkyo.explanation.explain import explanations

    picture = open_image(file)
    if notes := picture.info.get("konkyo"):
        entry["notes"] = list(notes)
    with _failures_of(model):
        return explanations(model, picture, names, **request)


@contextmanager
def _failures_of(model: Model) -> Iterator[None]:
    """What a network says of input that it does not take, in a line."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise KonkyoError(f"{model.name} failed on this input: {type(error).__name__}: {reason}") from error


def _write(result: Explanation, stem: Path, maps: str, cmap: str | None, entry: dict[str, Any]) -> None:
    from konkyo.draw.sheets import save_image

    raw = result.save(stem.with_name(f"{stem.name}.{maps}"))
    for row, label in enumerate(result.labels):
        number = f".{row + 1}" if len(result) > 1 else ""
        overlay = save_image(result.overlay(row, cmap=cmap), stem.with_name(f"{stem.name}{number}.png"))
        entry.setdefault("maps", []).append(
            {
                "method": result.method,
                "label": label,
                "explained": _explained_score(result, row),
                "score": round(score, 6) if math.isfinite(score := result.scores[row].item()) else None,
                **_detection(result, row),
                "layer": result.layer,
                "overlay": overlay.name,
                "map": raw.name,
                "row": row,
                "diagnosis": result.diagnosis[row].kind,
                "message": result.diagnosis[row].message,
            }
        )


def _detection(result: Explanation, row: int) -> dict[str, Any]:
    """What the manifest says of a detection: its box in the picture's pixels, and the probability of its class."""
    box = _box(result, row)
    if box is None:
        return {}
    target = result.targets[row]
    return {
        "box": [round(side, 2) for side in box],
        "probability": round(target.likeness[target.label], 6),  # type: ignore[union-attr] # what has a box is one
        "quantity": target.quantity,  # type: ignore[union-attr]
    }


def _box(result: Explanation, row: int) -> list[float] | None:
    """A detection's box, xyxy in the picture's pixels; None for what is no detection."""
    box = None if result.boxes is None else [float(side) for side in result.boxes[row]]
    return box if box is not None and all(map(math.isfinite, box)) else None


def _explained_score(result: Explanation, row: int, *, place: bool = True) -> str:
    """What a row explains, with its score: "cat (logit 3.55)", "x1 of cat (probability 0.70) at 257,231,565,477"."""
    target, score, box = result.targets[row], result.scores[row].item(), _box(result, row)
    if box is None:
        return f"{result.labels[row]} ({getattr(target, 'score', 'score')} {score:.2f})"
    of: str = target.quantity  # type: ignore[union-attr] # what has a box is a detection
    probability = target.likeness[target.label]  # type: ignore[union-attr]
    name = result.labels[row].removesuffix(f", {of}")
    if of not in ("probability", "logit", "similarity"):
        name = f"{'class and box' if of == 'combined' else of} of {name}"
    told = f"logit {score:.2f}" if of == "logit" else f"probability {probability:.2f}"
    return f"{name} ({told})" + (f" at {','.join(str(round(side)) for side in box)}" if place else "")


def _nothing(wanted: Detections) -> str:
    """Why an image has no maps."""
    from konkyo.targets.detections import NEAR

    kinds = "" if not wanted.classes else f" of class {' or '.join(map(str, wanted.classes))}"
    boxes = " or ".join(",".join(f"{side:g}" for side in box) for box in wanted.boxes)
    where = f" that overlaps {boxes} by an IoU of {NEAR} or more" if boxes else ""
    return f"nothing{kinds} detected with a score above {wanted.threshold:g}{where}"


def _write_detections(
    found: Mapping[str, Explanation | NotApplicable], file: Path, to: Path, wanted: Detections, entry: dict[str, Any]
) -> None:
    """The sheet of an image's detections: side by side, or with several methods a row each."""
    from konkyo.draw.sheets import contact_sheet, gallery, save_image

    if not entry.get("maps"):
        if not entry.get("not_applicable"):
            entry["nothing"] = _nothing(wanted)
        return
    rows = _rows({n: r for n, r in found.items() if not isinstance(r, NotApplicable)}, file.name, {})
    if len(names := list(dict.fromkeys(m["method"] for m in entry["maps"]))) == 1:
        sheet = gallery(rows)
    else:
        rows = [replace(row, subtitle=f"{number}  {row.subtitle}") for number, row in enumerate(rows, start=1)]
        sheet = contact_sheet(rows, names)
    entry["sheet"] = save_image(sheet, to).name


def _write_paths(found: Mapping[str, Explanation | NotApplicable], stem: Path, entry: dict[str, Any]) -> None:
    """A picture of every path, and one of all methods' together."""
    from konkyo.draw.sheets import path_figure, save_image

    walked = {n: r for n, r in found.items() if not isinstance(r, NotApplicable) and r.path is not None}
    for row in range(max(map(len, walked.values()), default=0)):
        drawn = {f".{name}": [result] for name, result in walked.items()}
        drawn |= {"": list(walked.values())} if len(walked) > 1 else {}
        for part, several in drawn.items():
            picture = save_image(path_figure(several, row), stem.with_name(f"{stem.name}{part}.{row + 1}.path.png"))
            entry.setdefault("paths", []).append(picture.name)


def _rows(found: Mapping[str, Explanation | NotApplicable], title: str, entry: dict[str, Any]) -> list[Row]:
    """A row of the contact sheet per target."""
    from konkyo.draw.sheets import Cell, Row

    done = {name: result for name, result in found.items() if not isinstance(result, NotApplicable)}
    entry["not_applicable"] = [str(result) for result in found.values() if isinstance(result, NotApplicable)]
    if not done:
        raise KonkyoError("; ".join(entry["not_applicable"]))
    one = next(iter(done.values()))
    maps = {name: _maps(result) for name, result in done.items()}
    rows = []
    for row, label in enumerate(one.labels):
        cells: list[Cell] = []
        for name, result in found.items():
            if isinstance(result, NotApplicable):
                cells.append(Cell(None, f"not applicable: {str(result).partition(': ')[2]}"))
            else:
                diagnosis = result.diagnosis[row]
                cells.append(Cell(maps[name][row], "" if diagnosis.ok else diagnosis.kind))
                told = {"method": name, "label": label, "layer": result.layer, "diagnosis": diagnosis.kind}
                entry.setdefault("maps", []).append(told | _detection(result, row))
        explained = _explained_score(one, row, place=False)  # the box is drawn
        rows.append(Row(one.picture(row), title, explained, cells, _box(one, row)))
    return rows


def _maps(result: Explanation) -> Tensor:
    """The maps as they lie on the picture: of a picture with a border, without the border."""
    if result.regions is None or not len(result):
        return result.maps
    width, height = result.picture(0).size
    # No larger than the cells of a sheet; a coarse map stays coarse, so that it is drawn on the scale of coarse maps.
    share = min(1.0, (60 if result.maps[0].numel() < 60 * 60 else 400) / max(width, height))
    return result.at((max(1, round(height * share)), max(1, round(width * share))))


@contextmanager
def _interrupted(manifest: _Manifest) -> Iterator[None]:
    """Tells, when the user stops the run, what there is of it."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(manifest.values["images"])
        err.print(f"interrupted: {done} images are done; the same command with --resume goes on from there")
        raise


class _Manifest:
    """What was done, written after every image, so that an interrupted run can be resumed."""

    def __init__(self, path: Path | None, settings: dict[str, Any], *, resume: bool = False) -> None:
        self._path = path
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.values: dict[str, Any] = {"settings": settings, "started": now, "images": [], "skipped": []}
        if resume and path is not None and path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
                same, images = before["settings"] == settings, before["images"]
                _ = [entry["file"] for entry in images]
            except (ValueError, KeyError, TypeError) as error:
                raise KonkyoError(f"{path} is no manifest to resume from: {error}") from error
            if not same:
                raise KonkyoError(f"{path} was made with other settings; resume with the same, or choose another --out")
            self.values["images"] = images

    def has(self, file: Path) -> bool:
        return any(entry["file"] == str(file) for entry in self.values["images"])

    def image(self, file: Path) -> _Entry:
        return _Entry(self, file)

    def write(self) -> None:
        from konkyo.utils.files import write_text

        if self._path is not None:
            write_text(self._path, json.dumps(self.values, indent=2))


class _Entry:
    """One image's part of the manifest; an image that cannot be used is told and left out, the others go on."""

    def __init__(self, manifest: _Manifest, file: Path) -> None:
        self._manifest, self._file = manifest, file
        self._values: dict[str, Any] = {"file": str(file)}

    def __enter__(self) -> dict[str, Any]:
        return self._values

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            self._manifest.values["images"].append(self._values)
        elif isinstance(error, ImageError):
            self._manifest.values["skipped"].append({"file": str(self._file), "reason": str(error)})
            err.print(f"[yellow]skipped[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        else:
            return False
        self._manifest.write()
        return True


def _report(manifest: _Manifest, as_json: bool, notes: list[str]) -> None:
    images, skipped = manifest.values["images"], manifest.values["skipped"]
    reasons = {reason for entry in images for reason in entry.get("not_applicable", ())}
    reasons |= {entry["nothing"] for entry in images if "nothing" in entry}
    if reasons and not any(entry.get("maps") for entry in images) and not as_json:
        raise KonkyoError("; ".join(sorted(reasons)))
    if as_json:
        print(json.dumps(manifest.values, indent=2))  # noqa: T201 - standard output is what was asked for
    else:
        applicable = {reason for entry in images for reason in entry.get("not_applicable", ())}
        doubtful = Counter(m["diagnosis"] for e in images for m in e.get("maps", ()) if m["diagnosis"] != "ok")
        notes = [f"{len(images)} images explained, {len(skipped)} skipped", *notes, *sorted(applicable)]
        notes += [f"{count} maps: {kind}" for kind, count in doubtful.items()]
        for note in notes:
            out.print(escape(note), soft_wrap=True, highlight=False)
    if not any(entry.get("maps") for entry in images):
        raise typer.Exit(1)
    if skipped:
        raise typer.Exit(3)


def _unique_names(files: list[Path], manifest: _Manifest) -> dict[Path, str]:
    """File name stems, numbered where one is taken: by another file, or in the manifest that is resumed."""
    taken, names = {str(entry.get("name")).casefold() for entry in manifest.values["images"]}, {}
    for file in files:
        if not manifest.has(file):
            tries = (file.stem if k == 1 else f"{file.stem}-{k}" for k in count(1))
            names[file] = next(name for name in tries if name.casefold() not in taken)
            taken.add(names[file].casefold())
    return names

"""The command that explains images: pictures, raw maps, and a manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    DrawingOptions,
    ForwardOptions,
    Json,
    MethodOptions,
    ModelName,
    ModelOptions,
    TargetOptions,
    question_of,
    request_of,
    require_paths,
    setup_of,
    target_of,
)
from konkyo.apps.cli.reports import ReportOptions, made_by, report_of_folder
from konkyo.apps.cli.sources import Images, TruthOptions, pictures_of
from konkyo.apps.cli.terminal import print_line, progress
from konkyo.errors import KonkyoError, NotApplicable

if TYPE_CHECKING:
    from konkyo.explanation.result import Explanation
    from konkyo.tasks.base import Task

from konkyo.apps.cli.manifest import Manifest, report_of, unique_names
from konkyo.apps.cli.pictures import (
    Outcome,
    Writing,
    batches,
    explained,
    facts,
    in_a_line,
    nothing_in,
    one_ahead,
    read_files,
    rows_of,
)

FIGURES = Lock()
"""What matplotlib draws is drawn by one thread at a time."""


@with_groups
def explain(
    images: Images = None,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[
        str,
        typer.Option("--method", help="One or several, as in cam,layer_cam, or 'all'; grad_cam, of detectors odam."),
    ] = "",
    target_options: TargetOptions = TargetOptions(),
    forward_options: ForwardOptions = ForwardOptions(),
    truth_options: TruthOptions = TruthOptions(),
    to: Annotated[Path, typer.Option("--out", help="Folder for pictures, maps and manifest.json.")] = Path(
        "konkyo-out"
    ),
    maps: Annotated[str, typer.Option(help="Format of the raw maps: npz or safetensors.")] = "npz",
    resume: Annotated[bool, typer.Option("--resume", help="Leave out images that the folder's manifest has.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what the folder's manifest lists, and begin anew.")
    ] = False,
    path: Annotated[bool, typer.Option("--path", help="Also draw the paths that methods integrate along.")] = False,
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
    cmap: Annotated[str | None, typer.Option("--cmap", help="A matplotlib colour map for the overlays.")] = None,
    caption: Annotated[
        bool, typer.Option("--caption", help="A strip under each overlay: class, score, decision, method, diagnosis.")
    ] = False,
    drawing_options: DrawingOptions = DrawingOptions(),
    report_options: ReportOptions = ReportOptions(),
    as_json: Json = False,
) -> None:
    """Explain images: an overlay and a raw map per image, class and method, and a manifest of it all.

    Of a detector: per detection instead of class, and a sheet of all detections of an image.
    """
    if maps not in ("npz", "safetensors"):
        raise KonkyoError(f"--maps is npz or safetensors; got {maps!r}")
    setup = setup_of(model, model_options)
    if report_options.report is not None and not setup.model.takes_pictures:
        raise KonkyoError(f"--report is a page of pictures; {setup.model.name} takes other inputs")
    source = pictures_of(images, setup.model, truth_options)
    files = source.files
    files = [f for f in files if to.resolve() not in f.resolve().parents] or files  # not what an earlier run wrote
    target = target_of(setup, target_options)
    names, request = request_of(method or setup.model.task.method, method_options, target, forward_options)
    if (question := question_of(target_options.question)) is not None:
        request["question"] = question
    if path:
        require_paths(names, target_options.of)
    settings = {**setup.settings, "methods": names, **{k: repr(v) for k, v in request.items()}}
    if drawing_options.title and not setup.model.task.instances:
        raise KonkyoError("--title is that of a sheet, which `explain` draws of detections; `konkyo compare` always")
    settings |= {"maps": maps, "colours": cmap, "paths": path, **asdict(drawing_options)}
    settings |= {"caption": True} if caption else {}
    settings |= {"wrong_only": True} if truth_options.wrong_only else {}
    settings |= {"window": source.window} if source.window else {}
    drawing = {"cmap": cmap, "caption": caption, "brightness": drawing_options.brightness}
    with Manifest(to, settings, resume=resume, overwrite=overwrite, order=truth_options.sort) as manifest:
        manifest.origin, manifest.made_by = source.origin, made_by(setup.model)
        names_on_disk = unique_names(files, manifest)
        left = [file for file in files if not manifest.has(file, source.labels.get(file))]
        parts = batches(left, forward_options.batch_size)
        ahead = one_ahead(partial(read_files, setup.model, source=source), parts)
        products = _Products(to, maps, drawing, drawing_options, path, setup.model.task, target)

        def show(line: str) -> None:
            if line and not as_json:
                print_line(line)

        with Writing(manifest, forward_options.batch_size, show) as writing:
            for (batch, read), tell in progress(ahead, "explaining", len(parts)):
                outcomes = explained(
                    setup.model,
                    batch,
                    names,
                    {**request, "progress": tell},
                    source,
                    wrong_only=truth_options.wrong_only,
                    read=read,
                )
                for file, outcome in zip(batch, outcomes, strict=True):
                    left_out = truth_options.wrong_only and outcome.error is None and outcome.correct is not False
                    title, stem = source.names.get(file, file.name), names_on_disk[file]
                    writing.add(file, partial(products.written, outcome, file, title, stem, left_out))
    notes = [f"pictures, maps and manifest in {to}"]
    if any(entry.get("maps") for entry in manifest.images):
        notes += report_of_folder(to, report_options)
    report_of(manifest, as_json, notes)


@dataclass(frozen=True)
class _Products:
    """The products are the files that are made of every image."""

    folder: Path
    maps: str
    """The suffix of raw maps."""
    style: Mapping[str, Any]
    """Of the overlays."""
    sheet: DrawingOptions
    paths: bool
    task: Task
    target: Any

    def written(
        self, outcome: Outcome, file: Path, title: str, stem: str, left_out: bool
    ) -> tuple[dict[str, Any], str]:
        """Writes the files of an image. -> its entry in the manifest, and a line about it. ImageError: no image."""
        entry: dict[str, Any] = {"name": stem}
        results = outcome.noted(entry)
        if left_out:
            return entry | {"left_out": "not decided wrongly"}, ""
        for name, result in results.items():
            if isinstance(result, NotApplicable):
                entry.setdefault("not_applicable", []).append(str(result))
            elif len(result):
                plain = name.replace("(", "-").replace(")", "")
                _write(result, self.folder / f"{stem}.{plain}", self.maps, self.style, entry)
        if self.paths:
            with FIGURES:
                _write_paths(results, self.folder / stem, entry)
        if self.task.instances:
            with FIGURES:
                _write_sheet(results, file, self.folder / f"{stem}.{self.task.instances}.png", self.sheet, entry)
        if not entry.get("maps") and not entry.get("not_applicable"):
            entry["nothing"] = nothing_in(results, self.task, self.target)
        line = in_a_line(results) or entry.get("nothing")
        return entry, f"{title}: {line}" if line else ""


def _write(result: Explanation, stem: Path, maps: str, drawing: Mapping[str, Any], entry: dict[str, Any]) -> None:
    from konkyo.draw.sheets import save_image
    from konkyo.explanation.words import score_in_words

    raw = result.save(stem.with_name(f"{stem.name}.{maps}"))
    for row, label in enumerate(result.labels):
        number = f".{row + 1}" if len(result) > 1 else ""
        overlay = save_image(result.overlay(row, **drawing), stem.with_name(f"{stem.name}{number}.png"))
        entry.setdefault("maps", []).append(
            {
                "method": result.method,
                "label": label,
                "explained": score_in_words(result, row),
                "score": round(score, 6) if math.isfinite(score := result.scores[row].item()) else None,
                **facts(result, row),
                "layer": result.layer,
                "overlay": overlay.name,
                "map": raw.name,
                **_exported(result, row, stem.with_name(f"{stem.name}{number}")),
                "row": row,
                "diagnosis": result.diagnosis[row].kind,
                "message": result.diagnosis[row].message,
            }
        )


def _exported(result: Explanation, row: int, stem: Path) -> dict[str, str]:
    """Writes what a row is beside pictures: an animation of a video, the map of a volume in its own space."""
    from konkyo.explanation.places import export_suffix

    suffix = export_suffix(result, row)
    return {"export": result[row].save(stem.with_name(stem.name + suffix)).name} if suffix else {}


def _write_sheet(
    results: Mapping[str, Explanation | NotApplicable],
    file: Path,
    to: Path,
    drawing: DrawingOptions,
    entry: dict[str, Any],
) -> None:
    """The sheet of an image's instances: side by side, or with several methods a row each."""
    from konkyo.draw.sheets import contact_sheet, gallery, save_image

    if not entry.get("maps"):
        return
    done = {n: r for n, r in results.items() if not isinstance(r, NotApplicable)}
    rows = rows_of(done, file.name, {}, drawing.brightness)
    if len(names := list(dict.fromkeys(m["method"] for m in entry["maps"]))) == 1:
        sheet = gallery(rows, title=drawing.title)
    else:
        rows = [replace(row, subtitle=f"{number}  {row.subtitle}") for number, row in enumerate(rows, start=1)]
        sheet = contact_sheet(rows, names, title=drawing.title)
    entry["sheet"] = save_image(sheet, to).name


def _write_paths(results: Mapping[str, Explanation | NotApplicable], stem: Path, entry: dict[str, Any]) -> None:
    """A picture of every path, and one of all methods' together."""
    from konkyo.draw.sheets import path_figure, save_image

    walked = {n: r for n, r in results.items() if not isinstance(r, NotApplicable) and r.path is not None}
    for row in range(max(map(len, walked.values()), default=0)):
        parts = {f".{name}": [result] for name, result in walked.items()}
        parts |= {"": list(walked.values())} if len(walked) > 1 else {}
        for part, several in parts.items():
            picture = save_image(path_figure(several, row), stem.with_name(f"{stem.name}{part}.{row + 1}.path.png"))
            entry.setdefault("paths", []).append(picture.name)

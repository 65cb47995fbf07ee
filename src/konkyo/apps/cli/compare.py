"""The command that compares methods on a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
    setup_of,
    target_of,
)
from konkyo.apps.cli.reports import ReportOptions, made_by, write_report
from konkyo.apps.cli.sources import Images, TruthOptions, ordered, pictures_of
from konkyo.apps.cli.terminal import print_line, print_note, progress
from konkyo.errors import KonkyoError, NotApplicable

if TYPE_CHECKING:
    from konkyo.draw.sheets import Row
    from konkyo.explanation.result import Explanation

from konkyo.apps.cli.manifest import Manifest, report_of
from konkyo.apps.cli.pictures import batches, explained, in_a_line, nothing_in, rows_of


@with_groups
def compare(
    images: Images = None,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="Several, as in grad_cam,layer_cam, or 'all'; default: the seven CAMs, of detectors the six compared "
            "in the paper on IG-ODAM.",
        ),
    ] = "",
    target_options: TargetOptions = TargetOptions(),
    forward_options: ForwardOptions = ForwardOptions(),
    truth_options: TruthOptions = TruthOptions(),
    to: Annotated[Path, typer.Option("--out", help="The contact sheet: .png, .jpg or .webp.")] = Path("konkyo.png"),
    shared: Annotated[bool, typer.Option("--shared", help="One colour scale per row instead of one per map.")] = False,
    drawing_options: DrawingOptions = DrawingOptions(),
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 40,
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
    report_options: ReportOptions = ReportOptions(),
    as_json: Json = False,
) -> None:
    """Compare methods on a contact sheet: a row per image and class (or detection), a column per method."""
    from konkyo.draw.sheets import contact_sheet, picture_name, save_image

    picture_name(to)
    setup = setup_of(model, model_options)
    if not setup.model.takes_pictures:
        raise KonkyoError(
            f"a contact sheet is of pictures, and {setup.model.name} takes none: konkyo explain --method "
            f"{method or 'grad_cam,layer_cam'} draws the maps of several methods"
        )
    source = pictures_of(images, setup.model, truth_options)
    chosen = truth_options.wrong_only or truth_options.sort is not None  # all are explained, and the first ones shown
    files = source.files if chosen else source.files[:limit]
    target = target_of(setup, target_options)
    names, request = request_of(method or ",".join(setup.model.task.methods), method_options, target, forward_options)
    if (question := question_of(target_options.question)) is not None:
        request["question"] = question
    settings = {**setup.settings, "methods": names, **{k: repr(v) for k, v in request.items()}}
    manifest = Manifest(None, settings | ({"window": source.window} if source.window else {}))
    manifest.origin, manifest.made_by = source.origin, made_by(setup.model)
    page = _Page(manifest, report_options, len(files))
    shown: list[tuple[dict[str, Any], list[Row]]] = []
    count = 0
    for batch, bar in progress(batches(files, forward_options.batch_size), "comparing"):
        outcomes = explained(
            setup.model, batch, names, {**request, "progress": bar}, source, wrong_only=truth_options.wrong_only
        )
        for file, outcome in zip(batch, outcomes, strict=True):
            with manifest.image(file) as entry:
                results = outcome.noted(entry)
                if truth_options.wrong_only and entry["correct"] is not False:
                    entry["left_out"] = "not decided wrongly"
                    page.count(entry)
                    continue
                page.add(results)
                rows = rows_of(results, source.names.get(file, file.name), entry, drawing_options.brightness)
                shown = ordered([*shown, (entry, rows)], truth_options.sort)[:limit]
                count += 1
                if not entry.get("maps"):
                    entry["nothing"] = nothing_in(results, setup.model.task, target)
                if not as_json:
                    line = in_a_line(results) or entry["nothing"]
                    print_line(f"{source.names.get(file, file.name)}: {line}")
    total = count if chosen else len(source.files)
    if total > limit:
        print_note(f"{total - limit} of {total} images left out (--limit {limit})")
    notes = []
    if rows := [row for _, rows in shown for row in rows]:
        save_image(contact_sheet(rows, names, title=drawing_options.title or setup.model.name, shared=shared), to)
        manifest.sheet(to)
        notes.append(f"contact sheet: {to}")
        notes += page.written(setup.settings["model"])
    report_of(manifest, as_json, notes)


class _Page:
    """The page collects the rows of the report, if one is asked for."""

    def __init__(self, manifest: Manifest, options: ReportOptions, images: int) -> None:
        self._manifest, self._options = manifest, options
        if options.report is not None:
            from konkyo.report.rows import CollectedRows

            self._rows = CollectedRows(images)

    def add(self, results: Mapping[str, Explanation | NotApplicable]) -> None:
        """Takes what all methods make of an image."""
        if self._options.report is not None:
            self._rows.add([result for result in results.values() if not isinstance(result, NotApplicable)])

    def count(self, entry: Mapping[str, Any]) -> None:
        """Takes an image that is not shown."""
        if self._options.report is not None and entry["decision"]:
            self._rows.count(entry["image"], entry["decision"]["label"], entry["true_label"] or "")

    def written(self, model: str) -> list[str]:
        """Writes the report, and says so."""
        if self._options.report is None:
            return []
        title = f"{model}: {', '.join(self._rows.layers)}"
        notes = [f"True labels: {self._manifest.origin}."] if self._manifest.origin else []
        return [write_report(self._rows.page(title, **self._manifest.made_by, notes=notes), self._options)]

"""The report of a run: a page that sums it up, and pages of its images, the most suspicious first.

Importing this makes folders of runs known to `konkyo.report`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from konkyo.errors import KonkyoError
from konkyo.evaluation.diagnose.findings import Text
from konkyo.report.assets import reduced
from konkyo.report.builders import Request
from konkyo.report.folder import made_by, reader
from konkyo.report.html import accuracy_counts, words_of
from konkyo.report.page import Cell, ConfusionMatrix, ImageRow, Measure, Page, TableBlock, words
from konkyo.report.report import report
from konkyo.report.rows import CollectedRows
from konkyo.runs.manifest import MANIFEST, MERGED
from konkyo.runs.pictures import DataNow, RunPictures, with_picture
from konkyo.runs.query import Database, opened
from konkyo.runs.records import Records, explanations_of
from konkyo.runs.summary import Image, Summary, most_suspicious, rows_of_images
from konkyo.utils.statistics import interval_of_share

PER_PAGE, PAGES, GLIMPSE = 250, 2, 12
"""So many images on a page, so many pages, and so many images on the page that sums up, unless others are asked for."""
NEAR = 10
"""A page is linked with so many pages before it and after it."""
CLASSES = 200
"""So many classes are listed at most, those that are least often right."""
MATRIX = 40
"""The confusion matrix is shown of so many classes at most."""
KINDS: dict[str, Text] = {
    "error": words("could not be used", "使えなかった"),
    "wrong": words("decided wrongly", "判断が誤り"),
    "doubtful map": words("doubtful map", "疑わしいマップ"),
    "nothing found": words("nothing found", "何も見つからない"),
    "unsure": words("right or not known, but unsure", "正解または不明だが自信がない"),
    "ok": words("nothing to remark", "特になし"),
}


@dataclass(frozen=True)
class RunReportOptions:
    """How the report of a run is written."""

    pages: int | None = PAGES
    """So many pages of images; None: as many as all images need."""
    per_page: int = PER_PAGE
    data: DataNow = None
    """Where the pictures are now; None: where the manifest says."""
    lang: Literal["auto", "en", "ja"] = "auto"
    anonymous: bool = False

    def __post_init__(self) -> None:
        if self.per_page < 1 or (self.pages is not None and self.pages < 0):
            raise KonkyoError(
                f"a page has at least one image, and there are no fewer than 0 pages; got {self.per_page}, {self.pages}"
            )


def report_run(
    records: Records | str | Path, out: str | Path, options: RunReportOptions = RunReportOptions()
) -> list[Path]:
    """Writes the report of a run into a folder: index.html, and page-001.html, ... -> the files, the index first

    Every file is one page that needs nothing else, and they are linked with each other. No more than one page's
    pictures are held. KonkyoError: no finished shard, no DuckDB, or a file that cannot be written.
    """
    known = records if isinstance(records, Records) else Records.open(records)
    folder = Path(out)
    pictures = RunPictures.of(known.manifest, options.data)
    style: dict[str, Any] = {"lang": options.lang, "anonymous": options.anonymous, "pictures": "all"}
    with opened(known.files, known.receipts) as database:
        summary = Summary.of(known, database)
        most = None if options.pages is None else max(GLIMPSE, options.pages * options.per_page)
        images = most_suspicious(database, most)
        shown = images if options.pages is None else images[: options.pages * options.per_page]
        count = math.ceil(len(shown) / options.per_page)
        files = [folder / "index.html", *(folder / f"page-{number:03d}.html" for number in range(1, count + 1))]
        page = _summary_page(known, database, summary, images[:GLIMPSE], pictures)
        report(replace(page, links=_links(count, 0)), files[0], **style)
        for number, file in enumerate(files[1:]):
            first = number * options.per_page
            part = shown[first : first + options.per_page]
            page = _page_of_images(known, database, part, pictures.of_next_page())
            title = f"{known.manifest['model']}: images {first + 1}–{first + len(part)} of {summary.images}"
            report(replace(page, title=title, links=_links(count, number + 1)), file, **style)
    return files


@reader(MANIFEST)
def page_of_run_folder(folder: Path, request: Request) -> Page:
    """Returns the page that sums a run up, with its most suspicious images. KonkyoError: it cannot be read."""
    records = Records.open(folder)
    with opened(records.files, records.receipts) as database:
        summary = Summary.of(records, database)
        images = most_suspicious(database, request.most)
        return _summary_page(records, database, summary, images, RunPictures.of(records.manifest))


def _links(pages: int, this: int) -> tuple[tuple[Text, str], ...]:
    """Returns (name, file) of the summary (0) and the pages: the first, the last, and those beside this one."""
    if not pages:
        return ()
    numbers = [n for n in range(1, pages + 1) if n in (1, pages) or abs(n - this) <= NEAR]
    named = [(0, words("Summary", "概要"), "index.html")]
    named += [(n, words(str(n)), f"page-{n:03d}.html") for n in numbers]
    return tuple((name, "" if n == this else file) for n, name, file in named)


# --- pages ------------------------------------------------------------------------------------------------------------


def _page_of_images(records: Records, database: Database, images: Sequence[Image], pictures: RunPictures) -> Page:
    """Returns a page of these images, in their order."""
    rows = CollectedRows(len(images))
    suspicion: list[float] = []
    for of_image in rows_of_images(database, images):
        worst = max(of_image, key=lambda row: row["suspicion"])
        before = len(rows.rows)
        _add(rows, of_image, records, pictures)
        suspicion += [worst["suspicion"]] * (len(rows.rows) - before)
    known = tuple(replace(row, suspicion=value) for row, value in zip(rows.rows, suspicion, strict=True))
    provenance = {f"{method}: layer": layer for method, layer in rows.layers.items()}
    return Page(
        title=str(records.manifest["model"]),
        rows=known,
        ordered=True,
        provenance=provenance | _provenance(records),
        notes=tuple(words(note) for note in pictures.notes),
    )


def _add(rows: CollectedRows, of_image: Sequence[dict[str, Any]], records: Records, pictures: RunPictures) -> None:
    """Adds the rows of an image to those of a page: its maps, or why there is none."""
    first = of_image[0]
    unused = first["error"] and first["method"] is None
    source = None if unused else pictures.find(first["image"], first["sha256"])
    picture = None if source is None else pictures.view(source.sample.image)
    metrics = records.manifest.get("metrics") or ()
    results = [with_picture(result, picture) for result in explanations_of(of_image, records.manifest)]
    for _, group in groupby(results, lambda result: result.labels):  # those that explain the same, beside each other
        before = len(rows.rows)
        beside = list(group)
        rows.add(beside)
        for place, row in enumerate(rows.rows[before:]):
            values = {
                f"{name} ({of_row['method']})" if len(beside) > 1 else name: of_row[name]
                for of_row in of_image
                if of_row["row"] == place and of_row["method"] in {result.method for result in beside}
                for name in metrics
                if of_row[name] is not None
            }
            rows.rows[before + place] = replace(row, values=values)
    reasons = [
        f"{row['method']}: {row['error']}" if row["method"] else row["error"] for row in of_image if row["error"]
    ]
    if not results:
        flag = "error" if reasons else "nothing found"
        small = None if picture is None else reduced(picture, rows.side)
        label = first["true_label"] or ""
        rows.rows.append(
            ImageRow(first["image"], small, true_label=label, flags=(flag,), why=words("; ".join(reasons)))
        )


def _summary_page(
    records: Records, database: Database, summary: Summary, images: Sequence[Image], pictures: RunPictures
) -> Page:
    page = _page_of_images(records, database, images, pictures)
    low, high = interval_of_share(summary.correct, summary.known)
    counts = [(words_of("count.images"), str(summary.images))]
    if summary.known:
        counts += accuracy_counts(summary.correct, summary.known, low, high)
    maps = sum(n for _, kind, n in summary.diagnosis)
    doubtful = sum(n for _, kind, n in summary.diagnosis if kind != "ok")
    counts.append((words_of("count.doubtful"), str(doubtful)))
    counts.append((words("could not be used", "使えなかった画像"), str(summary.kinds.get("error", 0))))
    verdict = words_of("verdict.maps", maps=maps, images=summary.images, doubtful=doubtful)
    if summary.known:
        verdict = words_of("verdict.wrong", wrong=summary.known - summary.correct, n=summary.known)
    source = str(records.manifest["data"]["source"])
    provenance, command = made_by(records.folder)
    notes = [] if records.complete else [f"The run is not finished: {repr(records).split(', ')[-1].split(' (')[0]}."]
    return replace(
        page,
        title=f"{records.manifest['model']}: {source}",
        verdict=verdict,
        counts=tuple(counts),
        confusion=_confusion(summary),
        tables=tuple(_tables(summary, records)),
        provenance={**_provenance(records), **page.provenance, **provenance},
        command=command,
        notes=(*map(words, notes), *page.notes),
    )


def _provenance(records: Records) -> dict[str, str]:
    manifest, data = records.manifest, records.manifest["data"]
    names = ("model", "weights", "preprocess", "target", "layer", "seed", "precision", "batch", "device")
    values = {name: str(manifest[name]) for name in names if manifest.get(name) is not None}
    merged = {"merged from": "; ".join(str(part["source"]) for part in data[MERGED])} if data.get(MERGED) else {}
    return values | {"data": str(data["source"])} | merged | dict(manifest.get("versions") or {})


def _confusion(summary: Summary) -> ConfusionMatrix | None:
    names = sorted({name for pair in summary.confusion for name in pair})
    if not 1 < len(names) <= MATRIX:
        return None
    counts, place = torch.zeros(len(names), len(names), dtype=torch.int64), {n: k for k, n in enumerate(names)}
    for (label, decision), n in summary.confusion.items():
        counts[place[label], place[decision]] = n
    return ConfusionMatrix(tuple(names), counts)


# --- tables -----------------------------------------------------------------------------------------------------------


def _tables(summary: Summary, records: Records) -> Iterator[TableBlock]:
    """Yields the tables of a run, without those that would be empty."""
    total = max(1, summary.images)
    kinds: list[list[Cell]] = [[KINDS[kind]["en"], n, f"{n / total:.1%}"] for kind, n in summary.kinds.items()]
    yield TableBlock(words("Images by what to look at first", "最初に見るべき画像"), ["why", "images", "share"], kinds)
    if summary.classes:
        yield _class_table(summary)
    if summary.metrics:
        yield _metric_table(summary)
    of_method = dict.fromkeys(method for method, _, _ in summary.diagnosis)
    diagnoses = list(dict.fromkeys(["ok", *(kind for _, kind, _ in summary.diagnosis)]))
    counts = {(method, kind): n for method, kind, n in summary.diagnosis}
    if counts:
        lines: list[list[Cell]] = [[m, *(counts.get((m, kind), 0) for kind in diagnoses)] for m in of_method]
        yield TableBlock(words("Diagnosis of the maps", "マップの診断"), ["method", *diagnoses], lines)
    if summary.errors:
        errors: list[list[Cell]] = [[error, n] for error, n in summary.errors]
        yield TableBlock(words("Images that could not be used", "使えなかった画像"), ["error", "images"], errors)
    if summary.refused:
        refused: list[list[Cell]] = [[method, reason, n] for method, reason, n in summary.refused]
        title = words("Methods without a place in the model", "モデルに適用できない手法")
        yield TableBlock(title, ["method", "reason", "rows"], refused)
    if summary.seconds:
        took: list[list[Cell]] = [
            [name, f"{seconds:.1f}", f"{summary.images / seconds:.1f}" if seconds else "–"]
            for name, seconds in summary.seconds.items()
        ]
        note = words(
            f"Summed over {len(records.receipts)} shards made on {summary.hosts} "
            f"{'machine' if summary.hosts == 1 else 'machines'}; shards that were made side by side took less time."
        )
        yield TableBlock(words("Throughput", "処理速度"), ["part", "seconds", "images per second"], took, note)


def _class_table(summary: Summary) -> TableBlock:
    lines: list[list[Cell]] = []
    for entry in summary.classes[:CLASSES]:
        low, high = interval_of_share(entry.correct, entry.known)
        right: Cell = Measure(entry.correct / entry.known, low, high) if entry.known else math.nan
        lines.append([entry.name, entry.images, right, entry.probability, entry.ok])
    cut = len(summary.classes) > CLASSES
    note = words(f"{CLASSES} of {len(summary.classes)} classes, those that are least often right.") if cut else {}
    head = ["class", "images", "decided rightly", "mean probability", "maps that are ok"]
    return TableBlock(words("Classes, the least often right first", "クラス(正解率の低い順)"), head, lines, note)


def _metric_table(summary: Summary) -> TableBlock:
    names = list(dict.fromkeys(mean.metric for mean in summary.metrics))
    means = {(mean.method, mean.metric): mean for mean in summary.metrics}
    lines: list[list[Cell]] = []
    for method in dict.fromkeys(mean.method for mean in summary.metrics):
        known = [means.get((method, name)) for name in names]
        measures: list[Cell] = [math.nan if m is None else Measure(m.mean, m.low, m.high) for m in known]
        lines.append([method, *measures, max(m.n for m in known if m is not None)])
    return TableBlock(words("Metrics, means over all rows", "指標(全行の平均)"), ["method", *names, "n"], lines)

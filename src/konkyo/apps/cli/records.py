"""The commands that read a folder of `konkyo run`: query, merge and export."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer

from konkyo.apps.cli.options import Json
from konkyo.apps.cli.terminal import print_json, print_line, print_table

PicturesNow = Annotated[
    list[str] | None,
    typer.Option("--data", "-d", help="Where the pictures of a run are now, if they were moved; repeatable."),
]
RunFolder = Annotated[Path, typer.Argument(help="What `konkyo run` wrote; it may still be running.")]


def query(
    folder: RunFolder,
    where: Annotated[
        str | None, typer.Option("--where", help="A condition in SQL, as in \"why = 'wrong' AND probability > 0.9\".")
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Names apart by commas; `konkyo query DIR --sql 'DESCRIBE rows'`.")
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="A column, with - before it from the highest down; or suspicious.")
    ] = "suspicious",
    limit: Annotated[int, typer.Option("--limit", min=0, help="So many rows; 0: all.")] = 20,
    sql: Annotated[
        str | None, typer.Option("--sql", help="A whole SELECT of the view `rows`, in place of the options above.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the rows into FILE instead.")] = None,
    as_json: Json = False,
) -> None:
    """Ask the rows of a run in SQL; the most suspicious ones come first: errors, sure and wrong, doubtful maps."""
    from konkyo.runs.query import Question
    from konkyo.runs.records import Records
    from konkyo.utils.files import replacing

    names = [name.strip() for name in (columns or "").split(",") if name.strip()]
    question = Question(where, names, sort, limit or None, sql)
    with Records.open(folder).answer(question) as answer:
        if csv is not None:
            with replacing(csv) as temporary:
                count = _write_csv(temporary, answer.columns, answer.rows)
            rest = "; --limit 0 writes all" if limit and count == limit and not sql else ""
            print_line(f"{count} rows in {csv}{rest}")
        elif as_json:
            _print_json(answer.columns, answer.rows)
        else:
            head, rows = list(answer.columns), [[_shown(value) for value in row] for row in answer.rows]
            if not sql:
                _drop_empty(head, rows, names)
            print_table(head, rows)


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Two folders of `konkyo run` or more, of one job.")],
    to: Annotated[Path, typer.Option("--out", help="A new folder, which is there only when it is whole.")],
    as_json: Json = False,
) -> None:
    """Join runs of one job over different data, as of several machines, into one run."""
    from konkyo.runs.merge import merge

    records = merge(folders, to)
    if as_json:
        counts = {"images": records.images, "rows": len(records), "errors": records.errors}
        print_json({"folder": str(to), "shards": len(records.receipts), **counts})
        return
    print_line(repr(records))


def export(
    folder: RunFolder,
    form: Annotated[str, typer.Option("--to", help="coco, numpy, fiftyone, tensorboard, mlflow or wandb.")],
    to: Annotated[
        Path, typer.Option("--out", help="FILE.json of coco; else a folder, which names the data set or run.")
    ],
    threshold: Annotated[
        float, typer.Option("--threshold", help="Masks of coco: where a map scaled to [0, 1] is above it.")
    ] = 0.2,
    pictures: Annotated[
        int, typer.Option("--drawn", min=0, help="Trackers: so many of the most suspicious images are drawn.")
    ] = 16,
    data: PicturesNow = None,
) -> None:
    """Write a run for another tool: COCO, NumPy, FiftyOne, TensorBoard, MLflow or Weights & Biases."""
    from konkyo.runs.exports import Wishes, export

    summary = export(folder, form, to, Wishes(threshold, data, pictures))
    print_line(summary)


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Writes a table a part at a time. -> how many rows"""
    from konkyo.utils.files import csv_text

    count, lines = 0, chain([list(columns)], ([_cell(value) for value in row] for row in rows))
    with file.open("w", encoding="utf-8", newline="") as stream:
        while part := list(islice(lines, 1000)):
            stream.write(csv_text(part[0], part[1:]))
            count += len(part)
    return count - 1


def _print_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a list of objects, a row each in a line."""
    lines = (json.dumps(dict(zip(columns, map(_plain, row), strict=True))) for row in rows)
    print("[" + next(lines, ""), end="")  # noqa: T201 - standard output is what was asked for
    for line in lines:
        print(f",\n {line}", end="")  # noqa: T201
    print("]")  # noqa: T201


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: how many bytes there are for bytes, None for what is no number."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _cell(value: Any) -> Any:
    known = _plain(value)
    return json.dumps(known) if isinstance(known, (list, dict)) else known


def _shown(value: Any) -> str:
    known = _cell(value)
    return "" if known is None else f"{known:.4g}" if isinstance(known, float) else str(known)


def _drop_empty(head: list[str], rows: Sequence[list[str]], wanted: Sequence[str]) -> None:
    """Takes columns away that are empty in all rows and that nobody asked for by name."""
    for at in reversed(range(len(head))):
        if rows and head[at] not in wanted and not any(row[at] for row in rows):
            del head[at]
            for row in rows:
                del row[at]

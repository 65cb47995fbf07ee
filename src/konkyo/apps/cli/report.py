"""The commands that tell what trainings gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from konkyo.apps.cli.options import Json
from konkyo.apps.cli.terminal import out, print_table

report = typer.Typer(help="Tables and figures of what was trained.", no_args_is_help=True)


@report.callback()
def _report() -> None:
    """Tables and figures of what was trained."""


@report.command()
def gaze(
    folder: Annotated[Path, typer.Argument(help="What `konkyo train gaze` wrote; it may still be training.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for tables and figures; default: report in the study's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learning curves, kappa against L, numbers and maps against lambda: the report of a study of gaze consistency."""
    from konkyo.studies.gaze.report import report_gaze

    result = report_gaze(folder)
    to = folder / "report" if to is None else to
    result.save(to)
    if as_json:
        print(json.dumps(result.description(), indent=1))  # noqa: T201 - standard output is what was asked for
        return
    for table in (result.table(), result.differences(), result.correlation_table()):
        if table[1]:
            print_table(*table)
            out.print()
    for line in result.remarks():
        out.print(escape(line), highlight=False, soft_wrap=True)
    out.print(f"report.md, tables and figures in {escape(str(to))}", highlight=False, soft_wrap=True)


@report.command()
def vib(
    folder: Annotated[Path, typer.Argument(help="What `konkyo train vib` wrote; it may still be training.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the table and the maps; default: report in the study's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Accuracy for every beta, what the code holds, and maps side by side: the report of a study of the bottleneck."""
    from konkyo.studies.vib.report import report_vib

    result = report_vib(folder)
    to = result.save(to)
    if as_json:
        print(json.dumps(result.description(), indent=1))  # noqa: T201 - standard output is what was asked for
        return
    print_table(*result.table())
    for line in result.remarks():
        out.print(escape(line), highlight=False, soft_wrap=True)
    out.print(f"report.md, tables and maps in {escape(str(to))}", highlight=False, soft_wrap=True)

"""The commands that make a report of what is finished: a folder of any command, or of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from konkyo.apps.cli.options import Format, Json, figure_format
from konkyo.apps.cli.records import PicturesNow
from konkyo.apps.cli.reports import Anonymous, Language, PictureCount, ReportOptions, write_report
from konkyo.apps.cli.terminal import out, print_json, print_line, print_table
from konkyo.errors import KonkyoError
from konkyo.utils.words import counted


class _FolderByDefault(TyperGroup):
    """`konkyo report FOLDER` is `konkyo report folder FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Names the command where the user names a folder alone."""
        if args and "--help" not in args and not any(word in self.commands for word in args[:1]):
            args = ["folder", *args]
        return super().parse_args(ctx, args)


_HELP = "One HTML page of a finished folder: konkyo report FOLDER. Of studies also tables and figures."
report = typer.Typer(help=_HELP, no_args_is_help=True, cls=_FolderByDefault)


@report.callback()
def _report() -> None:
    """One HTML page of a finished folder: konkyo report FOLDER. Of studies also tables and figures."""


@report.command()
def folder(
    folder: Annotated[
        Path, typer.Argument(help="What `konkyo explain`, `evaluate`, `consistency`, `diagnose` or `run` wrote.")
    ],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="FILE.html (report.html in the folder); of a run a folder (report in the run's)."),
    ] = None,
    lang: Language = "auto",
    pictures: PictureCount = "500",
    anonymous: Anonymous = False,
    pages: Annotated[
        str, typer.Option("--pages", help="Of a run: so many pages of images, the most suspicious first; or all.")
    ] = "2",
    per_page: Annotated[int, typer.Option("--per-page", min=1, help="Of a run: so many images on a page.")] = 250,
    data: PicturesNow = None,
) -> None:
    """Make the page of a finished folder, of a run several. It reads the files there, and the pictures they name."""
    if (folder / "run.json").is_file():
        _report_run(
            folder, to or folder / "report", ReportOptions(None, lang, pictures, anonymous), pages, per_page, data
        )
        return
    import konkyo.studies.report  # noqa: F401 - makes folders of studies known
    from konkyo.report.builders import Request
    from konkyo.report.folder import page_of_folder

    options = ReportOptions(to or folder / "report.html", lang, pictures, anonymous)
    page = page_of_folder(folder, Request(most=options.most))
    print_line(write_report(page, options))


def _report_run(
    folder: Path, to: Path, options: ReportOptions, pages: str, per_page: int, data: list[str] | None
) -> None:
    """Writes the pages of a run, and says which one comes first."""
    from konkyo.runs.report import RunReportOptions, report_run

    if pages != "all" and not pages.isdecimal():
        raise KonkyoError(f"--pages is a number or all; got {pages!r}")
    if to.suffix.lower() in (".html", ".htm"):
        raise KonkyoError(f"the report of a run is a folder of pages; got {to.name}")
    most = None if pages == "all" else int(pages)
    files = report_run(folder, to, RunReportOptions(most, per_page, data, options.lang, options.anonymous))  # type: ignore[arg-type] # checked
    size = sum(file.stat().st_size for file in files) / 1e6
    print_line(f"report: {files[0]} and {counted(len(files) - 1, 'page')} of images ({size:.1f} MB)")


@report.command()
def gaze(
    folder: Annotated[Path, typer.Argument(help="What `konkyo train gaze` wrote; it may still be training.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for tables and figures; default: report in the study's.")
    ] = None,
    format: Format = "png",
    as_json: Json = False,
) -> None:
    """Learning curves, kappa against L, numbers and maps against lambda: the report of a study of gaze consistency."""
    from konkyo.studies.gaze.report import report_gaze

    result = report_gaze(folder)
    to = folder / "report" if to is None else to
    result.save(to, format=figure_format(format))
    if as_json:
        print_json(result.description())
        return
    for table in (result.table(), result.differences(), result.correlation_table()):
        if table[1]:
            print_table(*table)
            out.print()
    for line in result.remarks():
        print_line(line)
    print_line(f"report.md, tables and figures in {to}")


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
        print_json(result.description())
        return
    print_table(*result.table())
    for line in result.remarks():
        print_line(line)
    print_line(f"report.md, tables and maps in {to}")

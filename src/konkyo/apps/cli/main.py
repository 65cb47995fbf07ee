"""The command line. torch and matplotlib are imported by the commands that need them, so that --help is quick."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from konkyo.apps.cli.benchmark import benchmark
from konkyo.apps.cli.compare import compare
from konkyo.apps.cli.concepts import concepts
from konkyo.apps.cli.consistency import consistency
from konkyo.apps.cli.cover import cover
from konkyo.apps.cli.demo import demo
from konkyo.apps.cli.diagnose import diagnose
from konkyo.apps.cli.evaluate import evaluate
from konkyo.apps.cli.explain import explain
from konkyo.apps.cli.export_cam import export_cam
from konkyo.apps.cli.listing import layers, list_methods, list_metrics
from konkyo.apps.cli.neighbours import nearest_images
from konkyo.apps.cli.pair import pair
from konkyo.apps.cli.recommend import recommend
from konkyo.apps.cli.records import export, merge, query
from konkyo.apps.cli.report import report
from konkyo.apps.cli.run import run
from konkyo.apps.cli.sanity import sanity
from konkyo.apps.cli.serve import serve
from konkyo.apps.cli.survey import survey
from konkyo.apps.cli.terminal import err, print_line
from konkyo.apps.cli.train import train
from konkyo.errors import KonkyoError, KonkyoWarning


class _Commands(TyperGroup):
    """These are all commands; what is wrong with an option's value is said as in the errors of the library."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. typer.BadParameter: a value of another kind, or out of its range."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _in_words(error)
            raise


def _in_words(error: typer.BadParameter) -> str:
    """Returns what was expected of a value and what came; what Typer says where it is about something else."""
    try:
        from pydantic import ValidationError
    except ImportError:  # versions of Typer without it say it well
        return error.message
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return error.message
    first = cause.errors()[0]
    limits = first.get("ctx", {})
    expected = {
        "greater_than_equal": f"{limits.get('ge')} or more",
        "less_than_equal": f"{limits.get('le')} or less",
        "int_parsing": "a whole number",
        "float_parsing": "a number",
    }.get(first["type"])
    return error.message if expected is None else f"{expected} was expected; got {first['input']}"


app = typer.Typer(
    cls=_Commands,
    name="konkyo",
    help="Shows what in an image a vision model decided on.",
    epilog="Exit status: 0 all done, 1 nothing could be done (and why), 2 wrong usage, 3 some images skipped or some "
    "trainings diverged, 4 `diagnose --fail-on` found it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


app.command()(explain)
app.command()(compare)
app.command(name="methods")(list_methods)
app.command()(layers)
app.command()(demo)
app.command()(evaluate)
app.command()(run)
app.command()(recommend)
app.command(name="metrics")(list_metrics)
app.command()(sanity)
app.command()(consistency)
app.command()(diagnose)
app.command()(cover)
app.command()(concepts)
app.command(name="export-cam")(export_cam)
app.command(name="neighbours")(nearest_images)
app.command()(pair)
app.command()(query)
app.command()(serve)
app.command()(merge)
app.command()(export)
app.add_typer(benchmark, name="benchmark")
app.add_typer(train, name="train")
app.add_typer(report, name="report")
app.add_typer(survey, name="survey")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from konkyo import __version__

        print_line(f"konkyo {__version__}")
        raise typer.Exit


def replace_unencodable() -> None:
    """Standard output and error write a question mark where their encoding lacks a character, and never fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def main() -> None:
    """The `konkyo` command runs, and an error of the user's making is one line without a traceback."""
    replace_unencodable()
    warnings.simplefilter("ignore", KonkyoWarning)  # told with each image
    try:
        app()
    except KonkyoError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)

"""What the commands write on the terminal: bars of progress, tables, lines."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from konkyo.evaluation.result import Evaluation

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, colour its text or turn its direction; line ends and tabs stay."""


class _Console(Console):
    """It shows control characters, as a file's name may hold, as in "\\x1b": a name commands no terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(visible(o) if isinstance(o, str) else o for o in objects), **options)


def visible(text: str) -> str:
    """Returns a text without control characters.

    >>> visible("a\\x1b[31m.png")
    'a\\\\x1b[31m.png'
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


out, err = _Console(emoji=False), _Console(stderr=True, emoji=False)
EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class Bar(Protocol):
    """It shows how much of the work is done (total None: of how much is not known), and which stage is under way."""

    def __call__(self, done: int, total: int | None, stage: str | None = None, /) -> None:
        """Shows it."""


def progress(
    items: Iterable[Any], what: str, total: int | None = None
) -> Iterator[tuple[Any, Callable[[int, int], None]]]:
    """Every item, and a function that hears how many of its variants are done. `total`: so many items come."""
    listed = list(items) if total is None else items
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        variants = bar.add_task("variants", visible=False)

        def tell(done: int, total: int) -> None:
            bar.update(variants, completed=done, total=total, visible=done < total)

        count = len(listed) if total is None else total  # type: ignore[arg-type] # then it is a list
        line = _lines(what)
        for done, item in enumerate(bar.track(listed, total=count, description=what)):
            line(done, count)
            yield item, tell


def _lines(what: str, *, shown: bool = True) -> Bar:
    """Returns a bar for what is no terminal, as a log: a line every EVERY seconds."""
    start = last = time.monotonic()

    def tell(done: int, total: int | None, stage: str | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if not shown or err.is_terminal or now - last < EVERY:
            return
        last = now
        left = "" if not (done and total) else f", {_duration((now - start) * (total - done) / done)} left"
        words = f" ({stage})" if stage else ""
        print_note(f"{what}{words}: {done} of {'?' if total is None else total}{left}")

    return tell


def _duration(seconds: float) -> str:
    """Returns seconds in words.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def print_line(text: str) -> None:
    """Prints a text as it is on standard output, its lines as long as they are."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Prints a text as it is on standard error."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def print_warning(kind: str, text: str) -> None:
    """Prints a text on standard error behind a word that stands out, as in "skipped a.png is no image"."""
    err.print(f"[yellow]{kind}[/] {escape(text)}", highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a result as JSON on standard output, which gets nothing else."""
    print(json.dumps(value, indent=1))  # noqa: T201 - standard output is what was asked for


def print_table(columns: list[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text under their columns."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0)
    for row in rows:
        table.add_row(*(escape(visible(cell)) for cell in row))
    printer = out if out.is_terminal else Console(width=1000, emoji=False)  # in a pipe, names must not be cut
    printer.print(table)


@contextmanager
def progress_bar(what: str, rest: str | None = "what was measured is kept", *, shown: bool = True) -> Iterator[Bar]:
    """A bar on the terminal that hears how far the work is, and of which stage.

    `rest` says what an interruption leaves, from which the same command goes on; None: nothing.
    """
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as bar:
        task, line = bar.add_task(what, total=None), _lines(what, shown=shown)

        def tell(done: int, total: int | None, stage: str | None = None) -> None:
            line(done, total, stage)
            bar.update(task, completed=done, total=total, description=stage)

        try:
            yield tell
        except KeyboardInterrupt:
            if shown:
                left = "nothing is kept" if rest is None else f"{rest}, and the same command goes on from there"
                print_note(f"interrupted: {left}")
            raise


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the table, and what was left out."""
    head, rows = evaluation.table()
    print_table(
        [cell.strip() for cell in head],
        [[cell.replace("\\*", "*").replace("**", "") for cell in row] for row in rows],
    )
    print_line("* differs from the best of its column: p < 0.05, paired by image, Holm")
    for line in evaluation.remarks():
        print_line(line)

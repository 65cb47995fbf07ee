"""What commands write where there is no terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from konkyo.apps.cli import terminal


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(terminal, "err", Console(file=log, width=200))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress_bar("explaining") as bar:
        for second, done in ((1, 5), (40, 200), (50, 250), (80, 400)):
            now[0] = second
            bar(done, 1000, "5.0 images/s")
    assert log.getvalue().splitlines() == [
        "explaining (5.0 images/s): 200 of 1000, 3 min left",
        "explaining (5.0 images/s): 400 of 1000, 2 min left",
    ]


def test_a_name_is_printed_letter_by_letter(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a [bold]b[/] :dog: 12 " + "x" * 100
    terminal.print_line(name)
    terminal.print_note(name)
    terminal.print_warning("skipped", name)
    terminal.print_table(["name"], [[name]])
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == name
    assert out.splitlines()[2].strip() == name
    assert err.splitlines() == [name, f"skipped {name}"]


def test_a_name_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\r\u202egpj.png"
    terminal.print_line(name)
    terminal.print_note(name)
    terminal.print_warning("skipped", name)
    terminal.print_table(["name"], [[name]])
    out, err = capsys.readouterr()
    shown = r"a\x1b[2J\r\u202egpj.png"
    assert [line.strip() for line in out.splitlines()] == [shown, "name", shown]
    assert err.splitlines() == [shown, f"skipped {shown}"]


def test_items_that_are_gone_through_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(terminal, "err", Console(file=log, width=200))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    for _ in terminal.progress(range(8), "comparing"):
        now[0] += 20
    assert log.getvalue().splitlines() == [
        "comparing: 2 of 8, 2 min left",
        "comparing: 4 of 8, 80 s left",
        "comparing: 6 of 8, 40 s left",
    ]


@pytest.mark.parametrize(
    ("rest", "words"),
    [(None, "interrupted: nothing is kept\n"), ("epochs are kept", "interrupted: epochs are kept, and the same ")],
)
def test_an_interruption_tells_what_is_left(rest: str | None, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), terminal.progress_bar("explaining", rest):
        raise KeyboardInterrupt
    assert words in capsys.readouterr().err

"""`konkyo ...` as a user's shell runs it, within the test's process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from konkyo.apps.cli import main as cli


@dataclass(frozen=True)
class Outcome:
    """Exit status, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Outcome]


def told(found: Outcome, *pieces: str) -> None:
    """Exit status 1 and one line that says why."""
    assert found.code == 1, found
    assert found.out == ""
    assert found.err.count("\n") == 1, found.err
    assert found.err.startswith("error: ")
    for piece in pieces:
        assert piece in found.err, found.err


def runner(
    nets: str, usual: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs commands in a folder that then holds nets.py; their model is nets.py:USUAL unless another one is given."""
    (folder / "nets.py").write_text(nets)
    monkeypatch.chdir(folder)

    def call(*words: object) -> Outcome:
        arguments = [str(w) for w in words]
        if arguments[0] in ("explain", "compare") and "--model" not in arguments:
            arguments += ["--model", f"nets.py:{usual}"]
        monkeypatch.setattr(sys, "argv", ["konkyo", *arguments])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return Outcome(code or 0, printed.out, printed.err)

    return call

"""Deaths: which picture a process was at when it was killed, so that it becomes a row and holds nobody up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from konkyo.data.pieces import Piece
from konkyo.data.samples import Sample, Samples
from konkyo.errors import KonkyoError
from konkyo.runs.shards import FOLDER
from konkyo.utils.files import parse_json

DEATHS = 2
"""After so many deaths over one picture, with nothing else under way, it is given up."""


@dataclass(frozen=True)
class Logbook:
    """A file says which image of a piece is being read, and over which ones the reading process died how often.

    It lies in the folder of the run, for the next process may be on another machine. It is gone when the piece is done,
    and where a run begins: what ended that one was no picture, as a rule.
    """

    path: Path

    @classmethod
    def of(cls, folder: Path, piece: int) -> Logbook:
        """Returns the logbook of a piece of a run."""
        return cls(folder / FOLDER / f".shard-{piece:06d}.deaths")

    def piece(self, piece: Piece) -> Piece:
        """Returns the piece with what it reads noted; pictures that were given up are errors."""
        deaths = self.deaths()
        given_up = {index: times for index, times in deaths.items() if times >= DEATHS}
        self.path.parent.mkdir(parents=True, exist_ok=True)  # there may be no shard yet
        self._write(deaths, None)
        return replace(piece, open=partial(_spared, piece, given_up), watch=partial(self._write, deaths))

    def deaths(self) -> dict[int, int]:
        """Returns how often a process died over an image, by its number; {}: never, or nothing was noted."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            noted = parse_json(self.path.read_bytes())
            deaths = {int(index): int(times) for index, times in noted["deaths"].items()}
            if (index := noted["reading"]) is not None:
                deaths[index] = deaths.get(index, 0) + 1
            return deaths
        return {}

    def close(self) -> None:
        """Removes the file."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _write(self, deaths: Mapping[int, int], reading: int | None) -> None:
        with suppress(OSError):  # of a full disk the shard tells
            self.path.write_text(json.dumps({"reading": reading, "deaths": deaths}), encoding="ascii")


def _spared(piece: Piece, given_up: Mapping[int, int]) -> Samples:
    """Returns a piece's samples; those that were given up say so in an error."""
    data = piece.open()
    return replace(data, read=partial(_read, data, given_up)) if given_up else data


def _read(data: Samples, given_up: Mapping[int, int], index: int) -> Sample:
    if index in given_up:
        raise KonkyoError(
            f"the process that reads it died {given_up[index]} times over it; too little memory is the usual cause"
        )
    return data[index]

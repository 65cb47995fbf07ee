"""The engine on one machine: some processes read, this one explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from konkyo.data.pieces import Piece
from konkyo.errors import KonkyoError
from konkyo.explanation.reading import AHEAD, Extras, read_groups
from konkyo.runs.deaths import Logbook
from konkyo.runs.job import Job
from konkyo.runs.shards import Receipt
from konkyo.runs.work import shards_of

TRIES = 3
"""So many times a piece is read alone whose reading process died, nobody knows why."""


def run_locally(job: Job, pieces: Sequence[Piece], folder: Path, *, workers: int = 0) -> Iterator[Receipt]:
    """Yields the receipt of every piece, once its shard is written. `workers`: so many processes read.

    When a reading process dies, the pieces that may have been under way are read one at a time, so that a death tells
    of its piece. If it dies twice over one picture, that becomes a row with its error. KonkyoError, when all others
    are done: pieces that cannot be opened, or whose process died TRIES times over no picture.
    """
    left, failures = {piece.number: piece for piece in pieces}, dict[int, str]()

    def done(parts: Sequence[Piece], count: int, attempt: int) -> Iterator[Receipt]:
        groups = read_groups(job.model, parts, batch=job.batch, workers=count, extras=extras_of(job))
        names = {piece.number: piece.name for piece in parts}
        for receipt in shards_of(job, names, groups, folder, attempt, failures):
            del left[receipt.shard]
            yield receipt

    while parts := [piece for number, piece in left.items() if number not in failures]:
        with suppress_dead_workers():
            yield from done(parts, workers, 1)
            continue
        alone = [piece for number, piece in left.items() if number not in failures][: (AHEAD + 2) * workers]
        for piece in alone:
            logbook, tries, deaths = Logbook.of(folder, piece.number), 0, 0
            while piece.number in left and piece.number not in failures:
                tries, before = tries + 1, logbook.deaths()
                try:
                    yield from done([logbook.piece(piece)], 1, tries + 1)
                except RuntimeError as error:
                    if not _is_dead_worker(error):
                        raise
                    deaths += logbook.deaths() == before  # else a picture may be it, and is given up at last
                    if deaths == TRIES:
                        failures[piece.number] = (
                            f"the process that reads it died {TRIES} times ({str(error).splitlines()[0]}); too little "
                            "memory is the usual cause"
                        )
            logbook.close()
    if failures:
        raise KonkyoError(unopened({piece.number: piece.name for piece in pieces}, failures))


def unopened(names: Mapping[int, str], failures: Mapping[int, str]) -> str:
    """Returns a sentence about pieces that are missing, and why the first of them is."""
    first = min(failures)
    several = f"{len(failures)} parts of the data are missing" if len(failures) > 1 else "a part of the data is missing"
    return (
        f"{several}, the first: {names[first]}: {failures[first]}. What was written is kept; the same command tries "
        "them again"
    )


def extras_of(job: Job) -> Extras:
    """Returns what of a sample has to reach the one that explains."""
    return Extras(samples=bool(job.columns), hashes=True)


@contextmanager
def suppress_dead_workers() -> Iterator[None]:
    """Within the context, the death of a reading process is no error."""
    try:
        yield
    except RuntimeError as error:
        if not _is_dead_worker(error):
            raise


def _is_dead_worker(error: RuntimeError) -> bool:
    """Tells whether a reading process was killed, as torch words it."""
    text = str(error)
    return "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)

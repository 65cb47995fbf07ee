"""The engine on one machine: some processes read, this one explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from konkyo.data.pieces import Piece
from konkyo.errors import KonkyoError
from konkyo.explanation.reading import Kept, read_groups
from konkyo.runs.job import Job
from konkyo.runs.shards import Receipt
from konkyo.runs.work import shards_of

TRIES = 3
"""So many times a piece is begun whose reading process died."""


def run_locally(job: Job, pieces: Sequence[Piece], folder: Path, *, workers: int = 0) -> Iterator[Receipt]:
    """Yields the receipt of every piece, once its shard is written. `workers`: so many processes read.

    A reading process that dies is replaced, and the pieces that were under way are begun again. KonkyoError: it died
    TRIES times with no shard finished in between; or, when all others are done, pieces that cannot be opened.
    """
    left, tries, failures = list(pieces), 1, dict[int, str]()
    names = {piece.number: piece.name for piece in pieces}
    while left:
        groups = read_groups(job.model, left, batch=job.batch, workers=workers, kept=kept(job))
        try:
            for receipt in shards_of(job, names, groups, folder, tries, failures):
                left = [piece for piece in left if piece.number != receipt.shard]
                tries = 1
                yield receipt
            left = []
        except RuntimeError as error:
            if not _is_dead_worker(error):
                raise
            if tries == TRIES:
                raise KonkyoError(
                    f"a process that reads images died {TRIES} times ({str(error).splitlines()[0]}), the last time at "
                    f"images {left[0].name} or after; what was written is kept. Too little memory is the usual cause: "
                    "fewer --workers, or 0"
                ) from error
            tries += 1
            left = [piece for piece in left if piece.number not in failures]
    if failures:
        raise KonkyoError(unopened(names, failures))


def unopened(names: Mapping[int, str], failures: Mapping[int, str]) -> str:
    """Returns a sentence about pieces that are missing, and why the first of them is."""
    first = min(failures)
    several = f"{len(failures)} parts of the data are missing" if len(failures) > 1 else "a part of the data is missing"
    return (
        f"{several}, the first: {names[first]}: {failures[first]}. What was written is kept; the same command tries "
        "them again"
    )


def kept(job: Job) -> Kept:
    """Returns what of a sample has to reach the one that explains."""
    return Kept(samples=bool(job.columns), hashes=True)


def _is_dead_worker(error: RuntimeError) -> bool:
    """Tells whether a reading process was killed, as torch words it."""
    text = str(error)
    return "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)

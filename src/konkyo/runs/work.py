"""The work on one piece of the data: its images are explained and measured, and become a shard."""

from __future__ import annotations

import json
import math
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from konkyo.errors import KonkyoError, NotApplicable, silenced
from konkyo.evaluation.measurement import measured_maps
from konkyo.explanation.explain import explanations
from konkyo.explanation.files import target_to_json
from konkyo.explanation.inputs import known_classes
from konkyo.explanation.reading import Entry, Group, explained_groups, prepared_of
from konkyo.explanation.result import Explanation
from konkyo.explanation.words import box_of, decision_of
from konkyo.runs.job import Job
from konkyo.runs.shards import (
    NOTHING,
    Receipt,
    digest_of,
    is_whole,
    packed,
    receipt_of,
    shard_path,
    write_receipt,
    write_shard,
)
from konkyo.tasks.decision import Decision


@dataclass(eq=False)
class Shard:
    """It gathers the rows of one piece until all of its images came."""

    number: int
    piece: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    errors: int = 0
    refused: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"explain": 0.0, "write": 0.0})
    began: float = field(default_factory=time.perf_counter)

    def add(self, job: Job, group: Group) -> None:
        """Explains a group of images, and keeps their rows."""
        start = time.perf_counter()
        for row in rows_of(job, group):
            self.rows.append(row)
            self.refused += row.get("error") is not None and row.get("method") is not None
            self.errors += row.get("error") is not None and row.get("method") is None
        self.images += len(group.entries)
        self.seconds["explain"] += time.perf_counter() - start

    def write(self, job: Job, folder: Path, tries: int = 1) -> Receipt:
        """Writes the shard and then its receipt; a whole one with no more errors that is there already is kept."""
        if (before := _before(folder, self.number)) is not None and before.errors <= self.errors:
            return before
        start = time.perf_counter()
        path = write_shard(folder, self.number, self.rows, job.metrics)
        self.seconds["write"] = time.perf_counter() - start
        self.seconds["all"] = time.perf_counter() - self.began
        receipt = Receipt(
            self.number,
            self.piece,
            path.stat().st_size,
            digest_of(path),
            self.images,
            len(self.rows),
            self.errors,
            self.refused,
            {name: round(value, 4) for name, value in self.seconds.items()},
            platform.node(),
            tries,
        )
        write_receipt(folder, receipt)
        return receipt


def _before(folder: Path, number: int) -> Receipt | None:
    """Returns the receipt of a whole shard of an earlier run; None where there is none."""
    try:
        receipt = receipt_of(shard_path(folder, number).with_suffix(".json"))
    except KonkyoError:
        return None
    return receipt if is_whole(folder, receipt) else None


class UnopenedError(KonkyoError):
    """A piece of the data that cannot be opened."""


def shards_of(
    job: Job,
    names: Mapping[int, str],
    groups: Iterable[Group],
    folder: Path,
    tries: int = 1,
    failures: dict[int, str] | None = None,
) -> Iterator[Receipt]:
    """Yields the receipt of every piece of which all groups came, once its shard is written.

    `names`: of the pieces, by number. Groups of several pieces may come in turns. A piece that cannot be opened is
    noted in `failures` with the reason. UnopenedError: there is one, and no `failures`.
    """
    under_way: dict[int, Shard] = {}
    for group in groups:
        if group.failure and failures is None:
            raise UnopenedError(group.failure)
        if group.failure and failures is not None:
            failures[group.piece] = group.failure
            continue
        shard = under_way.setdefault(group.piece, Shard(group.piece, names[group.piece]))
        shard.add(job, group)
        if group.last:
            yield under_way.pop(group.piece).write(job, folder, tries)


def rows_of(job: Job, group: Group) -> Iterator[dict[str, Any]]:
    """Yields the rows of a group's images, in their order; one with an error of an image that cannot be used."""
    if group.tensor is None:
        yield from (_failed(entry, entry.error) for entry in group.entries)
    elif job.columns:
        for entry in group.entries:
            yield from _measured(job, entry)
    else:
        yield from _explained(job, group)


def _explained(job: Job, group: Group) -> Iterator[dict[str, Any]]:
    """Yields the rows of a group that is explained together; if that fails, of each image alone."""

    def explain(part: Group) -> Mapping[str, Explanation | NotApplicable]:
        with silenced():  # every row has its diagnosis
            return explanations(job.model, prepared_of(job.model, part), job.methods, **job.request)

    for part, results in explained_groups(group, explain, KonkyoError):
        if isinstance(results, KonkyoError):
            yield _failed(part.entries[0], str(results))
            continue
        rows: list[list[dict[str, Any]]] = [[] for _ in part.entries]
        for name, result in results.items():
            listed = _refused(name, result, len(rows)) if isinstance(result, NotApplicable) else _rows(result)
            for index, row in listed:
                rows[index].append(row)
        for entry, of_image in zip(part.entries, rows, strict=True):
            yield from _completed(entry, of_image)


def _measured(job: Job, entry: Entry) -> Iterator[dict[str, Any]]:
    """Yields the rows of an image whose maps are measured, too."""
    assert entry.sample is not None
    try:
        with silenced():
            results, values = measured_maps(job.plan(), entry.sample, entry.number, job.target)
    except NotApplicable:
        raise
    except KonkyoError as error:
        yield _failed(entry, str(error))
        return
    rows = []
    known, _ = known_classes(job.model, [entry.label])
    for name, result in results.items():
        if isinstance(result, Explanation) and known:
            result = replace(result, true_labels=known * len(result))
        listed = [row for _, row in (_refused(name, result, 1) if isinstance(result, NotApplicable) else _rows(result))]
        for column, of_rows in values.get(name, {}).items():
            for row, value in zip(listed, of_rows, strict=True):
                row[column] = _finite(value)
        rows += listed
    yield from _completed(entry, rows)


def _completed(entry: Entry, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the rows of an image with what is known of it; one of an image in which nothing was found."""
    known = _of_entry(entry)
    yield from (known | row for row in rows or [{"row": 0, "diagnosis": NOTHING}])


def _refused(name: str, reason: NotApplicable, images: int) -> list[tuple[int, dict[str, Any]]]:
    return [(index, {"row": 0, "method": name, "error": str(reason)}) for index in range(images)]


def _rows(result: Explanation) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (which image, what a shard keeps) of every row of an explanation; the tensors are fetched at once."""
    maps, scores = result.signed.detach().cpu().float().numpy(), result.scores.tolist()
    regions = None if result.regions is None else result.regions.tolist()
    correct, numbers = result.correct, Counter[int]()
    for row, image in enumerate(result.image_index.tolist()):
        data, shape, scale = packed(maps[row])
        decision, diagnosis = decision_of(result, row), result.diagnosis[row]
        yield (
            image,
            {
                "method": result.method,
                "row": numbers[image],
                "layer": result.layer,
                "label": result.labels[row],
                "target": json.dumps(target_to_json(result.targets[row])),
                "score": _finite(scores[row]),
                "correct": correct[row],
                "box": box_of(result, row),
                "region": None if regions is None else regions[row],
                "map": data,
                "shape": shape,
                "scale": scale,
                "rectified": result.rectified,
                "diagnosis": diagnosis.kind,
                "message": diagnosis.message or None,
                **({} if decision is None else _of_decision(decision)),
                **({"true_label": result.true_labels[row]} if result.true_labels else {}),
            },
        )
        numbers[image] += 1


def _of_decision(decision: Decision) -> dict[str, Any]:
    return {
        "decision": decision.label,
        "decision_index": decision.index,
        "probability": decision.probability,
        "asked_probability": decision.asked_probability,
        "rank": decision.rank,
        "exclusive": decision.exclusive,
    }


def _of_entry(entry: Entry) -> dict[str, Any]:
    return {
        "image": entry.name,
        "sha256": entry.sha256 or None,
        "height": entry.size[0] or None,
        "width": entry.size[1] or None,
        "true_label": entry.label,
        "question": entry.question,
        "notes": list(entry.notes),
    }


def _failed(entry: Entry, reason: str) -> dict[str, Any]:
    return _of_entry(entry) | {"row": 0, "error": reason}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""What the rows of a run add up to, whatever their number: counted by DuckDB, not held in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from konkyo.runs.query import ORDER, Database, literal, quoted
from konkyo.runs.records import Records
from konkyo.utils.statistics import REACH

IMAGES = """WITH images AS (
    SELECT image, sha256, any_value(true_label) AS true_label, any_value(decision) AS decision,
        any_value(correct) AS correct, any_value(probability) AS probability, max(suspicion) AS suspicion,
        arg_max(why, suspicion) AS why
    FROM rows GROUP BY image, sha256
)"""
"""A row per image: how suspicious the most suspicious of its rows is, and why."""
KINDS = ("error", "wrong", "doubtful map", "nothing found", "unsure", "ok")
"""Why an image is looked at, the most urgent first."""
MOST = 20
"""So many different errors are listed."""
Image = tuple[str, str | None]
"""What an image is known by: its name and the digest of its pixels."""


@dataclass(frozen=True)
class ClassCount:
    """What is known of the images of one class."""

    name: str
    images: int
    known: int
    """Images with a decision."""
    correct: int
    probability: float
    """The mean of the decision's."""
    ok: float
    """The share of maps whose diagnosis is "ok"; NaN without maps."""


@dataclass(frozen=True)
class MetricMean:
    """The mean of a metric over all rows of a method that have it, with its 95 % interval (normal)."""

    method: str
    metric: str
    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Summary:
    """The summary is what a run's rows add up to."""

    images: int
    rows: int
    known: int
    """Images whose decision and true label are known."""
    correct: int
    kinds: Mapping[str, int]
    """Images by why they are suspicious, the keys as in KINDS."""
    errors: tuple[tuple[str, int], ...]
    """The most frequent errors of images, and of how many."""
    refused: tuple[tuple[str, str, int], ...]
    """(method, why it has no place in the model, rows)."""
    diagnosis: tuple[tuple[str, str, int], ...]
    """(method, kind, rows)."""
    classes: tuple[ClassCount, ...]
    """The least often right first."""
    confusion: Mapping[tuple[str, str], int]
    """(true label, decision) -> images."""
    metrics: tuple[MetricMean, ...]
    seconds: Mapping[str, float]
    """What the shards took, added up: reading, explaining, writing."""
    hosts: int

    @classmethod
    def of(cls, records: Records, database: Database) -> Summary:
        """Returns the summary of a run's records."""
        table = database.table
        (counts,) = table(
            f"{IMAGES} SELECT count(*) AS images, count(correct) AS known, count(*) FILTER (correct) AS hits "
            "FROM images"
        )
        kinds = {r["why"]: r["n"] for r in table(f"{IMAGES} SELECT why, count(*) AS n FROM images GROUP BY why")}
        pairs = table(
            f"{IMAGES} SELECT true_label, decision, count(*) AS n FROM images WHERE correct IS NOT NULL GROUP BY ALL "
            "ORDER BY ALL"
        )
        errors = table(
            "SELECT error, count(*) AS n FROM rows WHERE error IS NOT NULL AND method IS NULL GROUP BY error "
            f"ORDER BY n DESC, error LIMIT {MOST}"
        )
        refused = table(
            "SELECT method, error, count(*) AS n FROM rows WHERE error IS NOT NULL AND method IS NOT NULL GROUP BY ALL "
            f"ORDER BY n DESC, method, error LIMIT {MOST}"
        )
        diagnosis = table(
            "SELECT method, diagnosis, count(*) AS n FROM rows WHERE method IS NOT NULL AND diagnosis IS NOT NULL "
            "GROUP BY ALL ORDER BY method, n DESC, diagnosis"
        )
        seconds = dict[str, float]()
        for receipt in records.receipts:
            for name, value in receipt.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
        return cls(
            counts["images"],
            len(records),
            counts["known"],
            counts["hits"],
            {kind: kinds[kind] for kind in KINDS if kind in kinds},
            tuple((r["error"], r["n"]) for r in errors),
            tuple((r["method"], r["error"], r["n"]) for r in refused),
            tuple((r["method"], r["diagnosis"], r["n"]) for r in diagnosis),
            _classes(database),
            {(r["true_label"], r["decision"]): r["n"] for r in pairs},
            tuple(mean for name in records.manifest.get("metrics") or () for mean in _means(database, name)),
            seconds,
            len({receipt.host for receipt in records.receipts}),
        )

    def numbers(self) -> dict[str, float]:
        """Returns the numbers by name, as trackers take them."""
        numbers: dict[str, float] = {"images": self.images, "errors": self.kinds.get("error", 0)}
        if self.known:
            numbers["accuracy"] = self.correct / self.known
        for method in dict.fromkeys(method for method, _, _ in self.diagnosis):
            counts = {kind: n for name, kind, n in self.diagnosis if name == method}
            numbers[f"share of ok maps/{method}"] = counts.get("ok", 0) / sum(counts.values())
        return numbers | {f"{mean.metric}/{mean.method}": mean.mean for mean in self.metrics}


def most_suspicious(database: Database, count: int | None) -> list[Image]:
    """Returns so many images, the most suspicious first; None: all."""
    limit = "" if count is None else f" LIMIT {count}"
    rows = database.table(f"{IMAGES} SELECT image, sha256 FROM images ORDER BY suspicion DESC, image, sha256{limit}")
    return [(row["image"], row["sha256"]) for row in rows]


def rows_of_images(database: Database, images: Sequence[Image]) -> list[list[dict[str, Any]]]:
    """Returns all rows of every image, in the order of the images."""
    if not images:
        return []
    names = ", ".join(literal(name) for name, _ in images)
    order = ", ".join(map(quoted, ORDER))
    rows: dict[Image, list[dict[str, Any]]] = {image: [] for image in images}
    for row in database.table(f"SELECT * FROM rows WHERE image IN ({names}) ORDER BY {order}"):
        if (row["image"], row["sha256"]) in rows:
            rows[row["image"], row["sha256"]].append(row)
    return list(rows.values())


def _classes(database: Database) -> tuple[ClassCount, ...]:
    rows = database.table(
        f"{IMAGES}, maps AS (SELECT true_label, avg(CAST(diagnosis = 'ok' AS DOUBLE)) AS ok FROM rows "
        "WHERE method IS NOT NULL AND error IS NULL GROUP BY true_label) "
        "SELECT true_label, count(*) AS n, count(correct) AS known, count(*) FILTER (correct) AS hits, "
        "avg(probability) AS sure, any_value(ok) AS ok FROM images LEFT JOIN maps USING (true_label) "
        "WHERE true_label IS NOT NULL GROUP BY true_label "
        "ORDER BY hits / nullif(known, 0) NULLS LAST, n DESC, true_label"
    )
    nan = math.nan
    return tuple(
        ClassCount(
            r["true_label"],
            r["n"],
            r["known"],
            r["hits"],
            nan if r["sure"] is None else r["sure"],
            nan if r["ok"] is None else r["ok"],
        )
        for r in rows
    )


def _means(database: Database, metric: str) -> list[MetricMean]:
    name = quoted(metric)
    rows = database.table(
        f"SELECT method, count({name}) AS n, avg({name}) AS mean, stddev_samp({name}) AS deviation FROM rows "
        f"WHERE {name} IS NOT NULL GROUP BY method ORDER BY method"
    )
    means = []
    for row in rows:
        reach = math.nan if row["deviation"] is None else REACH * row["deviation"] / math.sqrt(row["n"])
        means.append(MetricMean(row["method"], metric, row["n"], row["mean"], row["mean"] - reach, row["mean"] + reach))
    return means

"""Records: what a run has written, read back piece by piece."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konkyo.errors import KonkyoError
from konkyo.runs.manifest import manifest_of
from konkyo.runs.query import LIMIT, SUSPICIOUS, Answer, Question, answer_to
from konkyo.runs.shards import ROW_GROUP, Receipt, shard_path, unpacked, whole_shards
from konkyo.utils.arrow import arrow

if TYPE_CHECKING:
    from konkyo.explanation.result import Explanation
    from konkyo.tasks.decision import Decision


@dataclass(frozen=True, eq=False)
class Records:
    """The records are a folder of `konkyo run`: its manifest, and the shards that are whole."""

    folder: Path
    manifest: Mapping[str, Any]
    receipts: tuple[Receipt, ...]

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> Records:
        """Returns the records of a folder. `verify`: every checksum is compared. KonkyoError: no such folder."""
        whole, _ = whole_shards(Path(folder), verify=verify)
        return cls(Path(folder), manifest_of(Path(folder)), tuple(whole[number] for number in sorted(whole)))

    @property
    def files(self) -> list[Path]:
        """Returns the shards' files, in order."""
        return [shard_path(self.folder, receipt.shard) for receipt in self.receipts]

    @property
    def images(self) -> int:
        """Returns how many images are done."""
        return sum(receipt.images for receipt in self.receipts)

    @property
    def errors(self) -> int:
        """Returns how many images could not be used."""
        return sum(receipt.errors for receipt in self.receipts)

    @property
    def refused(self) -> int:
        """Returns how many rows are of a method that has no place in the model."""
        return sum(receipt.refused for receipt in self.receipts)

    @property
    def complete(self) -> bool:
        """Tells whether all shards are there."""
        return len(self.receipts) == int(self.manifest["data"]["shards"])

    def __len__(self) -> int:
        return sum(receipt.rows for receipt in self.receipts)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yields the rows as dictionaries, in order, a few at a time in memory. `columns`: these alone."""
        for file in self.files:
            yield from rows_of_file(file, columns)

    def query(
        self,
        where: str | None = None,
        *,
        columns: Sequence[str] = (),
        sort: str = SUSPICIOUS,
        limit: int | None = LIMIT,
        sql: str | None = None,
    ) -> list[dict[str, Any]]:
        """Returns the rows that a query finds as dictionaries, the most suspicious first.

        `where`: a condition in SQL, as in "method = 'grad_cam' AND probability > 0.9"; names such as "ebpg@box" stand
        in double quotes. `columns`: these alone, `suspicion` and `why` among them. `sort`: a column, with "-" before
        it from the highest down. `limit`: so many rows; None: all. `sql`: a whole SELECT of the view `rows` instead.
        KonkyoError: SQL that is not understood, a column that is not known, no DuckDB, or no finished shard.
        """
        question = Question(where, tuple(columns) if not isinstance(columns, str) else columns, sort, limit, sql)
        with self.answer(question) as answer:
            return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]

    def answer(self, question: Question) -> AbstractContextManager[Answer]:
        """Returns a context with the answer to a question, whose rows are fetched a few at a time."""
        return answer_to(self.files, question, self.manifest.get("metrics") or (), self.receipts)

    def explanations(self) -> Iterator[Explanation]:
        """Returns an explanation for every image and method that has maps, in order; without pictures."""
        return explanations_of(self.rows(), self.manifest)

    def description(self) -> dict[str, Any]:
        """Returns the manifest and what is done, as plain JSON values."""
        seconds = [receipt.seconds for receipt in self.receipts]
        return {
            "folder": str(self.folder),
            "images": self.images,
            "rows": len(self),
            "errors": self.errors,
            "refused": self.refused,
            "complete": self.complete,
            "shards": len(self.receipts),
            "bytes": sum(receipt.bytes for receipt in self.receipts),
            "seconds": {name: round(sum(s.get(name, 0.0) for s in seconds), 3) for name in ("explain", "write")},
            "manifest": dict(self.manifest),
        }

    def summary(self) -> list[str]:
        """Returns what is there in sentences."""
        lines = [repr(self)]
        if self.errors:
            first = next(row for row in self.rows(("image", "method", "error")) if row["error"] and not row["method"])
            lines.append(f"{self.errors} images could not be used, the first: {first['image']}: {first['error']}")
        maps, missing = self._unmeasured()
        lines += [f"{name} could not be measured of {count} of {maps} maps" for name, count in missing.items()]
        if self.refused:
            lines.append(f"{self.refused} rows are of a method that does not apply to the image")
        return lines

    def _unmeasured(self) -> tuple[int, Counter[str]]:
        """Returns how many maps there are, and of how many of them each metric has no value."""
        metrics, maps, missing = list(self.manifest.get("metrics") or ()), 0, Counter[str]()
        for row in self.rows(["shape", *metrics]) if metrics else ():
            if row["shape"] is not None:
                maps += 1
                missing.update(name for name in metrics if row[name] is None)
        return maps, missing

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{len(self.receipts)} of {self.manifest['data']['shards']} shards"
        return (
            f"Records of {self.manifest['model']} on {self.manifest['data']['source']}: {self.images} images, "
            f"{len(self)} rows, {self.errors} errors, {state} ({self.folder})"
        )


def rows_of_file(file: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of a shard as dictionaries, a few at a time in memory. KonkyoError: no such column."""
    with arrow().parquet.ParquetFile(file) as table:
        known = table.schema_arrow.names
        if missing := [name for name in columns or () if name not in known]:
            raise KonkyoError(f"shards have no column {', '.join(missing)}; there are {', '.join(known)}")
        for group in table.iter_batches(batch_size=ROW_GROUP, columns=None if columns is None else list(columns)):
            yield from group.to_pylist()


def explanations_of(rows: Iterable[Mapping[str, Any]], manifest: Mapping[str, Any]) -> Iterator[Explanation]:
    """Yields an explanation for every image and method that has maps, of rows in their order."""
    part: list[Mapping[str, Any]] = []
    for row in rows:
        if part and (row["row"] == 0 or row["method"] != part[0]["method"]):
            yield explanation_of(part, manifest)
            part = []
        if row["map"] is not None:
            part.append(row)
    if part:
        yield explanation_of(part, manifest)


def explanation_of(rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> Explanation:
    """Returns the rows of one image and method as an explanation, its maps with the precision of float16."""
    import torch  # a query waits for none of these

    from konkyo.explanation.diagnosis import Diagnosis
    from konkyo.explanation.files import target_from_json
    from konkyo.explanation.result import Explanation

    first = rows[0]
    maps = torch.stack([torch.from_numpy(unpacked(r["map"], r["shape"], r["scale"])) for r in rows])
    boxes = [r["box"] for r in rows]
    regions = [r["region"] for r in rows]
    nan = float("nan")
    return Explanation(
        signed=maps,
        rectified=bool(first["rectified"]),
        scores=torch.tensor([nan if r["score"] is None else r["score"] for r in rows]),
        image_index=torch.zeros(len(rows), dtype=torch.int64),
        targets=tuple(target_from_json(json.loads(r["target"])) for r in rows),
        labels=tuple(r["label"] for r in rows),
        method=str(first["method"]),
        layer=str(first["layer"]),
        model=str(manifest.get("model", "")),
        options=dict(manifest.get("options") or {}),
        seed=int(manifest.get("seed", 0)),
        diagnosis=tuple(Diagnosis(r["diagnosis"], r["message"] or "") for r in rows),
        decisions=tuple(_decision_of(r) for r in rows),
        questions=tuple(r["question"] for r in rows) if first["question"] is not None else (),
        boxes=None if None in boxes else torch.tensor(boxes),
        regions=None if None in regions else torch.tensor(regions),
        names=(first["image"],) * len(rows),
        true_labels=(first["true_label"],) * len(rows) if first["true_label"] is not None else (),
    )


def _decision_of(row: Mapping[str, Any]) -> Decision | None:
    from konkyo.tasks.decision import Decision

    if row["decision"] is None:
        return None
    return Decision(
        row["decision_index"],
        row["decision"],
        row["probability"],
        row["rank"],
        row["asked_probability"],
        row["exclusive"],
    )

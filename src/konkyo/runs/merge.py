"""merge(): runs of one job over different data, as of machines that are no cluster, become one run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from konkyo.data.pieces import listing
from konkyo.errors import KonkyoError
from konkyo.runs.manifest import FREE, MANIFEST, MERGED
from konkyo.runs.records import Records, rows_of_file
from konkyo.runs.shards import (
    Receipt,
    digest_of,
    shard_path,
    whole_shards,
    write_receipt,
    write_shard,
)
from konkyo.utils.files import plain, whole_folder, write_text
from konkyo.utils.ledger import differences, held

Key = bytes
"""What tells an image from others: a digest of its name and of its pixels."""


def merge(folders: Sequence[str | Path], out: str | Path) -> Records:
    """Joins finished runs of the same job over different data into the new folder `out`. -> its records

    Shards are linked where the file system can, else copied, and checked by their checksums. An image (a name and its
    pixels) that several runs hold counts once, if they say the same of it. `out` is there only when it is whole; the
    runs stay as they are. `konkyo run` does not go on in it.

    KonkyoError: fewer than two runs, one that is not finished or is damaged, runs that differ in more than their data,
    an image of which two runs say different things, or an `out` that is there already.
    """
    if isinstance(folders, (str, Path)) or len(folders) < 2:
        raise KonkyoError(f"merge takes two folders of `konkyo run` or more; got {folders!r}")
    paths, target = [Path(folder) for folder in folders], Path(out)
    if len({path.resolve() for path in paths}) < len(paths):
        raise KonkyoError(f"a folder is named twice: {', '.join(map(str, paths))}")
    runs = [_finished(path) for path in paths]
    _require_one_job(runs)
    with held(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise KonkyoError(f"{target} is there already; merge into a new folder")
        with whole_folder(target, "merging") as under_way:
            _write(runs, under_way)
    return Records.open(target)


def _finished(folder: Path) -> Records:
    """Returns the records of a folder. KonkyoError: shards are missing or damaged."""
    records = Records.open(folder)
    _, broken = whole_shards(folder)
    if broken or not records.complete:
        why = f", and {broken[0]}" if broken else ""
        raise KonkyoError(
            f"{folder} has {len(records.receipts)} of {records.manifest['data']['shards']} shards{why}. Finish it with "
            "`konkyo run`, then merge"
        )
    return records


def _require_one_job(runs: Sequence[Records]) -> None:
    """KonkyoError: manifests that differ in more than the data."""
    first, *others = [{name: value for name, value in run.manifest.items() if name != "data"} for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        if differ := differences(first, other, FREE):
            words = ", ".join(differ).replace(" there, ", " in the first, ").replace(" now)", " in the other)")
            raise KonkyoError(
                f"{runs[0].folder} and {run.folder} are of different jobs: {words}. Only the data may differ"
            )


def _write(runs: Sequence[Records], folder: Path) -> None:
    shared, metrics, number = _Shared.of(runs), runs[0].manifest.get("metrics") or (), 0
    for run in runs:
        for receipt in run.receipts:
            file = shard_path(run.folder, receipt.shard)
            if shared.keys:
                rows = list(shared.rows(file))
                if not rows:
                    continue
                if len(rows) < receipt.rows:
                    path = write_shard(folder, number, rows, metrics)
                    write_receipt(folder, _receipt_of(rows, replace(receipt, shard=number), path))
                    number += 1
                    continue
            _place(file, shard_path(folder, number), receipt)
            write_receipt(folder, replace(receipt, shard=number))
            number += 1
    manifest = {**runs[0].manifest, "data": _data_of(runs, number, folder)}
    write_text(folder / MANIFEST, json.dumps(plain(manifest), indent=1) + "\n")


def _place(file: Path, to: Path, receipt: Receipt) -> None:
    """Links or copies a shard. KonkyoError: the copy holds other bytes than the receipt says."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, to)
    if digest_of(to) != receipt.sha256:
        raise KonkyoError(f"{file} changed while it was placed; merge again when nothing writes there")


def _receipt_of(rows: Sequence[Mapping[str, Any]], receipt: Receipt, path: Path) -> Receipt:
    """Returns the receipt of a shard from which images were taken out."""
    return replace(
        receipt,
        bytes=path.stat().st_size,
        sha256=digest_of(path),
        images=sum(1 for _ in _images(rows)),
        rows=len(rows),
        errors=sum(row["error"] is not None and row["method"] is None for row in rows),
        refused=sum(row["error"] is not None and row["method"] is not None for row in rows),
    )


def _data_of(runs: Sequence[Records], shards: int, folder: Path) -> dict[str, Any]:
    """Returns the manifest's words about the data of all runs."""
    parts = [part for run in runs for part in run.manifest["data"].get(MERGED) or [run.manifest["data"]]]
    whole, _ = whole_shards(folder, verify=False)
    return {
        "source": " + ".join(str(part["source"]) for part in parts),
        "images": sum(receipt.images for receipt in whole.values()),
        "listing": listing([str(part["listing"]) for part in parts]),
        "shards": shards,
        "shard_size": max(int(part["shard_size"]) for part in parts),
        MERGED: parts,
    }


# --- images that several runs hold ------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Shared:
    """It knows the images that several runs hold, and which of them have been placed."""

    keys: dict[Key, str | None]
    """With what was said of them where they came first; None: they did not come yet."""
    homes: dict[Key, Path] = field(default_factory=dict)
    """The folder in which they came first."""

    @classmethod
    def of(cls, runs: Sequence[Records]) -> _Shared:
        """Returns the images of several runs; a digest of each image is held while it is made."""
        homes, shared = dict[Key, int](), dict[Key, str | None]()
        for number, run in enumerate(runs):
            for row in run.rows(["image", "sha256", "row"]):
                if row["sha256"] is not None and homes.setdefault(key := _key(row), number) != number:
                    shared[key] = None
        return cls(shared)

    def rows(self, file: Path) -> Iterator[dict[str, Any]]:
        """Yields the rows of a shard but those of images that came in an earlier run. KonkyoError: other values."""
        folder = file.parent.parent
        for key, rows in _images(rows_of_file(file)):
            if key in self.keys and rows[0]["sha256"] is not None:
                content, before = _content(rows), self.keys[key]
                if before is None:
                    self.keys[key], self.homes[key] = content, folder
                elif self.homes[key] != folder:
                    if content != before:
                        raise KonkyoError(
                            f"{self.homes[key]} and {folder} say different things of the image {rows[0]['image']}; "
                            "leave it out of one of them"
                        )
                    continue
            yield from rows


def _key(row: Mapping[str, Any]) -> Key:
    name = row["image"].encode("utf-8", "surrogateescape")
    return hashlib.blake2b(name + b"\0" + (row["sha256"] or "").encode(), digest_size=16).digest()


def _images(rows: Any) -> Iterator[tuple[Key, list[dict[str, Any]]]]:
    """Yields the rows of one image after the other, which stand together."""
    for key, group in groupby(rows, _key):
        yield key, list(group)


def _content(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a digest of all that rows say."""
    return hashlib.sha256(repr([sorted(row.items()) for row in rows]).encode()).hexdigest()

"""Shards: tables of Parquet with a row per image, method and target, and a receipt beside each, which says it is whole.

A shard is a function of the job and of its piece of the data alone: the same bytes whoever made it. What differs from
run to run, as seconds, stands in the receipt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from konkyo.errors import KonkyoError
from konkyo.utils.arrow import arrow
from konkyo.utils.files import read_json, replacing, write_text

FOLDER = "shards"
NOTHING = "nothing"
"""The diagnosis of an image in which the model found nothing to explain."""
ROW_GROUP = 64
"""Rows that are read together at least."""


@dataclass(frozen=True)
class Receipt:
    """A receipt says what a shard holds. A shard without one, or with other bytes, does not count."""

    shard: int
    piece: str
    """What the piece of the data is called."""
    bytes: int
    sha256: str
    images: int
    rows: int
    errors: int
    """Images that could not be used."""
    refused: int = 0
    """Rows of a method that has no place in the model for an image."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What reading, explaining, measuring and writing took."""
    host: str = ""
    tries: int = 1


def schema_of(metrics: Sequence[str]) -> Any:
    """Returns the columns of a shard, in order; those of the metrics come last."""
    pa = arrow()
    numbers = pa.list_(pa.float32())
    columns = [
        ("image", pa.string()),
        ("sha256", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("true_label", pa.string()),
        ("question", pa.string()),
        ("method", pa.string()),
        ("row", pa.int32()),
        ("layer", pa.string()),
        ("label", pa.string()),
        ("target", pa.string()),
        ("score", pa.float32()),
        ("decision", pa.string()),
        ("decision_index", pa.int32()),
        ("probability", pa.float32()),
        ("asked_probability", pa.float32()),
        ("rank", pa.int32()),
        ("exclusive", pa.bool_()),
        ("correct", pa.bool_()),
        ("box", numbers),
        ("region", numbers),
        ("map", pa.binary()),
        ("shape", pa.list_(pa.int32())),
        ("scale", pa.float32()),
        ("rectified", pa.bool_()),
        ("diagnosis", pa.string()),
        ("message", pa.string()),
        ("notes", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
    return pa.schema([*columns, *((name, pa.float32()) for name in metrics)])


def packed(map_: NDArray[np.float32]) -> tuple[bytes, list[int], float]:
    """Returns a map as (float16 bytes, shape, scale): the values are those of the bytes times the scale.

    The scale is the largest absolute value, so that maps of tiny gradients do not become 0 in float16. What is not
    finite stays so.

    >>> packed(np.array([[2e-9, 1e-9]], dtype=np.float32))[1:]
    ([1, 2], 1.999999943436137e-09)
    """
    finite = np.abs(map_[np.isfinite(map_)])
    scale = float(finite.max(initial=0)) or 1.0
    return (map_ / np.float32(scale)).astype("<f2").tobytes(), list(map_.shape), scale


def unpacked(data: bytes, shape: Sequence[int], scale: float) -> NDArray[np.float32]:
    """Returns the map that `packed` stored, float32."""
    values: NDArray[np.float32] = np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
    values *= np.float32(scale)
    return values


def shard_path(folder: Path, number: int) -> Path:
    """Returns the file of a shard."""
    return folder / FOLDER / f"shard-{number:06d}.parquet"


def write_shard(folder: Path, number: int, rows: Iterable[Mapping[str, Any]], metrics: Sequence[str]) -> Path:
    """Writes the rows as a shard under a name of its own until it is whole. -> the file"""
    pa = arrow()
    table = pa.Table.from_pylist([_writable(row) for row in rows], schema=schema_of(metrics))
    path = shard_path(folder, number)
    with replacing(path) as temporary:
        pa.parquet.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP, write_statistics=True)
    return path


def _writable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row whose texts can be written."""
    return {
        name: text_of(value)
        if isinstance(value, str)
        else [text_of(item) for item in value]
        if name == "notes"
        else value
        for name, value in row.items()
    }


def text_of(text: str) -> str:
    """Returns text that can be written; a byte of a file's name that is no text is shown as in "\\xff"."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def clean(folder: Path) -> None:
    """Removes what a killed process left half written; nobody else may write into the folder."""
    for path in (folder / FOLDER).glob(".shard-*"):
        with suppress(OSError):
            path.unlink()


def write_receipt(folder: Path, receipt: Receipt) -> None:
    """Writes a receipt beside its shard: from now on the shard counts."""
    write_text(shard_path(folder, receipt.shard).with_suffix(".json"), json.dumps(asdict(receipt), indent=1) + "\n")


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def receipt_of(path: Path) -> Receipt:
    """Returns a receipt. KonkyoError: it cannot be read."""
    values = read_json(path)
    names = {f.name for f in fields(Receipt)}
    if not isinstance(values, dict) or not {"shard", "bytes", "sha256"} <= values.keys() <= names:
        raise KonkyoError(f"{path} is no receipt of a shard")
    return Receipt(**values)


def is_whole(folder: Path, receipt: Receipt) -> bool:
    """Tells whether the shard of a receipt holds the bytes that were written."""
    path = shard_path(folder, receipt.shard)
    return path.is_file() and path.stat().st_size == receipt.bytes and digest_of(path) == receipt.sha256


def whole_shards(folder: Path, *, verify: bool = True) -> tuple[dict[int, Receipt], list[str]]:
    """Returns the receipts of shards that are whole, by number, and a sentence about each that is not.

    `verify`: reads every shard and compares its checksum; else its size alone is looked at.
    """
    whole, broken = dict[int, Receipt](), list[str]()
    for path in sorted((folder / FOLDER).glob("shard-*.json")):
        try:
            receipt = receipt_of(path)
        except KonkyoError as error:
            broken.append(str(error))
            continue
        shard = shard_path(folder, receipt.shard)
        if not shard.is_file():
            broken.append(f"{shard.name} is missing")
        elif shard.stat().st_size != receipt.bytes:
            broken.append(f"{shard.name} has {shard.stat().st_size} bytes, and had {receipt.bytes}")
        elif verify and digest_of(shard) != receipt.sha256:
            broken.append(f"{shard.name} holds other bytes than those that were written")
        else:
            whole[receipt.shard] = receipt
    return whole, broken

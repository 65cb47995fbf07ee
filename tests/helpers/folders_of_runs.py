"""Folders as `konkyo run` leaves them, written from rows that tests make up."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from konkyo.runs.manifest import FORM, MANIFEST
from konkyo.runs.shards import Receipt, digest_of, packed, write_receipt, write_shard
from konkyo.utils.files import write_text

CLASSES = ("cat", "dog", "boat")
METRICS = ("ebpg@box",)


def map_row(image: str, *, seed: int = 0, **values: Any) -> dict[str, Any]:
    """Returns a row with a map of 4 x 4 cells that the seed decides."""
    data, shape, scale = packed(np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32))
    label = values.get("label", "cat")
    return {
        "image": image,
        "sha256": f"{image}-{seed}",
        "height": 40,
        "width": 60,
        "method": "grad_cam",
        "row": 0,
        "layer": "body",
        "label": label,
        "target": json.dumps({"index": CLASSES.index(label), "score": "logit"}),
        "score": 1.5,
        "decision": label,
        "decision_index": CLASSES.index(label),
        "probability": 0.75,
        "asked_probability": 0.75,
        "rank": 1,
        "exclusive": True,
        "map": data,
        "shape": shape,
        "scale": scale,
        "rectified": True,
        "diagnosis": "ok",
        "notes": [],
        **values,
    }


def error_row(image: str, error: str = "it is cut off") -> dict[str, Any]:
    return {"image": image, "row": 0, "error": error, "notes": []}


def nothing_row(image: str) -> dict[str, Any]:
    return {"image": image, "sha256": image, "height": 40, "width": 60, "row": 0, "diagnosis": "nothing", "notes": []}


def many_rows(count: int, seed: int = 0, before: str = "image") -> list[dict[str, Any]]:
    """Returns rows of `count` images of every kind: errors, wrong and right ones, doubtful maps, nothing found."""
    rng = random.Random(seed)
    rows = []
    for k in range(count):
        name = f"{before}-{k:03d}.png"
        kind = rng.choice(["error", "nothing", "map", "map", "map", "map"])
        if kind == "error":
            rows.append(error_row(name))
        elif kind == "nothing":
            rows.append(nothing_row(name))
        else:
            truth, label = rng.choice([*CLASSES, None]), rng.choice(CLASSES)
            values = {
                "label": label,
                "true_label": truth,
                "correct": None if truth is None else truth == label,
                "probability": rng.choice([None, 0.25, 0.5, 0.75, rng.random()]),
                "diagnosis": rng.choice(["ok", "ok", "flat"]),
                "ebpg@box": rng.choice([None, rng.random()]),
            }
            rows += [map_row(name, seed=k, method=method, **values) for method in ("grad_cam", "layer_cam")]
    return rows


def divided(rows: Sequence[dict[str, Any]], images: int) -> list[list[dict[str, Any]]]:
    """Returns the rows of so many images after the other, as the shards of a run hold them."""
    names = {name: k for k, name in enumerate(dict.fromkeys(row["image"] for row in rows))}
    return [list(group) for _, group in groupby(rows, lambda row: names[row["image"]] // images)]


def run_folder(
    folder: Path,
    shards: Sequence[Sequence[Mapping[str, Any]]],
    *,
    metrics: Sequence[str] = METRICS,
    expected: int | None = None,
    **settings: Any,
) -> Path:
    """Writes a run of these rows, a list per shard, into the folder. `expected`: so many shards belong to it."""
    images = 0
    for number, rows in enumerate(shards):
        path = write_shard(folder, number, rows, metrics)
        names = list(dict.fromkeys(row["image"] for row in rows))
        errors = sum(row.get("error") is not None for row in rows)
        receipt = Receipt(
            number,
            f"{images}-",
            path.stat().st_size,
            digest_of(path),
            len(names),
            len(rows),
            errors,
            seconds={"all": 2.0},
        )
        write_receipt(folder, receipt)
        images += len(names)
    data = {
        "source": settings.pop("source", "folder:photos"),
        "images": images,
        "listing": settings.pop("listing", f"{folder.name}"),
        "shards": len(shards) if expected is None else expected,
        "shard_size": 8,
    }
    manifest = {
        "run": FORM,
        "model": "toy",
        "weights": "0123",
        "preprocess": "None",
        "classes": list(CLASSES),
        "data": data,
        "methods": ["grad_cam", "layer_cam"],
        "metrics": list(metrics),
        "options": {},
        "seed": 0,
        "batch": 4,
        "versions": {"konkyo": "0.1.0", "torch": "2"},
        **settings,
    }
    write_text(folder / MANIFEST, json.dumps(manifest))
    return folder

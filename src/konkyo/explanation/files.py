"""Explanations on disk: tensors and a description, in a file that holds no code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from konkyo.data.axes import coordinates_of
from konkyo.engine.path import PathTrace
from konkyo.errors import KonkyoError
from konkyo.explanation.diagnosis import Diagnosis
from konkyo.explanation.rows import TENSORS
from konkyo.explanation.stored import require_file, require_fitting
from konkyo.targets.base import Target
from konkyo.tasks import TASKS
from konkyo.tasks.decision import Decision
from konkyo.tasks.responses import Passage
from konkyo.utils.files import parse_json, replacing

if TYPE_CHECKING:
    from konkyo.explanation.result import Explanation


_SMALL = 16_384
"""Arrays of fewer bytes are not compressed."""
_NOTE = "notes."
"""So the names of tensors begin that are notes."""


def description(result: Explanation) -> dict[str, Any]:
    """Returns everything but the tensors, as plain JSON values."""
    return {
        "konkyo": 1,
        "model": result.model,
        "method": result.method,
        "layer": result.layer,
        "rectified": result.rectified,
        "options": {k: v if isinstance(v, (int, float, str, bool)) else repr(v) for k, v in result.options.items()},
        "seed": result.seed,
        "labels": list(result.labels),
        "targets": [target_to_json(t) for t in result.targets],
        "diagnosis": [{"kind": d.kind, "message": d.message} for d in result.diagnosis],
        "questions": list(result.questions),
        "decisions": [None if d is None else asdict(d) for d in result.decisions],
        "names": list(result.names),
        "true_labels": list(result.true_labels),
        "passages": [None if p is None else asdict(p) for p in result.passages],
        "assumptions": list(result.assumptions),
        "places": list(result.places),
        "coordinates": [asdict(where) for where in result.coordinates],
    }


def save(result: Explanation, path: Path) -> Path:
    """Writes tensors and description to the file; `Explanation.save` says more."""
    tensors = {name: getattr(result, name) for name in TENSORS}
    if result.path is not None:
        tensors |= {f"path.{f.name}": getattr(result.path, f.name) for f in fields(PathTrace)}
    tensors |= {f"{_NOTE}{name}": noted for name, noted in result.notes.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None}
    text = json.dumps(description(result))
    writers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": lambda to: save_file(tensors, to, metadata={"konkyo": text}),
        ".npz": lambda to: _save_npz(to, tensors, text),
    }
    if path.suffix not in writers:
        raise KonkyoError(
            f"explanations are saved as {' or '.join(writers)}, and their sheet as .png, .jpg or .webp; "
            f"got {path.name!r}"
        )
    try:
        with replacing(path) as temporary:
            writers[path.suffix](temporary)
    except SafetensorError as error:
        raise KonkyoError(f"{path} cannot be written: {error}") from error
    return path


def load(kind: type[Explanation], path: Path) -> Explanation:
    """Reads what `save` wrote; `Explanation.load` says more."""
    try:
        require_file(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                text = (file.metadata() or {})["konkyo"]
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                tensors = {n: torch.from_numpy(archive[n]) for n in archive.files if n != "konkyo"}
                text = str(archive["konkyo"])
        values = parse_json(text)
        require_fitting(tensors, values)
        trace = {f.name: tensors.pop(f"path.{f.name}") for f in fields(PathTrace) if f"path.{f.name}" in tensors}
        values["notes"] = {n.removeprefix(_NOTE): tensors.pop(n) for n in list(tensors) if n.startswith(_NOTE)}
        values["path"] = PathTrace(**trace) if trace else None
        values["targets"] = tuple(target_from_json(t) for t in values["targets"])
        values["questions"] = tuple(values.get("questions", ()))
        values["diagnosis"] = tuple(Diagnosis(**d) for d in values["diagnosis"])
        values["decisions"] = tuple(None if d is None else Decision(**d) for d in values.get("decisions", ()))
        values["passages"] = tuple(None if p is None else Passage.restored(p) for p in values.get("passages", ()))
        values["coordinates"] = tuple(coordinates_of(where) for where in values.get("coordinates", ()))
        values |= {
            name: tuple(values.get(name, ())) for name in ("labels", "names", "true_labels", "assumptions", "places")
        }
        known = {f.name for f in fields(kind)}
        return kind(**{k: v for k, v in values.items() if k in known}, **tensors)
    except Exception as error:  # damaged archives fail in every possible way
        raise KonkyoError(f"{path} is no saved explanation: {error}") from error


def _save_npz(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    if sum(array.nbytes for array in arrays.values()) < _SMALL:  # compressing would take longer than writing
        archive = io.BytesIO()
        np.savez(archive, konkyo=np.array(text), **arrays)
        path.write_bytes(archive.getvalue())
        return
    with path.open("wb") as file:  # a file object, so that numpy keeps the temporary name
        np.savez_compressed(file, konkyo=np.array(text), **arrays)


def target_to_json(target: Target | str) -> Any:
    """Returns a target as its task saves it; of one that no task saves, the name."""
    if isinstance(target, str):
        return target
    saved = (kind.saved(target) for kind in TASKS.values())
    return next((values for values in saved if values is not None), getattr(target, "__name__", repr(target)))


def target_from_json(value: Any) -> Target | str:
    """Returns the target that `target_to_json` saved. KonkyoError: no task knows it."""
    if not isinstance(value, dict):
        return str(value)
    targets = (kind.restored(value) for kind in TASKS.values())
    target = next((target for target in targets if target is not None), None)
    if target is None:
        raise KonkyoError(f"no task knows a target with {', '.join(value)}")
    return target

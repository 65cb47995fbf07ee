"""What the file of an explanation may hold: parts that fit each other. Each check is a ValueError in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from konkyo.engine.path import PathTrace
from konkyo.explanation.diagnosis import Kind

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MOST_IMAGES = 2**31
_EDGE = 1e-4
"""Shares of a picture may be so far outside of it by rounding."""


def require_file(path: Path) -> None:
    """Checks that something can be read to its end here. ValueError: no regular file."""
    if not path.is_file():
        raise ValueError("it is no regular file" if path.exists() else "there is no such file")


def require_fitting(tensors: Mapping[str, Tensor], values: Any) -> None:
    """Checks the tensors and the description of a file against each other. ValueError: a part that does not fit."""
    if not isinstance(values, dict):
        raise ValueError(f"its description is a JSON object; got {type(values).__name__}")
    if values.get("konkyo") != 1 or isinstance(values["konkyo"], bool):
        raise ValueError(f"its form is 1; got {values.get('konkyo')!r}")
    rows = _require_maps(tensors)
    _require_floats(tensors, "scores", (rows,))
    index = tensors.get("image_index")
    if index is None or index.dtype not in (torch.int64, torch.int32) or index.shape != (rows,):
        raise ValueError(f"image_index holds {rows} whole numbers; got {_form(index)}")
    if rows and not 0 <= int(index.min()) <= int(index.max()) < _MOST_IMAGES:
        raise ValueError(f"image_index counts images from 0; got {int(index.min())}..{int(index.max())}")
    if "boxes" in tensors:
        _require_floats(tensors, "boxes", (rows, 4))
        if tensors["boxes"].isinf().any():
            raise ValueError("boxes are xyxy in pixels, NaN where there is none; one is infinite")
    if "regions" in tensors:
        _require_regions(tensors, rows)
    for name in tensors:
        if name.startswith("notes."):
            _require_floats(tensors, name, (rows,))
    _require_path(tensors, rows)
    _require_description(values, rows)


def _form(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"


def _require_floats(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype not in _FLOATS or tuple(tensor.shape) != shape:
        raise ValueError(f"{name} are floats of shape {shape}; got {_form(tensor)}")


def _require_maps(tensors: Mapping[str, Tensor]) -> int:
    """Returns the number of rows."""
    maps = tensors.get("signed")
    if maps is None or maps.dtype not in _FLOATS or not 2 <= maps.ndim <= 4 or not all(maps.shape[1:]):
        raise ValueError(f"signed are floats (R, *grid), a grid of 1 to 3 axes with a cell or more; got {_form(maps)}")
    return len(maps)


def _require_regions(tensors: Mapping[str, Tensor], rows: int) -> None:
    _require_floats(tensors, "regions", (rows, 4))
    left, top, right, bottom = tensors["regions"].double().unbind(1)
    inside = (left >= -_EDGE) & (top >= -_EDGE) & (right <= 1 + _EDGE) & (bottom <= 1 + _EDGE)
    if not (inside & (left < right) & (top < bottom)).all():  # NaN fails every comparison
        raise ValueError("regions are xyxy as shares of a map, left < right and top < bottom, from 0 to 1")


def _require_path(tensors: Mapping[str, Tensor], rows: int) -> None:
    parts = {f"path.{f.name}" for f in fields(PathTrace)}
    if not parts & tensors.keys():
        return
    if missing := sorted(parts - tensors.keys()):
        raise ValueError(f"of a path {', '.join(missing)} are missing")
    alphas = tensors["path.alphas"]
    nodes = alphas.shape[1] if alphas.ndim == 2 else 0
    if not nodes:
        raise ValueError(f"path.alphas are floats (R, M) with M >= 1; got {_form(alphas)}")
    for name, shape in {
        "alphas": (rows, nodes),
        "priorities": (rows, nodes - 1),
        "scores": (rows, nodes),
        "boxes": (rows, nodes, 4),
    }.items():
        _require_floats(tensors, f"path.{name}", shape)


def _require_description(values: Mapping[str, Any], rows: int) -> None:
    for name in ("method", "layer", "model"):
        if not isinstance(values.get(name), str):
            raise ValueError(f"{name} is a string; got {values.get(name)!r}")
    if not isinstance(values.get("rectified"), bool):
        raise ValueError(f"rectified is true or false; got {values.get('rectified')!r}")
    if not _is_whole(values.get("seed")):
        raise ValueError(f"seed is a whole number; got {values.get('seed')!r}")
    if not isinstance(values.get("options"), dict):
        raise ValueError(f"options is an object; got {values.get('options')!r}")
    for name in ("labels", "assumptions"):
        listed = values.get(name, [])
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise ValueError(f"{name} is a list of strings; got {str(listed)[:80]}")
    for name in ("labels", "targets"):
        if not isinstance(values.get(name), list) or len(values[name]) != rows:
            came = values.get(name)
            raise ValueError(f"{name} has {rows} entries; got {len(came) if isinstance(came, list) else came!r}")
    for target in values["targets"]:
        _require_target(target)
    judged = values.get("diagnosis")
    if not isinstance(judged, list) or len(judged) not in (0, rows):
        raise ValueError(f"diagnosis has {rows} entries; got {len(judged) if isinstance(judged, list) else judged!r}")
    for entry in judged:
        if not isinstance(entry, dict) or entry.get("kind") not in get_args(Kind):
            raise ValueError(f"a diagnosis is of a kind of {', '.join(get_args(Kind))}; got {str(entry)[:80]}")
        if not isinstance(entry.get("message", ""), str):
            raise ValueError(f"a diagnosis has a message in words; got {entry['message']!r}")


def _require_target(value: Any) -> None:
    """Checks a target: a name, or an object of names, finite numbers and lists of them."""
    if isinstance(value, str):
        return
    if not isinstance(value, dict):
        raise ValueError(f"a target is a string or an object; got {str(value)[:80]}")
    for name, item in value.items():
        if name in ("index", "label") and not (_is_whole(item) and item >= 0):
            raise ValueError(f"a target's {name} is a whole number from 0; got {item!r}")
        if name == "box" and not (isinstance(item, list) and len(item) == 4):
            raise ValueError(f"a target's box is four numbers; got {item!r}")
        if any(isinstance(n, float) and not math.isfinite(n) for n in (item if isinstance(item, list) else [item])):
            raise ValueError(f"a target's {name} is finite; got {str(item)[:80]}")
        if name in ("box", "likeness") and not (isinstance(item, list) and all(map(_is_number, item))):
            raise ValueError(f"a target's {name} is a list of numbers; got {str(item)[:80]}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)

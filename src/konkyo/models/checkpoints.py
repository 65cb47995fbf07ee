"""Weights from files that are not trusted: safetensors, or .pth read with `weights_only=True`."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from konkyo.errors import KonkyoError, first_line
from konkyo.utils.files import read_json

_WRAPPERS = ("module.", "_orig_mod.", "model.")
_NESTS = ("state_dict", "model_state_dict", "model", "model_ema", "ema", "net")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a weights file by name, prefixes of wrappers (`module.`, `_orig_mod.`) taken off.

    KonkyoError: a missing or broken file, or a pickle that holds more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise KonkyoError(f"no weights file {str(path)!r}")
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise KonkyoError(f"{path.name} is not a readable safetensors file: {error}") from error
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols that are read all the same
                state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise KonkyoError(
                f"{path.name} is no file of plain weights (it holds Python objects, or is broken), and such files can "
                "run code: save the state dict alone, best as safetensors"
            ) from error
        except Exception as error:  # damaged files fail in every possible way
            raise KonkyoError(f"{path.name} cannot be read as PyTorch weights: {first_line(error)}") from error
    for nest in _NESTS:
        if isinstance(state, Mapping) and isinstance(state.get(nest), Mapping):
            state = state[nest]
            break
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise KonkyoError(f"{path.name} holds no named tensors")
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in tensors)), None):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def require_inside(folder: Path) -> None:
    """Checks the indices of shards in a folder. KonkyoError: an index that names a file outside of the folder.

    In the cache of the hub, where files are links, they stay inside of their model's folder.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    for index in sorted(folder.glob("*.index.json")):
        values = read_json(index)
        names = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise KonkyoError(f"{index} is no index of weights: an object weight_map of file names was expected")
        for name in sorted(set(names.values())):
            if "\0" in name or Path(name).is_absolute() or not (folder / name).resolve().is_relative_to(root):
                raise KonkyoError(
                    f"{index} names {name!r}, which lies outside of its folder; weights are read from there only"
                )


def build_with(path: str | Path, build: Callable[[int | None], nn.Module]) -> tuple[nn.Module, bool]:
    """Returns (the network with the weights of a file, whether its classes are the usual ones).

    `build(classes)` makes the network, with its usual number of classes for None; a file with another number (a
    fine-tuned model) builds it with that. KonkyoError names what does not fit.
    """
    state = read_weights(path)
    module = build(None)
    expected = module.state_dict()
    if prefix := next((w for w in _WRAPPERS if all(name.startswith(w) for name in expected)), ""):
        state = {prefix + name: tensor for name, tensor in state.items()}  # no wrapper, but the network's own name
    counts = {state[k].shape[0] for k in expected if k in state and _only_first_differs(state[k], expected[k])}
    usual = len(counts) != 1
    if not usual:
        module = build(counts.pop())
        expected = module.state_dict()
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in expected]
    shapes = [
        f"{k} {tuple(state[k].shape)} for {tuple(expected[k].shape)}" for k in expected if _misfit(k, state, expected)
    ]
    if missing or shapes:
        parts = [("missing", missing), ("unexpected", extra), ("of another shape", shapes)]
        summary = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])} ...)" for what, names in parts if names)
        raise KonkyoError(f"the weights in {Path(path).name} do not fit {type(module).__name__}: {summary}")
    module.load_state_dict({k: v for k, v in state.items() if k in expected}, strict=False)
    return module, usual


def _only_first_differs(new: Tensor, expected: Tensor) -> bool:
    return new.ndim == expected.ndim > 0 and new.shape[0] != expected.shape[0] and new.shape[1:] == expected.shape[1:]


def _misfit(name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return name in state and state[name].shape != expected[name].shape

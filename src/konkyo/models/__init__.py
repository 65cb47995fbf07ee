"""Models by name: one adapter file per library, found by the part of the name before the slash."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from torch import nn

from konkyo.data.frame import Frame
from konkyo.errors import KonkyoError, first_line, unknown
from konkyo.models.base import ADAPTERS, Model, as_model
from konkyo.models.preprocess import Preprocess
from konkyo.models.prompts import Texts

__all__ = ["Frame", "Model", "Preprocess", "as_model", "load"]


def load(
    name: str,
    *,
    weights: str | Path | None = "default",
    device: str | None = None,
    texts: Sequence[str] = (),
    template: str | Sequence[str] = "{}",
) -> Model:
    """Returns a model by name, in eval mode, with its preprocessing and class names.

    `name`: "konkyo/scenes-classifier" (ships with the library), "torchvision/NAME", "timm/NAME", "hf/ID" or
    "hf/FOLDER" (transformers), "FILE.onnx" (a black box), "trained/FOLDER" (what `konkyo train` left there), or
    "FILE.py:FUNCTION", a function of yours that takes nothing and returns an nn.Module or a konkyo.Model (the file
    is run). `weights`: "default" (the library's own pretrained weights), None (random), or a file (safetensors, or
    .pth of plain tensors). `texts`: the classes of a model that compares images with texts, each put into
    `template` at "{}", as in "a photo of {}"; of several templates the mean is taken.
    KonkyoError: an unknown name, a library that is not installed, weights that are missing or do not fit, or texts for
    a model that reads none.
    """
    if ".py:" in name:
        model = _from_file(name, weights)
    else:
        prefix, slash, rest = ("onnx", "/", name) if name.endswith(".onnx") else name.partition("/")
        for module in sorted(iter_modules(__path__), key=lambda module: module.name != prefix):
            if slash and prefix in ADAPTERS:  # that of another library would import it, which takes seconds
                break
            import_module(f"{__name__}.{module.name}")
        if not slash or prefix not in ADAPTERS:
            if (Path(name) / "manifest.json").is_file():
                raise KonkyoError(f"{name!r} is a folder; what was trained there is 'trained/{name}'")
            if name.endswith(".py"):
                raise KonkyoError(f"{name!r} names no function in the file that builds the model: {name}:FUNCTION")
            raise unknown("model", name, [f"{p}/NAME" for p in sorted(ADAPTERS)] + ["FILE.onnx", "FILE.py:FUNCTION"])
        model = ADAPTERS[prefix](rest, weights)
    if device is not None:
        try:
            model.module.to(device)
        except (RuntimeError, AssertionError) as error:
            raise KonkyoError(f"device {device!r} cannot be used: {first_line(error)}") from error
    return model.prompted(texts=Texts.of(texts, template)) if texts else model


def _from_file(name: str, weights: str | Path | None) -> Model:
    path, _, function = name.rpartition(":")
    if weights != "default":
        raise KonkyoError("weights= goes with a library's model; a function of yours loads its own")
    if not Path(path).is_file():
        raise KonkyoError(f"no file {path!r} for model {name!r}")
    spec = importlib.util.spec_from_file_location(f"konkyo model {Path(path).resolve()}", path)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = source  # dataclasses look their module up
    sys.path.insert(0, str(Path(path).resolve().parent))  # as when the file is run: it may import its neighbours
    try:
        spec.loader.exec_module(source)
        build = getattr(source, function, None)
        if not callable(build):
            raise unknown(f"function in {path}", function, [n for n, v in vars(source).items() if callable(v)])
        built = build()
    except KonkyoError:
        raise
    except Exception as error:
        raise KonkyoError(f"{name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(built, (nn.Module, Model)):
        raise KonkyoError(f"{name} must return an nn.Module or a konkyo.Model; got {type(built).__name__}")
    model = as_model(built)
    model.module.eval()
    return model

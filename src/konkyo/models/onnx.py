"""ONNX files and sessions as black boxes. Needs the extra `onnx`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from konkyo.errors import KonkyoError, first_line, install_hint
from konkyo.models.base import Model, adapter
from konkyo.models.blackbox import BlackBox, Form
from konkyo.models.preprocess import preprocess_of

CLASSES, PREPROCESS = "konkyo:classes", "konkyo:preprocess"
"""The names under which a file says its classes and how pictures are prepared."""
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def import_onnxruntime() -> ModuleType:
    """Returns onnxruntime, imported when an ONNX file is asked for. KonkyoError: it is not installed."""
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise KonkyoError(f"ONNX files need the library onnxruntime: {install_hint('onnx')}") from error


@adapter("onnx")
def load(name: str, weights: str | Path | None) -> Model:
    """Returns the network in an ONNX file as a black box, which onnxruntime runs on the CPU.

    `weights`: "default", those of the file; it has no others. KonkyoError: onnxruntime is not installed, a file that it
    cannot read, or a network without one input of images.
    """
    if weights != "default":
        raise KonkyoError(f"the weights of an ONNX network are in its file, {name}; weights= has no use here")
    if not Path(name).is_file():
        raise KonkyoError(f"no file {name!r}")
    runtime = import_onnxruntime()
    try:
        session = runtime.InferenceSession(name, providers=["CPUExecutionProvider"])
    except Exception as error:  # the errors of onnxruntime have no common base of their own
        raise KonkyoError(f"{name} is no ONNX network that onnxruntime can run: {first_line(error)}") from error
    return of_session(session, Path(name).name)


def of_session(session: Any, name: str = "ONNX session") -> Model:
    """Returns a session of onnxruntime as a black box.

    Its input says the batch size, where that is fixed, and the form of images. Class names and preprocessing are read
    where the file says them: as `konkyo export-cam` and Ultralytics write them. KonkyoError: not one input of images.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or not (inputs[0].type in _FLOATS or _is_bytes(inputs[0])):
        listed = ", ".join(f"{item.name} {item.shape} {item.type}" for item in inputs)
        raise KonkyoError(f"{name}: one input of images (N, C, H, W), floating or uint8, was expected; it has {listed}")
    (images,) = inputs
    outputs = [item.name for item in session.get_outputs()]
    kind = np.uint8 if _is_bytes(images) else _FLOATS[images.type]

    def predict(batch: np.ndarray[Any, Any]) -> Any:
        values = session.run(outputs, {images.name: batch.astype(kind)})
        return values[0] if len(outputs) == 1 else dict(zip(outputs, values, strict=True))

    fixed = images.shape[0] if isinstance(images.shape[0], int) else None
    metadata = session.get_modelmeta().custom_metadata_map
    box = BlackBox(predict, form=_form(images), batch=fixed)
    return Model(box, preprocess_of(metadata.get(PREPROCESS)), _classes(metadata), name)


def _is_bytes(item: Any) -> bool:
    return bool(item.type == "tensor(uint8)")


def _form(item: Any) -> Form:
    """Returns the form of images that an input takes; channels come last where only the last axis can be them."""
    last = item.shape[3] in (1, 3) and item.shape[1] not in (1, 3)
    if _is_bytes(item):
        return "uint8 NHWC" if last else "uint8 NCHW"
    return "float NHWC" if last else "float NCHW"


def _classes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the class names that a file says; none where it says none."""
    if CLASSES in metadata:
        return tuple(str(name) for name in json.loads(metadata[CLASSES]))
    return ()

"""Files of explanations: what was saved comes back, and what was made up is refused in words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import konkyo
from konkyo import ClassTarget, Explanation, KonkyoError
from konkyo.engine.path import PathTrace
from konkyo.explanation.diagnosis import OK, Diagnosis

Parts = dict[str, Any]
SUFFIXES = (".npz", ".safetensors")


def explanation(rows: int = 2, grid: tuple[int, ...] = (3, 4), **more: Any) -> Explanation:
    draw = torch.Generator().manual_seed(rows)
    values: dict[str, Any] = {
        "signed": torch.randn(rows, *grid, generator=draw),
        "rectified": True,
        "scores": torch.randn(rows, generator=draw),
        "image_index": torch.arange(rows),
        "targets": tuple(ClassTarget(i) for i in range(rows)),
        "labels": tuple(f"class {i}" for i in range(rows)),
        "method": "grad_cam",
        "layer": "layer4",
        "diagnosis": (OK,) * rows,
        "boxes": torch.tensor([[0.0, 1, 2, 3]] * rows).reshape(rows, 4),
        "regions": torch.tensor([[0.0, 0.1, 1, 0.9]] * rows).reshape(rows, 4),
        "path": PathTrace(*(torch.rand(rows, *s) for s in ((5,), (4,), (5,), (5, 4)))),
    }
    return Explanation(**(values | more))


def crafted(path: Path, change: Callable[[Parts, Parts], Any]) -> Path:
    """Writes a file as `save` does, with its tensors and its description changed."""
    whole = explanation()
    tensors: Parts = {name: getattr(whole, name) for name in ("signed", "scores", "image_index", "boxes", "regions")}
    assert whole.path is not None
    tensors |= {f"path.{name}": tensor for name, tensor in vars(whole.path).items()}
    description = whole.description()
    text = change(tensors, description)
    text = json.dumps(description) if text is None else text
    if path.suffix == ".npz":
        np.savez(path, konkyo=np.array(text), **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"konkyo": text})
    return path


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Parts, Parts], None]:
    return lambda tensors, _: tensors.__setitem__(name, tensor)


def with_value(name: str, value: Any) -> Callable[[Parts, Parts], None]:
    return lambda _, values: values.__setitem__(name, value)


def without(name: str) -> Callable[[Parts, Parts], None]:
    def change(tensors: Parts, values: Parts) -> None:
        tensors.pop(name, None)
        values.pop(name, None)

    return change


NAN, INF = math.nan, math.inf
CRAFTED: dict[str, tuple[Callable[[Parts, Parts], Any], str]] = {
    "fewer scores": (with_tensor("scores", torch.zeros(1)), "scores are floats of shape"),
    "scores of two axes": (with_tensor("scores", torch.zeros(2, 1)), "scores are floats"),
    "whole scores": (with_tensor("scores", torch.zeros(2, dtype=torch.int64)), "scores are floats"),
    "no scores": (without("scores"), "scores are floats"),
    "no maps": (without("signed"), "signed are floats"),
    "maps without a cell": (with_tensor("signed", torch.zeros(2, 0, 4)), "with a cell or more"),
    "maps without a grid": (with_tensor("signed", torch.zeros(2)), "signed are floats"),
    "maps of five axes": (with_tensor("signed", torch.zeros(2, 1, 1, 1, 1)), "signed are floats"),
    "whole maps": (with_tensor("signed", torch.zeros(2, 3, 4, dtype=torch.uint8)), "signed are floats"),
    "complex maps": (with_tensor("signed", torch.zeros(2, 3, 4, dtype=torch.complex64)), "signed are floats"),
    "more maps": (with_tensor("signed", torch.zeros(3, 3, 4)), "got"),
    "negative image": (with_tensor("image_index", torch.tensor([-1, 0])), "counts images from 0"),
    "huge image": (with_tensor("image_index", torch.tensor([0, 2**40])), "counts images from 0"),
    "image as float": (with_tensor("image_index", torch.zeros(2)), "whole numbers"),
    "fewer images": (with_tensor("image_index", torch.zeros(1, dtype=torch.int64)), "whole numbers"),
    "boxes of three": (with_tensor("boxes", torch.zeros(2, 3)), "boxes are floats"),
    "fewer boxes": (with_tensor("boxes", torch.zeros(1, 4)), "boxes are floats"),
    "infinite box": (with_tensor("boxes", torch.full((2, 4), INF)), "one is infinite"),
    "fewer regions": (with_tensor("regions", torch.zeros(1, 4)), "regions are floats"),
    "empty region": (with_tensor("regions", torch.tensor([[0, 0, 1, 1], [0.5, 0, 0.5, 1]])), "regions are xyxy"),
    "unordered region": (with_tensor("regions", torch.tensor([[0, 0, 1, 1], [0, 0.9, 1, 0.1]])), "regions are xyxy"),
    "region of NaN": (with_tensor("regions", torch.full((2, 4), NAN)), "regions are xyxy"),
    "infinite region": (with_tensor("regions", torch.tensor([[0.0, 0, INF, INF]] * 2)), "regions are xyxy"),
    "region outside": (with_tensor("regions", torch.tensor([[-1.0, 0, 1, 1]] * 2)), "regions are xyxy"),
    "half a path": (without("path.scores"), "path.scores are missing"),
    "path of other rows": (with_tensor("path.alphas", torch.zeros(3, 5)), "path.alphas are floats"),
    "path of other nodes": (with_tensor("path.boxes", torch.zeros(2, 6, 4)), "path.boxes are floats"),
    "path without nodes": (with_tensor("path.alphas", torch.zeros(2, 0)), "M >= 1"),
    "flat path": (with_tensor("path.alphas", torch.zeros(10)), "path.alphas are floats"),
    "unknown tensor": (with_tensor("surprise", torch.zeros(2)), "surprise"),
    "fewer labels": (with_value("labels", ["a"]), "labels has 2 entries; got 1"),
    "labels of numbers": (with_value("labels", [1, 2]), "labels is a list of strings"),
    "labels in one string": (with_value("labels", "ab"), "labels is a list of strings"),
    "no labels": (without("labels"), "labels has 2 entries"),
    "fewer targets": (with_value("targets", [{"index": 1, "score": "logit"}]), "targets has 2 entries; got 1"),
    "targets of numbers": (with_value("targets", [1, 2]), "a target is a string or an object"),
    "negative class": (with_value("targets", [{"index": -1, "score": "logit"}] * 2), "index is a whole number from 0"),
    "class in words": (with_value("targets", [{"index": "cat", "score": "logit"}] * 2), "index is a whole number"),
    "class of NaN": (with_value("targets", [{"index": NAN, "score": "logit"}] * 2), "index is a whole number"),
    "unknown score": (with_value("targets", [{"index": 1, "score": "luck"}] * 2), "luck"),
    "unknown target": (with_value("targets", [{"colour": 1}] * 2), "no task knows"),
    "box of a target": (
        with_value("targets", [{"label": 1, "box": [0, 0, 1], "likeness": [1.0], "index": 0}] * 2),
        "box is four numbers",
    ),
    "infinite box of a target": (
        with_value("targets", [{"label": 1, "box": [0, 0, INF, 1], "likeness": [1.0], "index": 0}] * 2),
        "box is finite",
    ),
    "unknown diagnosis": (with_value("diagnosis", [{"kind": "fine", "message": ""}] * 2), "a diagnosis is of a kind"),
    "fewer diagnoses": (with_value("diagnosis", [{"kind": "ok"}]), "diagnosis has 2 entries; got 1"),
    "diagnosis in a word": (with_value("diagnosis", ["ok", "ok"]), "a diagnosis is of a kind"),
    "kind of a list": (with_value("diagnosis", [{"kind": []}] * 2), "a diagnosis is of a kind"),
    "message of numbers": (with_value("diagnosis", [{"kind": "ok", "message": 3}] * 2), "a message in words"),
    "method of numbers": (with_value("method", 3), "method is a string"),
    "no layer": (without("layer"), "layer is a string"),
    "rectified in words": (with_value("rectified", "yes"), "rectified is true or false"),
    "seed of NaN": (with_value("seed", NAN), "seed is a whole number"),
    "options in a list": (with_value("options", []), "options is an object"),
    "assumptions of numbers": (with_value("assumptions", [1]), "assumptions is a list of strings"),
    "another form": (with_value("konkyo", 2), "its form is 1; got 2"),
    "a list for all": (lambda _tensors, _values: "[]", "its description is a JSON object"),
    "no JSON": (lambda _tensors, _values: "{", "no saved explanation"),
    "deep JSON": (lambda _tensors, _values: '{"options":' + "[" * 100_000 + "]" * 100_000 + "}", "deep in each other"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files_are_refused_in_words(tmp_path: Path, name: str, suffix: str) -> None:
    change, words = CRAFTED[name]
    path = crafted(tmp_path / f"a{suffix}", change)
    with pytest.raises(KonkyoError, match="no saved explanation") as caught:
        Explanation.load(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_that_was_crafted_from_loads(tmp_path: Path, suffix: str) -> None:
    assert len(Explanation.load(crafted(tmp_path / f"a{suffix}", lambda *_: None))) == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pipes_and_folders_are_refused(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    for name in (f"pipe{suffix}", f"folder{suffix}", f"none{suffix}"):
        with pytest.raises(KonkyoError, match="no saved explanation"):
            Explanation.load(tmp_path / name)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 3),
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    parts=st.sets(st.sampled_from(["boxes", "regions", "path"])),
    suffix=st.sampled_from(SUFFIXES),
    special=st.sampled_from([0.0, NAN, INF]),
    text=st.text(max_size=20),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    grid: tuple[int, ...],
    parts: set[str],
    suffix: str,
    special: float,
    text: str,
) -> None:
    whole = explanation(rows, grid, **dict.fromkeys({"boxes", "regions", "path"} - parts))
    whole.signed[:1] = special
    text = text.replace("\0", "").encode(errors="ignore").decode()
    judged = tuple(Diagnosis("not finite", text) for _ in range(rows))
    whole = Explanation(**(vars(whole) | {"assumptions": (text,), "diagnosis": judged, "options": {"a": special}}))
    loaded = Explanation.load(whole.save(tmp_path_factory.mktemp("saved") / f"a{suffix}"))
    assert torch.equal(loaded.signed.nan_to_num(9), whole.signed.nan_to_num(9))
    assert (loaded.targets, loaded.labels, loaded.diagnosis) == (whole.targets, whole.labels, judged)
    assert loaded.assumptions == (text,)
    assert {name for name in ("boxes", "regions", "path") if getattr(loaded, name) is not None} == parts


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights a map may be blank
def test_what_was_explained_comes_back(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    found = konkyo.explain(network, torch.rand(2, 3, 12, 12), target=1, method="layer_cam", layer="0")
    for suffix in SUFFIXES:
        loaded = Explanation.load(found.save(tmp_path / f"a{suffix}"))
        assert torch.equal(loaded.signed, found.signed)
        assert loaded.targets == found.targets

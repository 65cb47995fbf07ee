"""Trained networks in folders: what comes back, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import konkyo
from konkyo import KonkyoError
from konkyo.models import trained as saved
from konkyo.models.networks.levels import GAZE, LEVELS, gaze_network
from konkyo.models.trained import ARCHITECTURES, MANIFEST, WEIGHTS, Plan, read_plan, save_trained

PREPROCESS = konkyo.Preprocess((24, 20), None, (0.5,), (0.25,), interpolation="bicubic")


def plan(number: int = 2, **changes: Any) -> Plan:
    known: dict[str, Any] = {
        "architecture": "level",
        "arguments": {"number": number, "classes": 3},
        "classes": ("cat", "dog", "fôx"),
        "preprocess": PREPROCESS,
        "trained": {"data": "lesions:10", "lambda": 0.5, "rate": float("nan")},
    }
    return Plan(**(known | changes))


def network(number: int = 2) -> nn.Module:
    """As after a training: batch norm has seen images."""
    torch.manual_seed(3)
    found = gaze_network(number, 3)
    found(torch.randn(4, 1, 24, 20) * 2 + 1)
    return found


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("number", LEVELS)
def test_a_network_comes_back_with_all_that_it_needs(tmp_path: Path, number: int) -> None:
    trained = network(number)
    save_trained(tmp_path, trained, plan(number))
    model = konkyo.load(f"trained/{tmp_path}")
    trained.eval()
    image = PREPROCESS(picture())[None]
    assert model.preprocess == PREPROCESS
    assert torch.equal(model.preprocess(picture())[None], image)
    with torch.no_grad():
        assert torch.equal(model(image), trained(image))
    assert model.classes == ("cat", "dog", "fôx")
    assert model.name == f"trained/{tmp_path}"
    assert not any(m.training for m in model.module.modules())
    own, other = model.module.state_dict(), trained.state_dict()
    assert all(torch.equal(own[name], other[name]) and own[name].dtype == other[name].dtype for name in other)
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, WEIGHTS]


@pytest.mark.filterwarnings("ignore::konkyo.errors.KonkyoWarning")  # a blank map of random weights
def test_it_can_be_explained_by_class_name_and_layer(tmp_path: Path) -> None:
    trained = network()
    save_trained(tmp_path, trained, plan())
    found = konkyo.explain(konkyo.load(f"trained/{tmp_path}"), picture(), target="dog", layer=GAZE)
    own = konkyo.explain(trained.eval(), PREPROCESS(picture())[None], target=1, layer=GAZE)
    assert torch.equal(found.signed, own.signed)
    assert found.maps.shape == (1, 3, 2)


def test_relative_folders_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trained(tmp_path / "a b" / "run", network(), plan())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    states = [konkyo.load(f"trained/{name}").module.state_dict() for name in ("a b/run", "./a b/run/", "~/a b/run")]
    assert all(torch.equal(states[0][n], s[n]) for s in states[1:] for n in s)


def test_the_manifest_says_what_was_trained(tmp_path: Path) -> None:
    save_trained(tmp_path, network(), plan())
    found = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found["konkyo"] == konkyo.__version__
    assert found["architecture"] == "level"
    assert found["trained"] == {"data": "lesions:10", "lambda": 0.5, "rate": None}
    assert read_plan(tmp_path).preprocess == PREPROCESS
    assert read_plan(tmp_path).trained["lambda"] == 0.5


def test_weights_are_safetensors_whatever_the_network_shares(tmp_path: Path) -> None:
    trained = network(1)
    trained.get_submodule("conv2").weight.data = trained.get_submodule("conv2").weight.data.transpose(2, 3)
    trained.register_buffer("again", trained.get_submodule("head").weight.detach())  # the same memory twice
    save_trained(tmp_path, trained, plan(1))
    state = load_file(tmp_path / WEIGHTS)
    assert torch.equal(state["again"], state["head.weight"])
    assert torch.equal(state["conv2.weight"], trained.get_submodule("conv2").weight)


def test_other_weights_and_none(tmp_path: Path) -> None:
    first, second = network(1), gaze_network(1, 3)
    save_trained(tmp_path / "first", first, plan(1))
    torch.save(second.state_dict(), tmp_path / "second.pth")
    model = konkyo.load(f"trained/{tmp_path / 'first'}", weights=tmp_path / "second.pth")
    assert torch.equal(model.module.state_dict()["head.weight"], second.state_dict()["head.weight"])
    random = konkyo.load(f"trained/{tmp_path / 'first'}", weights=None)
    assert not torch.equal(random.module.state_dict()["head.weight"], first.state_dict()["head.weight"])


def test_no_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trained(tmp_path, network(), plan())
    (tmp_path / "checkpoint.pt").write_bytes(b"never looked at")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    konkyo.load(f"trained/{tmp_path}")


# --- what is refused --------------------------------------------------------------------------------------------------


def changed(folder: Path, **values: Any) -> None:
    path = folder / MANIFEST
    found = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({n: v for n, v in found.items() if v != "absent"}), encoding="utf-8")


def test_a_folder_without_a_network(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(KonkyoError, match=r"holds no trained network: manifest\.json was expected"):
            konkyo.load(f"trained/{folder}")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '"text"', "null", "\x00"])
def test_a_manifest_that_is_none(tmp_path: Path, content: str) -> None:
    save_trained(tmp_path, network(1), plan(1))
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(KonkyoError, match=r"manifest\.json is no manifest of a trained network"):
        konkyo.load(f"trained/{tmp_path}")


@pytest.mark.parametrize("name", ["architecture", "arguments", "classes", "preprocess"])
@pytest.mark.parametrize("value", ["absent", 3, None])
def test_a_manifest_with_something_else_in_it(tmp_path: Path, name: str, value: Any) -> None:
    save_trained(tmp_path, network(1), plan(1))
    changed(tmp_path, **{name: value})
    expected = "unknown architecture" if (name, value) in (("architecture", 3), ("architecture", None)) else "manifest"
    with pytest.raises(KonkyoError, match=expected):
        konkyo.load(f"trained/{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "resnet"}, "unknown architecture 'resnet'.*On offer: .*level"),
        ({"architecture": ["level"]}, "unknown architecture"),
        ({"arguments": {"number": 9, "classes": 3}}, "unknown level '9'"),
        ({"arguments": {"number": 1}}, "architecture 'level': .*classes"),
        ({"arguments": {"number": 1, "classes": 3, "depth": 4}}, "architecture 'level': .*depth"),
        ({"arguments": {"number": 1, "classes": "three"}}, "three classes have 3 names"),
        ({"arguments": {"number": 1, "classes": -1}}, "-1 classes have 3 names"),
        ({"classes": "abc"}, "classes are a list of names; got 'abc'"),
        ({"classes": [1, {"a": 2}, None]}, "classes are a list of names"),
        ({"classes": ["one", "two"]}, "3 classes have 2 names"),
        ({"arguments": {"number": 1, "classes": 4}}, "4 classes have 3 names"),
        ({"arguments": {"number": 2, "classes": 3}}, r"weights\.safetensors does not fit its manifest"),
        ({"preprocess": {"size": 3}}, "no manifest of a trained network"),
        ({"preprocess": {"mean": [0.5], "std": [0.0]}}, "std must be positive"),
        ({"preprocess": {"resize": "small"}}, "no manifest of a trained network"),
    ],
    ids=str,
)
def test_a_manifest_of_another_network(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    save_trained(tmp_path, network(1), plan(1))
    changed(tmp_path, **changes)
    with pytest.raises(KonkyoError, match=told):
        konkyo.load(f"trained/{tmp_path}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arguments": {"number": 1, "classes": 3, "channels": 10**9}}, "channels is a whole number from 1 to"),
        ({"arguments": {"number": 1, "classes": 3, "channels": -1}}, "channels is a whole number"),
        ({"arguments": {"number": 1, "classes": 3, "channels": 1.0}}, "channels is a whole number"),
        ({"arguments": {"number": 1, "classes": 3, "channels": True}}, "channels is a whole number"),
        ({"arguments": {"number": float("inf"), "classes": 3}}, "number is a whole number"),
        ({"arguments": {"number": [1], "classes": 3}}, "number is a whole number"),
        ({"arguments": {"backbone": "x", "classes": 3, "samples": 10**12}}, "samples is a whole number"),
        ({"arguments": {"backbone": "x", "classes": 3, "noise": {"offset": float("nan")}}}, "offset is a number"),
        ({"arguments": {"backbone": "x", "classes": 3, "noise": {"offset": -1e30}}}, "offset is a number"),
        ({"arguments": {"backbone": ["x"], "classes": 3}}, "backbone is a number or a name"),
        ({"preprocess": {"mean": [float("nan")], "std": [1.0]}}, "mean is a tuple of finite numbers"),
        ({"preprocess": {"mean": [0.5], "std": [float("inf")]}}, "std is a tuple of finite numbers"),
        ({"preprocess": {"mean": ["0.5"], "std": [1.0]}}, "mean is a tuple of finite numbers"),
        ({"preprocess": {"mean": 0.5, "std": [1.0]}}, "mean is a tuple of finite numbers"),
        ({"preprocess": {"resize": 10**9}}, "resize makes at most"),
        ({"preprocess": {"crop": [10**6, 10**6]}}, "crop makes at most"),
        ({"preprocess": {"crop": [8, 8, 8]}}, "crop is a whole number of pixels"),
        ({"preprocess": {"resize": 24.5}}, "resize is a whole number of pixels"),
        ({"preprocess": {"resize": float("nan")}}, "resize is a whole number of pixels"),
        ({"preprocess": {"crop": -4}}, "crop must be at least 1 pixel"),
        ({"preprocess": {"multiple": float("inf")}}, "multiple and patches must be"),
        ({"preprocess": {"longest": float("nan")}}, "longest, multiple and patches must be"),
        ({"preprocess": {"border": float("nan")}}, "border is a grey"),
        ({"preprocess": {"interpolation": "cubist"}}, "interpolation"),
    ],
    ids=str,
)
def test_numbers_out_of_bounds_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    save_trained(tmp_path, network(1), plan(1))
    changed(tmp_path, **changes)
    monkeypatch.setattr(Plan, "build", lambda _: pytest.fail("a network was built"))
    with pytest.raises(KonkyoError, match=told):
        konkyo.load(f"trained/{tmp_path}")


def test_deep_manifests_and_pipes(tmp_path: Path) -> None:
    save_trained(tmp_path, network(1), plan(1))
    (tmp_path / MANIFEST).write_text('{"arguments":' * 50_000)
    with pytest.raises(KonkyoError, match="deep in each other"):
        konkyo.load(f"trained/{tmp_path}")
    (tmp_path / MANIFEST).unlink()
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(KonkyoError, match="holds no trained network"):
        konkyo.load(f"trained/{tmp_path}")


def test_weights_that_are_not_there_or_broken(tmp_path: Path) -> None:
    save_trained(tmp_path, network(1), plan(1))
    whole = (tmp_path / WEIGHTS).read_bytes()
    for content in (b"", whole[:20], whole[: len(whole) // 2], b"\xff" * 64):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(KonkyoError, match=r"weights\.safetensors"):
            konkyo.load(f"trained/{tmp_path}")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(KonkyoError, match="no weights file"):
        konkyo.load(f"trained/{tmp_path}")
    state = gaze_network(1, 3).state_dict()
    del state["head.bias"]
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(KonkyoError, match="does not fit its manifest"):
        konkyo.load(f"trained/{tmp_path}")


def test_weights_that_cannot_be_written_leave_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trained(tmp_path, network(1), plan(1))
    before = (tmp_path / WEIGHTS).read_bytes()

    def half(_state: Any, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(saved, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save_trained(tmp_path, gaze_network(1, 3), plan(1))
    assert (tmp_path / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [MANIFEST, WEIGHTS]


def flat(classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(480, classes))


def test_an_architecture_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "flat", flat)
    trained = flat(3)
    save_trained(tmp_path, trained, plan(architecture="flat", arguments={"classes": 3}))
    image = PREPROCESS(picture())[None]
    assert torch.equal(konkyo.load(f"trained/{tmp_path}")(image), trained(image))


def test_a_manifest_does_not_choose_what_code_runs(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    save_trained(tmp_path, network(1), plan(1))
    backbone = {"backbone": f"{tmp_path / 'nets.py'}:net", "classes": 3}
    changed(tmp_path, architecture="plain", arguments=backbone)
    with pytest.raises(KonkyoError, match="not run from here"):
        konkyo.load(f"trained/{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_a_folder_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is "trained/", or which of the networks inside is meant."""
    monkeypatch.chdir(tmp_path)
    save_trained(Path("study/level-1"), network(1), plan(1))
    with pytest.raises(
        KonkyoError, match="'study/level-1' is a folder; what was trained there is 'trained/study/level-1'"
    ):
        konkyo.load("study/level-1")
    with pytest.raises(KonkyoError, match=r"there is one in study/level-1$"):
        konkyo.load("trained/study")

"""Models by name: preprocessing, class names, weights files, and what is said when something does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms._presets import ImageClassification

import konkyo
from helpers.bombs import Bomb
from helpers.networks import SmallResNet, images, seeded
from konkyo.models.checkpoints import read_weights

NAME = "torchvision/squeezenet1_1"
State = dict[str, Tensor]


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def squeezenet(classes: int = 1000) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        return torchvision.models.squeezenet1_1(num_classes=classes)


@pytest.fixture(scope="module")
def state() -> State:
    return squeezenet().state_dict()


@pytest.fixture(scope="module")
def model() -> konkyo.Model:
    return konkyo.load(NAME, weights=None)


# --- by name ---------------------------------------------------------------------------------------------------------


def test_a_torchvision_model_has_its_names_and_preprocessing(model: konkyo.Model) -> None:
    assert isinstance(model.module, torchvision.models.SqueezeNet)
    assert model.name == NAME
    assert not any(m.training for m in model.module.modules())
    assert len(model.classes) == 1000
    assert (model.classes[0], model.classes[207], model.classes[999]) == ("tench", "golden retriever", "toilet tissue")
    assert model.preprocess == konkyo.Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
    assert konkyo.load("torchvision/inception_v3", weights=None).preprocess.crop == 299
    assert model(images(2, double=False)).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet5", "did you mean 'resnet5"),
        ("torchvision/fcn_resnet5", "unknown torchvision model"),
        ("torchvison/resnet50", "did you mean 'torchvision/NAME'"),
        ("resnet50", r"timm/NAME, torchvision/NAME, trained/NAME, FILE\.onnx, FILE\.py:FUNCTION"),
        ("", "unknown model ''"),
        ("net.py", "'net.py' names no function in the file that builds the model: net.py:FUNCTION"),
        ("torchvision/", "unknown torchvision model ''"),
    ],
)
def test_unknown_names_list_near_ones(name: str, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.load(name, weights=None)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "mps:7"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=rf"device '{device}' cannot be used: \w+"):
        konkyo.load(NAME, weights=None, device=device)


# --- preprocessing ---------------------------------------------------------------------------------------------------

SIZES = [(500, 375), (375, 501), (301, 203), (57, 401), (100, 80), (256, 256), (231, 77)]


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "vit_h_14", "swin_v2_t", "inception_v3", "regnet_y_32gf"]
)
def test_preprocessing_equals_torchvisions(name: str) -> None:
    """efficientnet_b0, vit_h_14 and swin_v2_t are bicubic; the sizes are of every one of them."""
    expected = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    found = preprocess_of(name)
    for size in SIZES:
        for mode in ("RGB", "L"):
            picture = photo(*size, mode)
            torch.testing.assert_close(found(picture), expected(picture.convert("RGB")), rtol=0, atol=1e-6)


def preprocess_of(name: str) -> konkyo.Preprocess:
    """What `load` gives, without building the large ones: their networks are not needed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "get_model", lambda *_a, **_k: nn.Identity())
        found = konkyo.load(f"torchvision/{name}", weights=None).preprocess
    assert found is not None
    return found


@pytest.mark.parametrize("side", range(56, 66))
def test_a_picture_smaller_than_the_crop_is_padded_as_torchvision_does(side: int) -> None:
    expected, found = ImageClassification(crop_size=64, resize_size=side), konkyo.Preprocess(side, 64)
    for picture in (photo(90, 91), photo(91, 90)):
        torch.testing.assert_close(found(picture), expected(picture), rtol=0, atol=1e-6)


def test_one_channel_and_no_resize() -> None:
    picture = photo(40, 30)
    found = konkyo.Preprocess(None, None, (0.5,), (0.25,))(picture)
    expected = (np.asarray(picture.convert("L"), np.float32) / 255 - 0.5) / 0.25
    assert found.shape == (1, 30, 40)
    torch.testing.assert_close(found[0], torch.from_numpy(expected))
    assert konkyo.Preprocess((20, 30), None)(picture).shape == (3, 20, 30)
    assert konkyo.Preprocess(24, (16, 20))(picture).shape == (3, 16, 20)


@pytest.mark.parametrize("size", [(300, 200), (200, 300)])
def test_the_view_shows_what_the_model_sees(size: tuple[int, int]) -> None:
    """A mark at a place of the view is at the same relative place of the prepared image."""
    found = konkyo.Preprocess(50, 40, (0.0,) * 3, (1.0,) * 3)
    picture = Image.new("RGB", size)
    left, top = (120, 48) if size[0] > size[1] else (48, 120)
    picture.paste((255, 255, 255), (left, top, left + 8, top + 8))  # two pixels of the prepared image
    view = np.asarray(found.view(picture).convert("L"), np.float32)
    assert view.shape == (160, 160)  # 40 of 50 of the short side of 200
    prepared = found(picture)[0].numpy()
    centres = [
        np.array([np.average(np.arange(n) + 0.5, weights=g.sum(1 - a)) / n for a, n in enumerate(g.shape)])
        for g in (view, prepared)
    ]
    assert np.abs(centres[0] - centres[1]).max() < 0.25 / 40  # a quarter of a prepared pixel
    assert view.sum() == 64 * 255


def test_undo_gives_the_colours_back() -> None:
    found = konkyo.Preprocess(None, None, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    picture = photo(20, 12)
    colours = found.undo(found(picture)[None])
    torch.testing.assert_close(colours[0], torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1))
    assert found.undo(torch.full((1, 3, 2, 2), 99.0)).max() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (0.5,)}, "one value per channel"),
        ({"mean": (0.5,) * 4, "std": (0.5,) * 4}, "1 or 3"),
        ({"std": (0.2, 0.0, 0.2)}, "positive"),
        ({"crop": 0}, "crop must be at least 1"),
        ({"resize": (10, -1)}, "resize must be at least 1"),
    ],
)
def test_preprocessing_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.Preprocess(**values)


# --- weights files ---------------------------------------------------------------------------------------------------


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


ARRANGEMENTS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "best": torch.tensor(0.5)},
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "Lightning": lambda state: {"state_dict": prefixed("model.")(state)},
    "DataParallel of compiled": prefixed("module._orig_mod."),
    "compiled DataParallel": prefixed("_orig_mod.module."),
    "half": lambda state: {name: tensor.half() for name, tensor in state.items()},
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_weights_in_every_arrangement(state: State, tmp_path: Path, arrangement: str) -> None:
    torch.save(ARRANGEMENTS[arrangement](state), tmp_path / "w.pth")
    found = konkyo.load(NAME, weights=tmp_path / "w.pth")
    for name, tensor in found.module.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-3 if arrangement == "half" else 0)
    assert len(found.classes) == 1000
    assert not found.module.training


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_from_safetensors(state: State, tmp_path: Path, prefix: str) -> None:
    save_file(prefixed(prefix)(state), tmp_path / "w.safetensors")
    found = konkyo.load(NAME, weights=str(tmp_path / "w.safetensors"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.module.state_dict().items())


def test_a_legacy_file_of_weights(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found = konkyo.load(NAME, weights=tmp_path / "w.pth")
    assert torch.equal(found.module.state_dict()["classifier.1.weight"], state["classifier.1.weight"])


def test_a_fine_tuned_head_keeps_no_imagenet_names(tmp_path: Path) -> None:
    tuned = squeezenet(7).eval()
    torch.save(tuned.state_dict(), tmp_path / "w.pth")
    found = konkyo.load(NAME, weights=tmp_path / "w.pth")
    x = images(1, double=False)
    torch.testing.assert_close(found(x), tuned(x))
    assert found(x).shape == (1, 7)
    assert found.classes == ()
    with pytest.raises(konkyo.KonkyoError, match="no class names"):
        found.class_index("tench")


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "features.0.weight"), r"1 missing \(features\.0\.weight"),
        (
            lambda s: {**without(s, "features.0.bias"), "features.0.b": s["features.0.bias"]},
            r"1 unexpected \(features\.0\.b ",
        ),
        (
            lambda s: {**s, "features.0.weight": torch.zeros(64, 1, 3, 3)},
            r"of another shape .*\(64, 1, 3, 3\) for \(64, 3",
        ),
        (lambda s: {"conv1.weight": torch.zeros(3)}, "52 missing.*1 unexpected"),
        (lambda _s: {"epoch": 3}, "no named tensors"),
        (lambda _s: [torch.zeros(3)], "no named tensors"),
        (lambda _s: torch.zeros(3), "no named tensors"),
    ],
)
def test_weights_that_do_not_fit(state: State, tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    torch.save(change(state), tmp_path / "w.pth")
    with pytest.raises(konkyo.KonkyoError, match=message) as caught:
        konkyo.load(NAME, weights=tmp_path / "w.pth")
    assert "w.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_classes_and_a_misfit_at_once(tmp_path: Path) -> None:
    tuned = squeezenet(7).state_dict()
    torch.save(without(tuned, "features.3.squeeze.bias"), tmp_path / "w.pth")
    with pytest.raises(konkyo.KonkyoError, match=r"1 missing \(features\.3\.squeeze\.bias"):
        konkyo.load(NAME, weights=tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_no_weights(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    with pytest.raises(konkyo.KonkyoError, match="no weights file"):
        konkyo.load(NAME, weights=path)
    with pytest.raises(konkyo.KonkyoError, match="no weights file"):
        konkyo.load(NAME, weights=tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04 and no more", b"<!DOCTYPE html><html></html>"):
        path.write_bytes(content)
        with pytest.raises(konkyo.KonkyoError, match=rf"w\.{suffix} "):
            konkyo.load(NAME, weights=path)


@pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
def test_damaged_weights_are_told_or_harmless(tmp_path: Path, kind: str) -> None:
    """Whatever a byte more or less does, it is a KonkyoError or tensors, never another exception."""
    small = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(small, path)
    else:
        torch.save(small, path, _use_new_zipfile_serialization=kind == "pth")
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for length in random.integers(0, len(whole), 40):
        path.write_bytes(whole[:length])
        with pytest.raises(konkyo.KonkyoError, match=r"^w"):
            read_weights(path)
    for _ in range(300):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), 3):
            damaged[position] = random.integers(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(tensor, Tensor) for tensor in read_weights(path).values())
        except konkyo.KonkyoError:
            continue


@pytest.mark.parametrize("how", ["torch.save", "legacy", "pickle", "safetensors suffix", "nested"])
def test_a_malicious_pickle_is_refused_without_running_it(state: State, tmp_path: Path, how: str) -> None:
    bomb, path = Bomb(tmp_path / "sentinel"), tmp_path / "w.pth"
    if how == "safetensors suffix":
        path = tmp_path / "w.safetensors"
    if how in ("pickle", "safetensors suffix"):
        path.write_bytes(pickle.dumps({"state_dict": bomb}, protocol=2))
    else:
        content = {"state_dict": {**state, "bomb": bomb}} if how == "nested" else {"bomb": bomb}
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(konkyo.KonkyoError, match=r"w\.pth is no file of plain weights|not a readable safetensors"):
        konkyo.load(NAME, weights=path)
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()  # it would have gone off


def test_a_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(squeezenet(), tmp_path / "w.pth")
    with pytest.raises(konkyo.KonkyoError, match="save the state dict alone"):
        konkyo.load(NAME, weights=tmp_path / "w.pth")


# --- models of one's own ---------------------------------------------------------------------------------------------

SOURCE = """
import konkyo
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def model():
    return konkyo.Model(network(), konkyo.Preprocess(40, 32), ("cat", "dog"), "mine")

def nothing():
    return 5

value = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "my nets.py"
    path.write_text(SOURCE)
    return path


def test_a_function_of_ones_own(source: Path) -> None:
    plain = konkyo.load(f"{source}:network")
    assert (plain.preprocess, plain.classes, plain.name) == (None, (), "Sequential")
    assert not any(m.training for m in plain.module.modules())
    full = konkyo.load(f"{source}:model", device="cpu")
    assert (full.preprocess, full.classes, full.name) == (konkyo.Preprocess(40, 32), ("cat", "dog"), "mine")
    assert not full.module.training


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("netwrk", "did you mean 'network'"),
        ("value", r"unknown function in .*'value'"),
        ("nothing", r"must return an nn\.Module or a konkyo\.Model; got int"),
    ],
)
def test_functions_that_give_no_model(source: Path, function: str, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.load(f"{source}:{function}")


def test_a_missing_file_and_weights_beside_a_function(source: Path, tmp_path: Path) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"no file .*other\.py"):
        konkyo.load(f"{tmp_path / 'other.py'}:network")
    with pytest.raises(konkyo.KonkyoError, match="loads its own"):
        konkyo.load(f"{source}:network", weights="w.pth")


def test_a_file_may_define_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n\n"
        "@dataclass\nclass Sizes:\n    inside: int = 3\n\n"
        "def build():\n    return nn.Conv2d(Sizes().inside, 4, 3)\n"
    )
    assert isinstance(konkyo.load(f"{tmp_path / 'nets.py'}:build").module, nn.Conv2d)


# --- Model -----------------------------------------------------------------------------------------------------------


def test_a_plain_module_is_a_model_as_it_is() -> None:
    network = seeded(SmallResNet())
    model = konkyo.Model(network)
    assert (model.module, model.preprocess, model.classes, model.name) == (network, None, (), "SmallResNet")
    x = images(2)
    assert torch.equal(model(x), network(x))
    assert model.label(konkyo.ClassTarget(3)) == "class 3"
    with pytest.raises(konkyo.KonkyoError, match="give the class's index"):
        model.class_index("cat")


def test_prepared_follows_the_weights() -> None:
    model = konkyo.Model(seeded(SmallResNet()))
    assert model.prepared(images(2, double=False)).dtype == torch.float64
    for wrong in (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(konkyo.KonkyoError, match=r"floating tensor \(N, C, H, W\)"):
            model.prepared(wrong)


def test_class_index() -> None:
    model = konkyo.Model(seeded(SmallResNet()), classes=("Cat", "dog", "fox", "DOG", "dog"))
    assert (model.class_index("cat"), model.class_index("FOX")) == (0, 2)
    with pytest.raises(konkyo.KonkyoError, match="did you mean 'fox'"):
        model.class_index("foxy")
    with pytest.raises(konkyo.KonkyoError, match=r"classes \[1, 3, 4\]"):
        model.class_index("Dog")


def test_imagenets_two_cardigans(model: konkyo.Model) -> None:
    """One is a dog, one is a garment; only their first letters' case tells them apart."""
    assert model.class_index("Cardigan") == 264
    assert model.class_index("cardigan") == 474
    with pytest.raises(konkyo.KonkyoError, match=r"\[264, 474\]"):
        model.class_index("CARDIGAN")


@pytest.mark.parametrize("count", [4, 6])
def test_a_wrong_count_of_class_names(count: int) -> None:
    """Names that are shifted or too few would be drawn under the wrong maps."""
    model = konkyo.Model(seeded(SmallResNet()), classes=tuple("abcdef"[:count]))
    with pytest.raises(konkyo.KonkyoError, match=rf"{count} class names.* 5 classes"):
        konkyo.explain(model, images(1), target=0, method="eigen_cam")


@pytest.mark.parametrize("target", [5, -1, "cat", 2.0, True, object(), [0], [0, 9], torch.tensor([0.5, 1.0])])
def test_targets_that_cannot_be(target: Any) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"class|entry"):
        konkyo.explain(seeded(SmallResNet()), images(2), target=target, method="eigen_cam")


def test_a_numpy_index_is_an_index() -> None:
    network, x = seeded(SmallResNet()), images(1)
    expected = konkyo.explain(network, x, target=3, method="cam").signed
    assert torch.equal(konkyo.explain(network, x, target=np.int64(3), method="cam").signed, expected)
    assert torch.equal(konkyo.explain(network, x, target=np.array([3]), method="cam").signed, expected)

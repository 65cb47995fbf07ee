"""Modules of other libraries as they are: what they themselves tell of their preprocessing and their classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import konkyo
from konkyo import KonkyoError
from konkyo.models.base import as_model
from konkyo.models.checkpoints import require_inside

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 32,
        "patch_size": 8}  # fmt: skip
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "fox"}, "label2id": {"cat": 0, "dog": 1, "fox": 2}}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that opens a connection."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection was opened"))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "resnet18"])
def test_a_module_of_timm_tells_its_preprocessing(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=3).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    preprocess = as_model(module).preprocess
    assert preprocess is not None
    assert (preprocess(picture()) - transform(picture())).abs().mean() < 0.02
    assert as_model(module).classes == ()  # three classes of one's own have no names
    found = konkyo.explain(module, picture(), target=1)
    assert torch.equal(found.signed, konkyo.explain(module, preprocess(picture())[None], target=1).signed)
    assert any("module itself tells" in text for text in found.assumptions)
    assert konkyo.explain(konkyo.Model(module, preprocess), picture(), target=1).assumptions == ()


def test_a_module_of_timm_that_tells_nothing_is_not_guessed() -> None:
    timm = pytest.importorskip("timm")
    bare = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    grey = timm.create_model("test_resnet", in_chans=1, num_classes=3)
    emptied = timm.create_model("test_resnet", num_classes=3)
    emptied.pretrained_cfg = None
    for module in (bare, grey, emptied):
        assert as_model(module).preprocess is None
        with pytest.raises(KonkyoError, match="preprocess="):
            konkyo.explain(module, picture())


# --- transformers -----------------------------------------------------------------------------------------------------


def saved(folder: Path, head: str = "ForImageClassification", **settings: Any) -> Any:
    """Returns a ViT as `from_pretrained` reads it from a folder, with its processor there."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, f"ViT{head}")
    kind(transformers.ViTConfig(**TINY, **NAMES, **settings)).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.7, 0.6, 0.5]
    )
    processor.save_pretrained(folder)
    return kind.from_pretrained(folder).eval()


def test_a_module_of_transformers_tells_classes_and_preprocessing(tmp_path: Path) -> None:
    module = saved(tmp_path)
    model, loaded = as_model(module), konkyo.load(f"hf/{tmp_path}")
    assert model.classes == ("cat", "dog", "fox") == loaded.classes
    assert model.preprocess == loaded.preprocess
    found = konkyo.explain(module, picture(), target="dog")
    assert torch.equal(found.signed, konkyo.explain(loaded, picture(), target="dog").signed)
    assert found.labels == ("dog",)


def test_modules_of_transformers_that_tell_less(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    headless = saved(tmp_path / "headless", "Model")
    assert as_model(headless).classes == ()  # what it puts out are no classes
    several = saved(tmp_path / "several", problem_type="multi_label_classification")
    assert as_model(several).multilabel
    built = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, **NAMES)).eval()
    assert as_model(built).preprocess is None
    assert as_model(built).classes == ("cat", "dog", "fox")
    built.config._name_or_path = "somebody/not-in-the-cache"
    assert as_model(built).preprocess is None  # and no connection was opened
    with pytest.raises(KonkyoError, match="preprocess="):
        konkyo.explain(built, picture())


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_weights_of_torchvision_tell_preprocessing_and_classes() -> None:
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    torch.manual_seed(0)
    module = torchvision.models.resnet18().eval()
    model = konkyo.Model(module, weights=weights)
    loaded = konkyo.load("torchvision/resnet18", weights=None)
    assert (model.preprocess, model.classes) == (loaded.preprocess, loaded.classes)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    assert model.preprocess is not None
    assert (model.preprocess(image) - weights.transforms()(image)).abs().mean() < 0.02
    own = konkyo.Preprocess(8, 8)
    assert konkyo.Model(module, own, ["a"], weights=weights).preprocess == own
    assert konkyo.Model(module, own, ["a"], weights=weights).classes == ("a",)


def test_weights_of_other_networks() -> None:
    models = torchvision.models
    dense = konkyo.Model(nn.Identity(), weights=models.segmentation.FCN_ResNet50_Weights.DEFAULT)
    assert dense.preprocess is not None
    assert (dense.preprocess.resize, dense.preprocess.crop) == (520, None)
    network = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval()
    detector = konkyo.Model(network, weights=models.detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT)
    loaded = konkyo.load("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", weights=None)
    assert (detector.preprocess, detector.classes) == (loaded.preprocess, loaded.classes)
    assert as_model(network).preprocess == loaded.preprocess  # a detector resizes by itself
    for other in (models.optical_flow.Raft_Large_Weights.DEFAULT, models.optical_flow.Raft_Small_Weights.DEFAULT):
        with pytest.raises(KonkyoError, match="no network of pictures"):
            konkyo.Model(nn.Identity(), weights=other)
    for other in ("DEFAULT", "weights.pth", models.ResNet18_Weights, 3):
        with pytest.raises(KonkyoError, match="a choice of torchvision's"):
            konkyo.Model(nn.Identity(), weights=other)


def test_a_module_of_torchvision_tells_nothing() -> None:
    module = torchvision.models.resnet18()
    assert as_model(module).preprocess is None
    with pytest.raises(KonkyoError, match="weights=torchvision"):
        konkyo.explain(module, picture())
    with pytest.raises(KonkyoError, match="weights="):
        konkyo.Model(module, torchvision.models.ResNet18_Weights.DEFAULT.transforms())  # type: ignore[arg-type]


# --- indices of shards ------------------------------------------------------------------------------------------------


def index(folder: Path, *names: Any) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    values = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "a/../../x.safetensors",
        "/etc/passwd",
        "link.safetensors",
        "folder/x.safetensors",
        "..",
        "a\0b",
    ],
)
def test_shards_outside_of_their_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"secret")
    folder = tmp_path / "model"
    saved(folder)
    (folder / "model.safetensors").unlink()
    (folder / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
    (folder / "folder").symlink_to(tmp_path)
    index(folder, name)
    with pytest.raises(KonkyoError, match="outside of its folder"):
        konkyo.load(f"hf/{folder}")


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}', "{", "[" * 10_000])
def test_indices_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(KonkyoError, match=r"index\.json"):
        konkyo.load(f"hf/{tmp_path}")


def test_shards_in_their_folder_and_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    module = saved(tmp_path / "whole")
    module.save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    sharded = konkyo.load(f"hf/{tmp_path / 'shards'}")
    assert all(torch.equal(a, b) for a, b in zip(sharded.module.parameters(), module.parameters(), strict=True))
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    index(snapshot, "model-1.safetensors")
    blobs.mkdir()
    (blobs / "f00").write_bytes(b"")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/f00")
    require_inside(snapshot)
    (snapshot / "model-2.safetensors").symlink_to(tmp_path / "whole" / "model.safetensors")
    index(snapshot, "model-2.safetensors")
    with pytest.raises(KonkyoError, match="outside of its folder"):
        require_inside(snapshot)

"""ONNX files with a map beside the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import konkyo
from helpers.commands import runner, told
from konkyo import KonkyoError, NotApplicable

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def network() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize("method", ["cam", "grad_cam", "eigen_cam", "recipro_cam"])
def test_files_give_the_maps_of_explain(tmp_path: Path, method: str) -> None:
    module = network()
    path = konkyo.export_cam(module, tmp_path / "net.onnx", method=method, size=(16, 24))
    images = torch.rand(5, 3, 16, 24)
    logits, maps = runtime.InferenceSession(str(path)).run(None, {"images": images.numpy()})
    expected = konkyo.explain(module, images, method=method)
    torch.testing.assert_close(torch.from_numpy(logits), module(images).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(maps), expected.maps, rtol=1e-3, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_rollout_of_a_transformer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    module = transformers.ViTForImageClassification(config).eval()
    path = konkyo.export_cam(module, tmp_path / "vit.onnx", method="attention_rollout", size=32)
    images = torch.rand(2, 3, 32, 32)
    maps = runtime.InferenceSession(str(path)).run(["maps"], {"images": images.numpy()})[0]
    expected = konkyo.explain(module, images, method="attention_rollout")
    torch.testing.assert_close(torch.from_numpy(maps), expected.maps, rtol=1e-3, atol=1e-5)


def test_a_class_of_ones_own_and_what_the_file_says(tmp_path: Path) -> None:
    preprocess = konkyo.Preprocess(16, 16, (0.5,) * 3, (0.5,) * 3)
    model = konkyo.Model(network(), preprocess, ("a", "b", "c", "d"))
    path = konkyo.export_cam(model, tmp_path / "net.onnx", method="cam", target="c")
    images = torch.rand(2, 3, 16, 16)
    maps = runtime.InferenceSession(str(path)).run(["maps"], {"images": images.numpy()})[0]
    expected = konkyo.explain(model, images, method="cam", target="c")
    np.testing.assert_allclose(maps, expected.maps, rtol=1e-3, atol=1e-5)
    again = konkyo.load(str(path))
    assert again.classes == model.classes
    assert again.preprocess == preprocess
    torch.testing.assert_close(again(images), model(images).detach(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    to = tmp_path / "net.onnx"
    with pytest.raises(KonkyoError, match="size="):
        konkyo.export_cam(network(), to)
    with pytest.raises(KonkyoError, match="eigen_cam"):
        konkyo.export_cam(network(), to, method="layer_cam", size=16)
    flat = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)).eval()
    with pytest.raises(NotApplicable, match="global average pooling"):
        konkyo.export_cam(flat, to, method="grad_cam", size=16)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    konkyo_command = runner("", "", tmp_path, monkeypatch, capsys)
    outcome = konkyo_command("export-cam", "--method", "cam", "--class", "taxi", "--out", "scenes.onnx")
    assert outcome.code == 0, outcome.err
    assert "scenes.onnx: images -> logits, maps (cam)" in outcome.out
    assert "taxi" in konkyo.load(str(tmp_path / "scenes.onnx")).classes
    told(konkyo_command("export-cam", "--out", "net.bin"), ".onnx")

"""Black boxes: functions, ONNX files and sessions of which nothing is known but what they put out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo import KonkyoError, NotApplicable


def network(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
    ).eval()


def as_function(module: nn.Module, calls: list[tuple[int, ...]]) -> Any:
    def predict(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        calls.append(images.shape)
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return predict


@pytest.mark.parametrize("batch", [None, 1, 3, 8])
def test_maps_are_those_of_the_network_itself(batch: int | None) -> None:
    module, calls = network(), list[tuple[int, ...]]()
    box = konkyo.Model(konkyo.BlackBox(as_function(module, calls), batch=batch))
    images = torch.rand(2, 3, 16, 16)
    for method, options in (("rise", {"masks": 30}), ("occlusion", {"window": 4, "stride": 2})):
        expected = konkyo.explain(module, images, method=method, target=1, **options)
        result = konkyo.explain(box, images, method=method, target=1, **options)
        torch.testing.assert_close(result.signed, expected.signed, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result.scores, expected.scores)
    if batch is not None:
        assert {shape[0] for shape in calls} == {batch}


def test_forwards_are_counted() -> None:
    calls = list[tuple[int, ...]]()
    box = konkyo.Model(konkyo.BlackBox(as_function(network(), calls), batch=5))
    konkyo.explain(box, torch.rand(1, 3, 16, 16), method="rise", target=0, masks=32)
    # The image, the first variant alone, whether a batch's images see each other, whether numbers are probabilities.
    assert math.ceil(32 / 5) + 1 <= len(calls) <= math.ceil(31 / 5) + 4


def test_methods_that_read_inside_are_not_on_offer() -> None:
    box = konkyo.Model(as_function(network(), []))
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(NotApplicable, match=r"black box, .* on offer: .*rise"):
        konkyo.explain(box, images, target=0)
    results = konkyo.explanations(
        box,
        images,
        list(konkyo.methods()),
        target=0,
        options={"masks": 8, "window": 4, "stride": 2, "evaluations": 6, "designs": 8, "grid": 2}
        | {"samples": 4, "permutations": 1, "count": 4, "segments": "grid"},
    )
    applicable = {name for name, result in results.items() if isinstance(result, konkyo.Explanation)}
    assert applicable >= {"rise", "occlusion", "edge_map"}
    assert applicable == {name for name, m in konkyo.methods().items() if not m.needs_inside()} - {"d_rise"}


def test_bytes_with_channels_last() -> None:
    seen = list[np.ndarray[Any, Any]]()

    def predict(images: np.ndarray[Any, Any]) -> list[list[float]]:
        seen.append(images)
        return [[float(image[..., 0].mean()), float(image[..., 2].mean())] for image in images]

    box = konkyo.BlackBox(predict, form="uint8 NHWC")
    images = torch.randint(0, 256, (2, 3, 4, 6)) / 255
    output = konkyo.Model(box)(images)
    assert seen[0].dtype == np.uint8
    assert seen[0].shape == (2, 4, 6, 3)
    assert np.array_equal(seen[0], (images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(output, (images[:, [0, 2]] * 255).mean((2, 3)))


def test_tensors_and_named_outputs() -> None:
    module = network()

    def predict(images: Tensor) -> dict[str, Tensor]:
        assert not images.requires_grad
        return {"logits": module(images), "features": images.mean((2, 3))}

    images = torch.rand(3, 3, 8, 8)
    box = konkyo.Model(konkyo.BlackBox(predict, batch=2, tensors=True))
    torch.testing.assert_close(box(images), module(images).detach())
    other = konkyo.Model(konkyo.BlackBox(predict, tensors=True), select=lambda output: output["features"])
    torch.testing.assert_close(other(images), images.mean((2, 3)))


def test_what_is_no_black_box() -> None:
    images = torch.rand(2, 3, 8, 8)
    for wrong, message in (
        (lambda x: np.zeros((1, 3)), "an entry per image, 2 here"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
        (lambda x: np.float32(3), "scores"),
    ):
        with pytest.raises(KonkyoError, match=message):
            konkyo.Model(wrong)(images)
    with pytest.raises(KonkyoError, match="a function of images"):
        konkyo.Model(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="float NCHW"):
        konkyo.BlackBox(len, form="CHW")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="batch"):
        konkyo.BlackBox(len, batch=0)


def exported(module: nn.Module, path: Path, batch: int | str, size: int = 16) -> Path:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    helper, tensor = onnx.helper, onnx.TensorProto
    convolution, _, _, _, linear = module.children()
    weights = {
        "w": convolution.weight, "b": convolution.bias, "v": linear.weight, "c": linear.bias,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", tensor.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", tensor.FLOAT, [batch, 3])],
        [onnx.numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_onnx_files_with_free_and_fixed_batches(tmp_path: Path, batch: int | str) -> None:
    module = network()
    model = konkyo.load(str(exported(module, tmp_path / "net.onnx", batch)))
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(model(images), module(images).detach(), rtol=1e-4, atol=1e-5)
    expected = konkyo.explain(module, images, method="rise", target=2, masks=20)
    result = konkyo.explain(model, images, method="rise", target=2, masks=20)
    torch.testing.assert_close(result.signed, expected.signed, rtol=1e-4, atol=1e-5)


def test_sessions_are_models(tmp_path: Path) -> None:
    module = network()
    path = exported(module, tmp_path / "net.onnx", "N")
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
    images = torch.rand(2, 3, 16, 16)
    result = konkyo.explain(session, images, method="occlusion", target=0, window=4, stride=2)
    assert result.scores.tolist() == pytest.approx(module(images).softmax(1)[:, 0].tolist(), abs=1e-5)
    named = konkyo.Model(session, classes=("a", "b", "c"))
    assert konkyo.explain(named, images, method="occlusion", target="b", window=4, stride=2).labels == ("b", "b")


def test_files_that_are_no_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(KonkyoError, match="no file"):
        konkyo.load(str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(KonkyoError, match="no ONNX network"):
        konkyo.load(str(tmp_path / "bad.onnx"))


def test_metrics_take_black_boxes() -> None:
    module = network()
    box = konkyo.Model(as_function(module, []))
    images = torch.rand(1, 3, 16, 16)
    result = konkyo.explain(box, images, method="occlusion", target=1, window=4, stride=2)

    def score(of: konkyo.Model | nn.Module) -> Any:
        model = of if isinstance(of, konkyo.Model) else konkyo.Model(of)
        return lambda variants, rows: model(variants)[:, 1].detach()

    values = [konkyo.metrics.deletion(result.maps, images=images, score=score(of)) for of in (box, module)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)


def test_bytes_are_made_of_colours_from_0_to_1() -> None:
    box = konkyo.BlackBox(lambda images: images.mean((1, 2)), form="uint8 NHWC")
    with pytest.raises(KonkyoError, match="mean is 0 and std is 1"):
        konkyo.Model(box, konkyo.Preprocess())
    assert konkyo.Model(box, konkyo.Preprocess(8, 8, (0.0,) * 3, (1.0,) * 3))(torch.ones(1, 3, 4, 4)).max() == 255

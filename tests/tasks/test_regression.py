"""Regressors: numbers with names and units, of no class, whose evidence raises or lowers them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.embedders import noise
from helpers.networks import seeded
from konkyo.explanation.words import score_in_words

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


class Numbers(nn.Module):
    """A convolution, pooling and a linear layer: `count` numbers, or (N,) where it is squeezed."""

    def __init__(self, count: int = 2, *, squeezed: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, count)
        self.squeezed = squeezed

    def forward(self, x: Tensor) -> Tensor:
        numbers: Tensor = self.head(self.body(x).mean((2, 3)))
        return numbers[:, 0] if self.squeezed else numbers


def of_torchvision() -> nn.Module:
    import torchvision

    resnet = torchvision.models.resnet
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=2)


def of_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    network: nn.Module = timm.create_model("resnet10t", num_classes=2)
    return network


def of_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1])
    config.id2label, config.problem_type = {0: "age", 1: "dose"}, "regression"
    return transformers.ResNetForImageClassification(config)  # type: ignore[no-any-return]


FAMILIES = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}


def model_of(name: str) -> konkyo.Model:
    network = seeded(FAMILIES[name]())
    if name == "transformers":
        return konkyo.Model(network)
    return konkyo.Model(network, classes=("age", "dose"), task=konkyo.RegressionTask(units=("years", "mg")))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_evidence_sums_to_the_number_without_its_bias(name: str) -> None:
    """The head is linear in the last features, so sum_k G_k A_k sums to y - b: both signs are evidence."""
    model, x = model_of(name), noise(2)
    result = konkyo.explain(model, x, method="hires_cam", target="Dose")
    output = model(x).detach()
    biases = [p for n, p in model.module.named_parameters() if p.shape == (2,) and n.endswith("bias")]
    close(result.scores, output[:, 1])
    torch.testing.assert_close(
        result.maps.sum((1, 2)).double(), output[:, 1] - biases[-1][1].detach(), rtol=1e-4, atol=1e-5
    )
    lower = konkyo.explain(model, x, method="hires_cam", target=konkyo.Against("dose"))
    close(lower.maps, -result.maps)
    assert lower.labels == ("lower dose", "lower dose")
    assert isinstance(model.task, konkyo.RegressionTask)


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_the_slopes_of_finite_differences(name: str) -> None:
    model, x = model_of(name), noise(1)
    result = konkyo.explain(model, x, method="gradient", target=konkyo.Output(0))
    for row, column in ((12, 40), (50, 9)):
        numbers = []
        for step in (1e-5, -1e-5):
            moved = x.clone()
            moved[0, :, row, column] += step
            numbers.append(float(model(moved)[0, 0].detach()))
        assert float(result.maps[0, row, column]) == pytest.approx((numbers[0] - numbers[1]) / 2e-5, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("squeezed", [True, False])
def test_one_number_has_no_name_to_give(squeezed: bool) -> None:
    network, x = seeded(Numbers(1, squeezed=squeezed)), noise(2, 32)
    model = konkyo.Model(network, task=konkyo.RegressionTask(units="years"))
    result = konkyo.explain(model, x, method="hires_cam")
    close(result.scores, network(x).detach().flatten())
    assert result.labels == ("the estimate",) * 2
    assert score_in_words(result, 0) == f"the estimate {float(result.scores[0]):.4g} years"
    assert result.decisions == (None, None)


def test_all_numbers_are_rows_where_none_is_named() -> None:
    model, x = model_of("torchvision"), noise(1)
    result = konkyo.explain(model, x, method="hires_cam")
    assert result.labels == ("age", "dose")
    assert [target.unit for target in result.targets] == ["years", "mg"]  # type: ignore[union-attr]


def test_numbers_are_columns_however_they_are_shaped() -> None:
    numbers = torch.arange(6.0)
    assert konkyo.Output(0)(numbers).tolist() == numbers.tolist()
    for shape in ((2, 3), (2, 3, 1, 1)):
        assert konkyo.Output(1)(numbers.view(shape)).tolist() == [1, 4]


def test_an_estimate_of_1_is_no_saturated_probability() -> None:
    network = seeded(Numbers(1))
    network.head.weight.data.mul_(1e-4)
    network.head.bias.data.fill_(1.0)
    result = konkyo.explain(konkyo.Model(network, task=konkyo.RegressionTask()), noise(1, 32), method="hires_cam")
    assert float(result.scores) == pytest.approx(1, abs=1e-3)
    assert [diagnosis.kind for diagnosis in result.diagnosis] == ["ok"]


@pytest.mark.parametrize("reference", ["image", "number"])
def test_what_a_number_is_relative_to_is_taken_off(reference: str) -> None:
    """Integrated Gradients from a baseline sum to y - y', the score that is relative to that baseline."""
    model, x, blank = model_of("torchvision"), noise(1), torch.zeros(1, 3, 64, 64).double()
    own = float(model(blank)[0, 0].detach())
    target = konkyo.Output("age", relative_to=blank if reference == "image" else own)
    result = konkyo.explain(model, x, method="integrated_gradients", target=target, steps=200)
    assert float(result.scores) == pytest.approx(float(model(x)[0, 0].detach()) - own, abs=1e-6)
    assert float(result.maps.sum()) == pytest.approx(float(result.scores), rel=0.02)
    assert score_in_words(result, 0).endswith(f"from {own:.4g}")


def test_outputs_are_kept_in_files_and_pickles(tmp_path: Path) -> None:
    model, x = model_of("torchvision"), noise(1)
    result = konkyo.explain(model, x, target=konkyo.Output("dose", relative_to=1.5))
    loaded = konkyo.Explanation.load(result.save(tmp_path / "r.safetensors"))
    assert loaded.targets == result.targets == (konkyo.Output(1, "dose", "mg", 1.5),)
    assert pickle.loads(pickle.dumps(result.targets)) == result.targets
    assert hash(loaded.targets) == hash(result.targets)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("positive", "age, dose"),
        ("cat", "age, dose"),
        (2, r"output 2 of ResNet, which estimates 2"),
        (konkyo.TopK(1), "TopK"),
        (1.5, "konkyo.Output"),
        (konkyo.Output("height"), "age, dose"),
    ],
)
def test_a_regressor_has_no_classes(request_: Any, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(model_of("torchvision"), noise(1), target=request_)


def test_names_and_units_fit_the_numbers() -> None:
    x = noise(1, 32)
    with pytest.raises(konkyo.KonkyoError, match="without names, and has no classes"):
        konkyo.explain(konkyo.Model(seeded(Numbers()), task=konkyo.RegressionTask()), x, target="age")
    with pytest.raises(konkyo.KonkyoError, match="3 names for Numbers, which estimates 2"):
        konkyo.explain(konkyo.Model(seeded(Numbers()), classes=("a", "b", "c"), task=konkyo.RegressionTask()), x)
    with pytest.raises(konkyo.KonkyoError, match="3 units for 2 numbers"):
        konkyo.explain(konkyo.Model(seeded(Numbers()), task=konkyo.RegressionTask(("a", "b", "c"))), x)
    with pytest.raises(konkyo.KonkyoError, match="shape"):
        konkyo.explain(konkyo.Model(Numbers().body, task=konkyo.RegressionTask()), x.float())


def test_deviation_is_the_distance_from_the_number_on_the_whole_image() -> None:
    """The score is the sum of the pixels, so after t of T steps of a sorted map the curve is known."""
    from konkyo.metrics.faithfulness import deviation

    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0], image[0, 0, 3, 3] = 3.0, -1.0  # raises, lowers
    maps = image[:, 0].clone()
    curve = deviation.function(maps, image, lambda x, rows: x.sum((1, 2, 3)), steps=16, substrate="zero")  # type: ignore[call-arg, misc]
    expected = torch.tensor([0.0, 3.0, *[2.0] * 15]) / 2
    torch.testing.assert_close(curve[0], expected)
    flat = deviation.function(maps, image, lambda x, rows: x.sum((1, 2, 3)) * 0, steps=4, substrate="zero")  # type: ignore[call-arg, misc]
    assert flat.isnan().all()

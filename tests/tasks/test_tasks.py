"""The door of a task: one that is defined here goes all the way, and no other file knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.commands import runner
from helpers.detectors import noise
from konkyo.data import Sample
from konkyo.evaluation.evaluate import evaluate
from konkyo.targets.base import BaseTarget, Target
from konkyo.tasks import TASKS, Classes, Task, task

SIZE = (24, 32)


@dataclass(frozen=True)
class Value(BaseTarget):
    """What makes the number large, or with the other sign small; or both, which two maps are made of."""

    sign: int = 1
    both: bool = False

    def __call__(self, output: Tensor) -> Tensor:
        return self.sign * output[:, 0]

    def details(self) -> dict[str, Any]:
        return {"sign": self.sign}

    def in_words(self, label: str, score: float) -> str:
        return f"{label} = {score:.2f}"


@dataclass(frozen=True)
class AgeTask(Task):
    """One number per image."""

    noun: ClassVar[str] = "regressor"
    method: ClassVar[str] = "hires_cam"
    methods: ClassVar[tuple[str, ...]] = ("hires_cam", "eigen_cam")
    preprocessing: ClassVar[Mapping[str, Any]] = {"resize": SIZE, "crop": None}

    def resolve(
        self, request: Any, output: Tensor, classes: Classes, *, score: str = "logit", to_picture: Any = ()
    ) -> list[list[Target]]:
        return [[Value() if request is None else request]] * len(output)

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        if not isinstance(target, Value):
            return super().label(target, classes, outputs)
        return "age" if target.sign > 0 else "youth"

    def parts(self, target: Target) -> list[Target]:
        return [Value(1), Value(-1)] if isinstance(target, Value) and target.both else [target]

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        return {"sign": target.sign, "both": target.both} if isinstance(target, Value) else None

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        return Value(**values) if values.keys() == {"sign", "both"} else None


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    before = dict(TASKS)
    task(AgeTask)
    yield
    TASKS.clear()
    TASKS.update(before)


class Network(nn.Module):
    """A number, in a list as no classifier has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 4, 3, 2, 1), nn.Tanh())
        self.head = nn.Linear(4, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.head(self.body(images).mean((2, 3)))]


def regressor() -> konkyo.Model:
    preprocess = konkyo.Preprocess(SIZE, None)
    return konkyo.Model(Network().double().eval(), preprocess, name="ages", select=lambda o: o[0], task=AgeTask())


def image(seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))


def by_hand(network: Network, images: Tensor) -> Tensor:
    """HiResCAM of the number at the end of the body."""
    grid = network.body(images).detach().requires_grad_()
    value = network.head(grid.mean((2, 3))).sum()
    (gradient,) = torch.autograd.grad(value, grid)
    return (gradient * grid).sum(1).detach()


def test_a_task_of_one_s_own_is_explained() -> None:
    model, images = regressor(), noise(2)
    result = konkyo.explain(model, images, method="hires_cam")
    assert result.targets == (Value(), Value())
    assert result.labels == ("age", "age")
    assert result.boxes is None
    assert result.layer == "body"
    torch.testing.assert_close(result.scores.double(), model.module(images)[0][:, 0], rtol=1e-6, atol=1e-6)
    expected = by_hand(model.module, images).relu() if result.rectified else by_hand(model.module, images)
    torch.testing.assert_close(result.maps.double(), expected, rtol=1e-5, atol=1e-7)


def test_what_is_asked_for_of_each_image_goes_to_the_task() -> None:
    model, images = regressor(), noise(2)
    youth = konkyo.explain(model, images, method="hires_cam", target=Value(-1))
    assert youth.labels == ("youth", "youth")
    torch.testing.assert_close(youth.signed.double(), -by_hand(model.module, images), rtol=1e-5, atol=1e-7)
    assert model.label(konkyo.Against(Value())) == "against age"
    assert model.label(konkyo.ContrastTarget(Value(), Value(-1))) == "age, not youth"
    assert model.label(len) == "len"


def test_lists_and_each_are_taken_apart_for_every_task() -> None:
    model, images = regressor(), noise(2)
    listed = konkyo.explain(model, images, target=[Value(-1), None])
    assert listed.labels == ("youth", "age")
    several = konkyo.explain(model, images, target=konkyo.Each(Value(), Value(-1)))
    assert several.labels == ("age", "youth") * 2
    assert several.image_index.tolist() == [0, 0, 1, 1]
    with pytest.raises(konkyo.KonkyoError, match="one entry per image: 2 expected, 1 came"):
        konkyo.explain(model, images, target=[Value()])


def test_a_combination_is_made_of_the_maps_of_its_parts() -> None:
    model, images = regressor(), noise()
    whole = konkyo.explain(model, images, method="grad_cam", target=Value(both=True))
    assert (len(whole), whole.targets, whole.labels) == (1, (Value(both=True),), ("age",))
    parts = [konkyo.explain(model, images, method="grad_cam", target=Value(sign)) for sign in (1, -1)]
    largest = torch.stack([part.unit()[0] for part in parts]).amax(0)
    torch.testing.assert_close(whole.maps[0], largest)
    assert not torch.equal(whole.maps[0], parts[0].unit()[0])
    assert whole.scores.item() == parts[0].scores.item()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_its_targets_come_back_from_a_file(suffix: str, tmp_path: Path) -> None:
    result = konkyo.explain(regressor(), noise(), target=Value(-1))
    path = result.save(tmp_path / f"map{suffix}")
    again = konkyo.Explanation.load(path)
    assert (again.targets, again.labels) == ((Value(-1),), ("youth",))
    del TASKS["AgeTask"]
    with pytest.raises(konkyo.KonkyoError, match="no task knows a target with sign, both"):
        konkyo.Explanation.load(path)


def test_it_is_measured() -> None:
    model = regressor()
    samples = [Sample("a", image(1)), Sample("b", image(2), "12")]
    table = evaluate(model, samples, ["hires_cam"], ["deletion(steps=2)", "insertion(steps=2)"])
    numbers = [model(model.prepared(model.preprocess(s.image)[None])).item() for s in samples]
    assert [row.label for row in table.rows] == ["age", "age"]
    assert [row.score for row in table.rows] == pytest.approx(numbers, rel=1e-5)
    curves = table.statistics["hires_cam", "deletion(steps=2)"]
    assert curves[:, 0].tolist() == pytest.approx(numbers, rel=1e-5)  # nothing deleted: the image's own number
    assert [c.name for c in evaluate(model, samples[:1], ["eigen_cam"]).columns] == ["deletion", "insertion"]


def test_methods_of_detections_have_no_place_there() -> None:
    for request in ({"method": "d_rise", "masks": 4}, {"method": "grad_cam", "target": konkyo.Detections()}):
        with pytest.raises(konkyo.NotApplicable, match="ages is no detector"):
            konkyo.explain(regressor(), noise(), **request)
    with pytest.raises(konkyo.KonkyoError, match="ages is a regressor; consistency is measured of a classifier's maps"):
        konkyo.consistency(regressor(), [(noise(), torch.zeros(1, dtype=torch.int64))])


def test_the_command_line_knows_it_by_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner(f"from {__name__} import regressor\n", "regressor", tmp_path, monkeypatch, capsys)
    image().save(tmp_path / "face.png")
    result = run("explain", "face.png", "--json")
    assert result.code == 0, result.err
    (entry,) = result.json["images"]
    (values,) = entry["maps"]
    assert (values["method"], values["label"], values["sign"]) == ("hires_cam", "age", 1)
    assert values["explained"] == f"age = {values['score']:.2f}"
    assert sorted(entry) == sorted({*entry} - {"sheet", "nothing"})
    refused = run("explain", "face.png", "--class", "3", "--score", "0.2")
    assert refused.code == 1
    assert refused.err == "error: --class, --score: ages is a regressor, which has no use for this\n"
    compared = run("compare", "face.png", "--json")
    assert compared.json["settings"]["methods"] == ["hires_cam", "eigen_cam"]

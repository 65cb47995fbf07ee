"""What an output means is said by a task: the two of the package, and one that stands in this file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.detectors import dense, noise
from helpers.networks import SmallResNet, images, seeded
from konkyo.data.samples import Annotation, Sample
from konkyo.targets.base import BaseTarget, Target, as_target
from konkyo.tasks import TASKS, Classes, ClassificationTask, DetectionTask, Task, task
from konkyo.tasks.base import Matching, TargetRequest

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


@dataclass(frozen=True)
class Quantity(BaseTarget):
    """One of the numbers that a network estimates."""

    column: int

    def __call__(self, output: Tensor) -> Tensor:
        return output[:, self.column]

    def details(self) -> dict[str, Any]:
        return {"unit": "cm"}

    def in_words(self, label: str, score: float) -> str:
        return f"{label} = {score:.1f} cm"


@dataclass(frozen=True)
class RegressionTask(Task):
    """The numbers (N, K) of an image, each explained on its own."""

    noun: ClassVar[str] = "regressor"
    names: tuple[str, ...] = ("height", "width")

    def targets(
        self,
        request: Any,
        output: Tensor,
        classes: Classes,
        *,
        score: str = "logit",
        frames: Sequence[Any] = (),
    ) -> list[list[Target]]:
        del classes, score, frames
        if request is None:
            return [[Quantity(column) for column in range(len(self.names))]] * len(output)
        if callable(request):
            return [[request]] * len(output)
        if request not in self.names:
            raise konkyo.KonkyoError(f"a quantity is one of {', '.join(self.names)}; got {request!r}")
        return [[Quantity(self.names.index(request))]] * len(output)

    def confidences(self, output: Tensor) -> Tensor:
        return output[:, :1]

    def label(self, target: Target, classes: Classes, outputs: int | None = None) -> str:
        if isinstance(target, Quantity):
            return self.names[target.column]
        return super().label(target, classes, outputs)

    @staticmethod
    def saved(target: Target) -> dict[str, Any] | None:
        return {"column": target.column} if isinstance(target, Quantity) else None

    @staticmethod
    def restored(values: Mapping[str, Any]) -> Target | None:
        return Quantity(**values) if values.keys() == {"column"} else None

    def request(self, options: TargetRequest, model: str) -> Any:
        return options.classes[0] if options.classes else super().request(options, model)


@pytest.fixture
def registered() -> Iterator[None]:
    task(RegressionTask)
    yield
    del TASKS["RegressionTask"]


@pytest.fixture
def model() -> konkyo.Model:
    prepared = konkyo.Preprocess(32, 32, (0.5,) * 3, (0.5,) * 3)
    return konkyo.Model(seeded(SmallResNet(classes=2), double=False), prepared, name="ruler", task=RegressionTask())


# --- a third task needs nothing but its file --------------------------------------------------------------------------


def test_every_quantity_is_explained_as_a_callable_would_be(model: konkyo.Model) -> None:
    x = images(2, double=False)
    result = konkyo.explain(model, x)
    assert result.labels == ("height", "width") * 2
    assert result.image_index.tolist() == [0, 0, 1, 1]
    assert result.boxes is None
    for column in range(2):
        plain = konkyo.explain(model.module, x, target=lambda output, column=column: output[:, column])
        assert torch.equal(result.signed[column::2], plain.signed)
        assert torch.equal(result.scores[column::2], model(x)[:, column].detach())


def test_a_quantity_is_asked_for_by_its_name(model: konkyo.Model) -> None:
    result = konkyo.explain(model, images(1, double=False), target="width", method="score_cam")
    assert result.targets == (Quantity(1),)
    with pytest.raises(konkyo.KonkyoError, match="one of height, width; got 'depth'"):
        konkyo.explain(model, images(1, double=False), target="depth")


def test_what_only_detectors_have_does_not_apply(model: konkyo.Model) -> None:
    with pytest.raises(konkyo.NotApplicable, match="no detector"):
        konkyo.explain(model, images(1, double=False), method="d_rise", masks=2)


def test_lists_and_each_are_taken_apart_for_every_task(model: konkyo.Model) -> None:
    x = images(2, double=False)
    assert konkyo.explain(model, x, target=["width", "height"]).labels == ("width", "height")
    assert konkyo.explain(model, x, target=[Quantity(1), None]).labels == ("width", "height", "width")
    several = konkyo.explain(model, x, target=konkyo.Each("width", Quantity(0)))
    assert several.labels == ("width", "height") * 2
    assert several.image_index.tolist() == [0, 0, 1, 1]
    with pytest.raises(konkyo.KonkyoError, match="one entry per image: 2 expected, 1 came"):
        konkyo.explain(model, x, target=["width"])


@pytest.mark.parametrize("entry", [None, konkyo.TopK(2), konkyo.Each(1), [1]])
def test_within_a_list_a_classifier_takes_classes_only(entry: Any) -> None:
    classifier = konkyo.Model(seeded(SmallResNet(), double=False))
    requests = [[entry]] if isinstance(entry, list) else [[entry], konkyo.Each(entry)]
    for request in requests:
        with pytest.raises(konkyo.KonkyoError, match="a target is a class index"):
            classifier.targets(request, torch.zeros(1, 5))


@pytest.mark.parametrize("metric", ["max_sensitivity(samples=2)", "coherency"])
def test_metrics_that_explain_again_measure_it_too(model: konkyo.Model, metric: str) -> None:
    samples = [Sample("a", Image.effect_noise((32, 32), 80).convert("RGB"))]
    table = konkyo.evaluate(model, samples, ["grad_cam"], [metric])
    assert [row.explained for row in table.rows] == ["height", "width"]
    assert table.statistics["grad_cam", metric].isfinite().all()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_its_targets_are_saved_and_loaded(model: konkyo.Model, tmp_path: Path, suffix: str) -> None:
    result = konkyo.explain(model, images(1, double=False))
    loaded = konkyo.Explanation.load(result.save(tmp_path / f"maps.{suffix}"))
    assert loaded.targets == (Quantity(0), Quantity(1))
    assert loaded.labels == result.labels


def test_without_its_registration_targets_are_loaded_as_words(model: konkyo.Model, tmp_path: Path) -> None:
    loaded = konkyo.Explanation.load(konkyo.explain(model, images(1, double=False)).save(tmp_path / "maps.npz"))
    assert all(isinstance(target, str) for target in loaded.targets)


def test_it_is_measured_by_its_own_columns(model: konkyo.Model) -> None:
    pictures = [
        Sample(str(i), Image.effect_noise((32, 32), 80 + i).convert("RGB"), None, (Annotation("height"),))
        for i in range(3)
    ]
    table = konkyo.evaluate(model, pictures, ["grad_cam"])
    assert [name.split("@")[0] for name in table.settings["metrics"]] == ["deletion", "insertion"]
    assert "grad_cam" in str(table.table())


def test_it_speaks_for_itself_on_the_command_line(
    model: konkyo.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import konkyo.models
    from konkyo.apps.cli import main as cli

    Image.effect_noise((32, 32), 90).convert("RGB").save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(konkyo.models, "load", lambda *_, **__: model)
    monkeypatch.setattr("sys.argv", ["konkyo", "explain", "a.png", "--model", "ruler", "--class", "width"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    score = float(konkyo.explain(model, Image.open("a.png").convert("RGB"), target="width").scores)
    assert f"a.png: width = {score:.1f} cm" in capsys.readouterr().out
    assert json.loads(Path("konkyo-out/manifest.json").read_text())["images"][0]["maps"][0]["unit"] == "cm"
    monkeypatch.setattr("sys.argv", ["konkyo", "explain", "a.png", "--model", "ruler", "--top", "2", "--out", "b"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--top: ruler is a regressor, which has no use for this" in " ".join(capsys.readouterr().err.split())


# --- the two of the package -------------------------------------------------------------------------------------------


def test_a_model_has_the_task_that_its_keywords_say() -> None:
    network = seeded(SmallResNet(), double=False)
    assert konkyo.Model(network).task == ClassificationTask()
    assert konkyo.Model(network, multilabel=True).task == ClassificationTask(multilabel=True)
    detector = dense()
    assert isinstance(detector.task, DetectionTask)
    assert detector.task.adapter is detector.detector
    renamed = replace(detector, name="another")
    assert (renamed.task, renamed.name) == (detector.task, "another")
    assert replace(konkyo.Model(network, multilabel=True), name="x").multilabel


def test_both_are_registered_and_say_what_is_usual() -> None:
    assert set(TASKS) >= {"ClassificationTask", "DetectionTask"}
    for kind in TASKS.values():
        assert set(kind.methods) <= set(konkyo.methods())
        assert kind.method in konkyo.methods()
        assert kind.noun


def test_a_trace_follows_what_the_task_decides_by() -> None:
    detector = dense()
    output = detector(noise(1))
    assert torch.equal(detector.task.confidences(output), output[..., -detector.task.adapter.classes :])  # type: ignore[attr-defined]
    assert torch.equal(ClassificationTask().confidences(output), output)


def test_a_saved_target_belongs_to_one_task() -> None:
    """No two tasks claim the same values, so that a file is read by the task that wrote it."""
    detector = dense()
    (detections,) = detector.targets(konkyo.Detections(threshold=0.0, top=1), detector(noise(1)))
    for target in (konkyo.ClassTarget(3, "probability"), detections[0]):
        saved = [values for kind in TASKS.values() if (values := kind.saved(target)) is not None]
        assert len(saved) == 1
        restored = [found for kind in TASKS.values() if (found := kind.restored(saved[0])) is not None]
        assert restored == [target]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (TargetRequest(threshold=0.3), "--score"),
        (TargetRequest(boxes=((0.0, 0.0, 1.0, 1.0),)), "--box"),
        (TargetRequest(quantity="x1"), "--of"),
        (TargetRequest(against="cat"), "--not goes with --class"),
    ],
)
def test_options_without_a_use_are_named(options: TargetRequest, named: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=named):
        ClassificationTask().request(options, "net")


def test_matching_by_default_is_by_the_name_of_the_class() -> None:
    annotations = [Annotation("traffic_light"), Annotation(None), Annotation("cat")]
    matches = ClassificationTask().matches(["Traffic light", "dog"], None, annotations, Matching())
    assert matches == [(0, 1), (1,)]


def test_a_callable_of_the_users_answers_with_the_defaults() -> None:
    target = as_target(lambda output: output.sum(1))
    assert (target.class_index, target.class_logit, target.location(), target.details()) == (None, None, None, {})
    assert as_target(konkyo.ClassTarget(2)).class_index == 2
    assert konkyo.Against(konkyo.ClassTarget(2)).class_logit is None
    x = torch.randn(3, 4)
    assert torch.equal(target(x), x.sum(1))


def test_a_network_without_a_task_of_its_own_is_a_classifier() -> None:
    class Headless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(konkyo.KonkyoError, match=r"no class to explain in an output of shape \(1, 3, 8, 8\)"):
        konkyo.Model(Headless()).decisions(torch.zeros(1, 3, 8, 8))

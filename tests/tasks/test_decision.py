"""What the model decided stands beside what was asked: class, probability, rank; in results, files and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.detectors import dense, noise
from konkyo.tasks.decision import Decision, decisions_of_classes

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


class Fixed(nn.Module):
    """A network whose logits are these for every image, and depend on it a little."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, len(logits))
        self.head.weight.data.mul_(1e-6)
        self.head.bias.data.copy_(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((-2, -1)))


def model(logits: list[float], names: tuple[str, ...] = (), **more: Any) -> konkyo.Model:
    return konkyo.Model(Fixed(logits), konkyo.Preprocess(8, 8), names, "fixed", **more)


def decision(logits: list[float], target: Any, names: tuple[str, ...] = (), **more: Any) -> Decision | None:
    result = konkyo.explain(model(logits, names, **more), torch.ones(1, 3, 8, 8), target=target)
    assert len(result.decisions) == 1
    return result.decisions[0]


LUNG = ("healthy", "pneumonia")


def test_a_class_that_was_asked_for_stands_beside_the_decision() -> None:
    logits = [3.0, -1.0]
    found = decision(logits, "pneumonia", LUNG)
    assert found is not None
    probability = torch.tensor(logits).softmax(0).tolist()
    assert (found.index, found.label, found.rank) == (0, "healthy", 2)
    assert found.probability == pytest.approx(probability[0], abs=1e-4)
    assert found.asked_probability == pytest.approx(probability[1], abs=1e-4)
    assert not found.agrees
    assert (found.of_the_asked, found.of_the_model) == ("P 0.02, rank 2", "decided: healthy (P 0.98)")
    own = decision(logits, None, LUNG)
    assert own is not None
    assert own.agrees
    assert (own.rank, own.asked_probability) == (1, own.probability)


@pytest.mark.parametrize("method", ["grad_cam", "occlusion", "recipro_cam", "eigen_cam"])
def test_every_method_has_the_decision(method: str) -> None:
    result = konkyo.explain(model([0.0, 1.0, 2.0]), torch.ones(2, 3, 8, 8), method=method, target=konkyo.TopK(3))
    assert [d.rank for d in result.decisions if d] == [1, 2, 3, 1, 2, 3]
    assert {d.label for d in result.decisions if d} == {"class 2"}


@pytest.mark.parametrize(
    ("target", "rank", "index"),
    [
        (konkyo.ClassTarget(1, "probability"), 2, 0),
        (konkyo.ContrastTarget(konkyo.ClassTarget(1), konkyo.ClassTarget(0)), 2, 0),
        (konkyo.Against(konkyo.ClassTarget(1)), None, 0),
        (lambda output: output[:, 1] * 2, None, 0),
        ([1], 2, 0),
        (konkyo.Each(1), 2, 0),
    ],
)
def test_all_kinds_of_targets(target: Any, rank: int | None, index: int) -> None:
    found = decision([3.0, -1.0], target, LUNG)
    assert found is not None
    assert (found.index, found.rank, found.asked_probability is None) == (index, rank, rank is None)


@pytest.mark.parametrize(("logit", "asked"), [(2.0, 0), (2.0, 1), (-2.0, 0), (-2.0, 1), (0.0, 0), (0.0, 1)])
def test_one_logit_is_two_classes(logit: float, asked: int) -> None:
    found = decision([logit], asked)
    assert found is not None
    positive = torch.tensor(logit).sigmoid().item()
    assert found.asked_probability == pytest.approx(positive if asked else 1 - positive, abs=1e-4)
    assert found.probability == pytest.approx(max(positive, 1 - positive), abs=1e-4)
    if logit:
        assert found.label == ("positive" if logit > 0 else "negative")
        assert found.agrees == (asked == int(logit > 0))


def test_classes_that_do_not_exclude_each_other() -> None:
    names, logits = ("edema", "effusion", "mass"), [1.0, 2.0, -3.0]
    of = {name: decision(logits, name, names, multilabel=True) for name in names}
    found = [of[name] for name in names]
    assert all(d is not None for d in found)
    assert [d.asked_probability for d in found if d] == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-4)
    assert [d.agrees for d in found if d] == [True, True, False]  # edema is decided, too, though it is second
    nothing = decision([-2.0, -3.0, -4.0], None, names, multilabel=True)
    assert nothing is not None
    assert not nothing.agrees
    assert nothing.of_the_model == "decided: nothing; highest edema (P 0.12)"


def test_where_there_is_no_class_there_is_no_decision() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(images).relu())

    dense_map = konkyo.explain(Dense(), torch.rand(2, 3, 8, 8), target=lambda o: o[:, 0].mean((1, 2)), layer="body")
    assert dense_map.decisions == (None, None)
    embedding = konkyo.explain(model([1.0, 2.0]), torch.ones(1, 3, 8, 8), target=lambda o: o.norm(dim=1))
    assert embedding.decisions == (None,)
    assert embedding.brightness(0) == 1
    broken = konkyo.explain(model([1.0, float("nan")], LUNG), torch.ones(1, 3, 8, 8), target=0)
    assert broken.decisions == (None,)


def test_of_equal_scores_the_asked_one_is_the_decision() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0]] * 3)
    found = decisions_of_classes(scores, scores.softmax(1), [0, 1, 2], str)
    assert [(d.index, d.rank) for d in found if d][:2] == [(0, 1), (1, 1)]
    assert found[2] is not None
    assert found[2].rank == 3


def test_a_masked_class_is_no_obstacle_and_certainty_keeps_its_order() -> None:
    scores = torch.tensor([[200.0, 100.0, -torch.inf]])
    (found,) = decisions_of_classes(scores, scores.softmax(1), [1], str)
    assert found is not None
    assert (found.index, found.rank, found.asked_probability) == (0, 2, pytest.approx(0))
    sure = torch.tensor([[90.0, 100.0]])
    (both,) = decisions_of_classes(sure, sure.sigmoid(), [0], str, exclusive=False)  # both are 1 in single precision
    assert both is not None
    assert (both.index, both.rank, both.agrees) == (1, 2, True)


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "0.00"),
        (1e-9, "1e-09"),
        (0.004, "< 0.01"),
        (0.02, "0.02"),
        (0.994, "0.99"),
        (0.9999, "> 0.99"),
        (1, "1.00"),
    ],
)
def test_what_is_possible_does_not_become_0_nor_what_is_not_certain_1(probability: float, words: str) -> None:
    assert Decision(0, "a", 0.5, 2, probability).of_the_asked == f"P {words}, rank 2"


def test_detections_have_the_class_of_their_own_candidate() -> None:
    detector, images = dense(), noise(2)
    result = konkyo.explain(detector, images, method="odam", target=konkyo.Detections(threshold=0.0, top=4))
    probabilities = detector(images).detach()[..., -3:]
    for row, found in enumerate(result.decisions):
        target: Any = result.targets[row]
        of_candidate = probabilities[int(result.image_index[row]), target.index]
        assert found is not None
        assert found.index == int(of_candidate.argmax())
        assert found.probability == pytest.approx(float(of_candidate.max()))
        assert found.asked_probability == pytest.approx(float(of_candidate[target.label]))
        assert found.rank == 1 + int((of_candidate > of_candidate[target.label]).sum())
    elsewhere = konkyo.explain(detector, images.flip(0)[:1], method="odam", target=result.targets[0])
    (moved,) = elsewhere.decisions
    assert moved is None or moved.asked_probability == pytest.approx(elsewhere.scores[0].item(), abs=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_files_keep_it_and_older_ones_load_without(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = konkyo.explain(model([3.0, -1.0], LUNG), torch.ones(1, 3, 8, 8), target=konkyo.Each(1, lambda o: o[:, 0]))
    loaded = konkyo.Explanation.load(result.save(tmp_path / f"new{suffix}"))
    assert loaded.decisions == result.decisions
    json.dumps(result.description(), allow_nan=False)
    description = {k: v for k, v in result.description().items() if k != "decisions"}
    monkeypatch.setattr("konkyo.explanation.files.description", lambda _: description)
    older = konkyo.Explanation.load(result.save(tmp_path / f"old{suffix}"))
    assert older.decisions == ()
    assert older.brightness(0) == 1
    monkeypatch.setattr("konkyo.explanation.files.description", lambda _: description | {"decisions": [{"index": 1}]})
    with pytest.raises(konkyo.KonkyoError, match="no saved explanation"):
        konkyo.Explanation.load(result.save(tmp_path / f"odd{suffix}"))


# --- brightness -------------------------------------------------------------------------------------------------------


def covered(result: konkyo.Explanation, **style: Any) -> float:
    """How far the overlay is from the picture, on average."""
    grey = Image.new("RGB", (8, 8), "#808080")
    drawn = np.asarray(result.overlay(0, image=grey, **style), float)
    return float(np.abs(drawn - 128).mean())


def test_an_improbable_target_is_paler_unless_asked() -> None:
    certain, improbable = (
        konkyo.Explanation(
            torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)),
            False,
            torch.zeros(1),
            torch.zeros(1, dtype=torch.int64),
            ("t",),
            ("t",),
            "by_hand",
            "none",
            decisions=(Decision(0, "a", 0.98, rank, probability),),
        )
        for rank, probability in ((1, 0.98), (2, 0.02))
    )
    assert torch.equal(certain.unit(), improbable.unit())
    assert 0.1 * covered(certain) < covered(improbable) < 0.6 * covered(certain)
    assert covered(improbable, brightness="full") == pytest.approx(covered(certain, brightness="full"))
    assert covered(improbable, opacity=0.7) == covered(certain, opacity=0.7)
    assert (improbable.brightness(0), improbable.brightness(0, "full")) == (pytest.approx(0.412), 1.0)
    with pytest.raises(konkyo.KonkyoError, match="unknown brightness 'dim'"):
        covered(improbable, brightness="dim")


# --- a batch, and its images ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", konkyo.methods())
def test_an_image_of_a_batch_has_the_rows_that_it_has_alone(method: str) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"masks": 20} if method == "rise" else {}
    network = konkyo.Model(
        nn.Sequential(Fixed([0.1, 0.3, 0.2]).body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    request: dict[str, Any] = {
        "target": konkyo.TopK(2),
        "options": options,
        "budget": 20,
        "layer": "0" if method not in ("rise", "occlusion") else None,
    }
    (together,) = konkyo.explanations(network, images, [method], **request).values()
    for index in range(2):
        (alone,) = konkyo.explanations(network, images[index : index + 1], [method], **request).values()
        if isinstance(alone, konkyo.NotApplicable) or isinstance(together, konkyo.NotApplicable):
            pytest.skip(str(alone))
        part = together.of_image(index)
        torch.testing.assert_close(part.signed, alone.signed, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(part.scores, alone.scores)
        assert (part.targets, part.labels, part.options) == (alone.targets, alone.labels, alone.options)
        assert torch.equal(part.image_index, alone.image_index)
        assert [d.kind for d in part.diagnosis] == [d.kind for d in alone.diagnosis]
        assert len(part.picture(0).tobytes()) == len(alone.picture(0).tobytes())


def test_an_image_of_a_batch_of_detections_has_its_own_paths_and_boxes() -> None:
    detector, images, few = dense(), noise(2), konkyo.Detections(threshold=0.0, top=2)
    together = konkyo.explain(detector, images, method="adaptive_ig_odam", target=few)
    for index in range(2):
        part = together.of_image(index)
        alone = konkyo.explain(detector, images[index : index + 1], method="adaptive_ig_odam", target=few)
        assert part.path is not None
        assert alone.path is not None
        for name in ("alphas", "priorities", "scores", "boxes"):
            torch.testing.assert_close(getattr(part.path, name), getattr(alone.path, name), equal_nan=True)
        torch.testing.assert_close(part.boxes, alone.boxes)
    assert len(together.of_image(5)) == 0

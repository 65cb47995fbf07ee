"""Maps as teachers: the loss against literal loops, gradients against finite differences, ODAM against `explain`."""

from __future__ import annotations

import math
import runpy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.detectors import PyramidDetector, dense, noise
from helpers.losses import checked, maps
from helpers.networks import SmallResNet
from helpers.paths import EXAMPLES
from konkyo.engine.forward import scores
from konkyo.engine.layer import Layer
from konkyo.metrics.distances import Distance, on_grid
from konkyo.targets.detections import InstanceTarget
from konkyo.training.losses.consistency import LOSSES
from konkyo.training.losses.distillation import (
    InstanceMaps,
    attention_transfer,
    instance_distillation,
    map_distillation,
    odam_maps,
)
from konkyo.training.maps import TrainingMaps

ALL = konkyo.Detections(threshold=0.0, top=4)


def areas_by_hand(image: list[list[float]], size: tuple[int, int]) -> list[list[float]]:
    """The mean over each cell's area, in loops."""
    tall, wide = len(image), len(image[0])
    found = []
    for i in range(size[0]):
        row = []
        for j in range(size[1]):
            top, bottom = i * tall / size[0], (i + 1) * tall / size[0]
            left, right = j * wide / size[1], (j + 1) * wide / size[1]
            total = 0.0
            for y in range(tall):
                for x in range(wide):
                    down = max(0.0, min(bottom, y + 1) - max(top, y))
                    across = max(0.0, min(right, x + 1) - max(left, x))
                    total += image[y][x] * down * across
            row.append(total / ((bottom - top) * (right - left)))
        found.append(row)
    return found


def test_cells_are_means_over_areas() -> None:
    image = maps(1, 7, 10)
    for size in ((3, 4), (2, 5), (7, 3)):
        found = on_grid(image, size)[0]
        torch.testing.assert_close(found, torch.tensor(areas_by_hand(image[0].tolist(), size), dtype=torch.float64))
    torch.testing.assert_close(on_grid(image, (4, 4)), on_grid(image, 4))
    torch.testing.assert_close(on_grid(image, (12, 12)), on_grid(image, 12))
    torch.testing.assert_close(on_grid(image, (8, 4)), mixed(image))


def mixed(image: Tensor) -> Tensor:
    """Finer down, coarser across: one after the other."""
    return functional.interpolate(on_grid(image, (7, 4))[:, None], (8, 4), mode="bilinear")[:, 0]


def test_the_loss_is_the_mean_squared_distance_of_scaled_maps() -> None:
    student, teacher = maps(4, 3, 4), maps(4, 7, 10, seed=1) * 5 - 2
    student[1], teacher[3] = 0.7, 2.0
    found = map_distillation(student, teacher)
    total = 0.0
    for i in (0, 2):
        aim = areas_by_hand(teacher[i].tolist(), (3, 4))
        low, high = min(map(min, aim)), max(map(max, aim))
        least, most = float(student[i].min()), float(student[i].max())
        for y in range(3):
            for x in range(4):
                own = (float(student[i, y, x]) - least) / (most - least)
                total += (own - (aim[y][x] - low) / (high - low)) ** 2 / 12
    assert found.loss.item() == pytest.approx(total / 2, rel=1e-12)
    assert (int(found.used), int(found.blank_student), int(found.blank_teacher)) == (2, 1, 1)


@pytest.mark.parametrize("distance", LOSSES)
def test_gradients_of_the_loss(distance: Distance) -> None:
    teacher = maps(3, 6, 6, seed=1)
    checked(lambda at: map_distillation(at, teacher, distance=distance).loss, maps(3, 3, 4))
    same = map_distillation(3 * teacher + 1, teacher, distance=distance)
    assert same.loss.item() == pytest.approx(0, abs=1e-12)


def test_nothing_to_compare_is_no_loss_and_the_teacher_gets_no_gradient() -> None:
    student, teacher = maps(2, 3, 3).requires_grad_(), maps(2, 3, 3, seed=1).requires_grad_()
    map_distillation(student, teacher).loss.backward()
    assert student.grad is not None
    assert student.grad.abs().max() > 0
    assert teacher.grad is None
    none = map_distillation(student, torch.full((2, 3, 3), torch.nan))
    assert (none.loss.item(), int(none.used), int(none.blank_teacher)) == (0, 0, 2)
    none.loss.backward()
    assert student.grad.isfinite().all()
    empty = map_distillation(maps(0, 3, 3), maps(0, 4, 4))
    assert (empty.loss.item(), int(empty.used)) == (0, 0)
    broken = torch.cat([maps(1, 3, 3), torch.full((1, 3, 3), torch.nan)]).requires_grad_()
    (gradient,) = torch.autograd.grad(map_distillation(broken, teacher).loss, broken)
    assert gradient.isfinite().all()


def test_what_cannot_be_compared() -> None:
    with pytest.raises(konkyo.KonkyoError, match="for each of the student's"):
        map_distillation(maps(2, 3, 3), maps(3, 3, 3))
    with pytest.raises(konkyo.KonkyoError, match="top_iou"):
        map_distillation(maps(2, 3, 3), maps(2, 3, 3), distance="top_iou")


def test_a_student_learns_the_maps_of_another_method() -> None:
    torch.manual_seed(0)
    teacher, student = SmallResNet().eval(), SmallResNet().eval()
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 5
    aims = konkyo.explain(teacher, images, method="integrated_gradients", target=labels, steps=4).maps.abs()
    assert aims.shape[1:] == (32, 32)
    own, optimiser = TrainingMaps(student, (3, 32, 32)), torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        logits = student(images)
        found = map_distillation(own(logits, labels), aims)
        optimiser.zero_grad()
        (found.loss + functional.cross_entropy(logits, labels)).backward()  # blank maps have no gradient of their own
        optimiser.step()
        losses.append(found.loss.item())
    assert int(found.used) == 6
    assert losses[-1] < 0.6 * losses[0]


def test_attention_transfer_is_the_distance_of_normalised_sums_of_squares() -> None:
    student, teacher = maps(2, 3, 2, 4) - 0.5, maps(2, 5, 4, 8, seed=1) - 0.5
    total = 0.0
    for i in range(2):
        own = [float((student[i, :, y, x] ** 2).sum()) for y in range(2) for x in range(4)]
        fine = [[float((teacher[i, :, y, x] ** 2).sum()) for x in range(8)] for y in range(4)]
        aim = [
            (fine[2 * y][2 * x] + fine[2 * y + 1][2 * x] + fine[2 * y][2 * x + 1] + fine[2 * y + 1][2 * x + 1]) / 4
            for y in range(2)
            for x in range(4)
        ]
        lengths = [sum(v * v for v in q) ** 0.5 for q in (own, aim)]
        total += sum((a / lengths[0] - b / lengths[1]) ** 2 for a, b in zip(own, aim, strict=True)) ** 0.5
    assert attention_transfer(student, teacher).item() == pytest.approx(total / 2, rel=1e-12)
    checked(lambda at: attention_transfer(at, teacher), student)
    with pytest.raises(konkyo.KonkyoError, match="of the same images"):
        attention_transfer(student, teacher[:1])


# --- detections -------------------------------------------------------------------------------------------------------


def instances(result: konkyo.Explanation) -> tuple[list[InstanceTarget], list[int]]:
    targets = [target for target in result.targets if isinstance(target, InstanceTarget)]
    return targets, result.image_index.tolist()


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of a map that is negative everywhere
@pytest.mark.parametrize("mode", ["autograd", "detached"])
@pytest.mark.parametrize("pyramid", [False, True])
def test_maps_of_instances_are_those_of_odam(pyramid: bool, mode: str) -> None:
    model, images = dense(PyramidDetector() if pyramid else None), noise(3)
    result = konkyo.explain(model, images, method="odam", target=ALL)
    targets, rows = instances(result)
    assert len(rows) == 12
    own = InstanceMaps(model, images.shape[1:], mode=mode)  # type: ignore[arg-type]
    assert len(own.layers) == 1 + pyramid
    found = own(model(images), targets, rows)
    torch.testing.assert_close(found, result.maps.double(), rtol=1e-5, atol=1e-6 * float(result.maps.max()))
    turned = [7, 0, 11, 3, 2]  # any order, several of an image
    again = own(model(images), [targets[r] for r in turned], [rows[r] for r in turned])
    torch.testing.assert_close(again, found[turned])
    assert own(model(images), [], []).shape == (0, *found.shape[1:])
    own.close()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize("mode", ["autograd", "detached"])
def test_gradients_of_odam_maps(mode: str) -> None:
    """By a weight of what follows: through G with a graph, through nothing without; by A: of the whole product."""
    model, images = dense(), noise(2)
    targets, rows = instances(konkyo.explain(model, images, method="odam", target=ALL))
    network, weigh = model.module, maps(8, 6, 8, seed=3)
    activations = network.body(images).detach()
    last = network.head[2].weight.detach()

    def summed(at: Tensor, weight: Tensor) -> Tensor:
        grid = at if at.requires_grad else at.detach().requires_grad_()
        hidden = network.head[1](network.head[0](grid))
        raw = functional.conv2d(hidden, weight, network.head[2].bias)
        output = network.placed(raw, 4)
        return (odam_maps(grid, scores(output[rows], targets), rows, mode=mode) * weigh).sum()  # type: ignore[arg-type]

    if mode == "autograd":
        checked(lambda weight: summed(activations, weight), last)
        checked(lambda at: summed(at, last), activations)
        return
    leaf = activations.clone().requires_grad_()
    weight = last.clone().requires_grad_()
    found = torch.autograd.grad(summed(leaf, weight), (leaf, weight), allow_unused=True)
    assert found[1] is None  # G is a constant
    output = network.placed(network.head(leaf), 4)
    slopes = [torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in scores(output[rows], targets)]
    expected = torch.zeros_like(leaf)
    for r, (row, slope) in enumerate(zip(rows, slopes, strict=True)):
        positive = (slope[row] * leaf[row]).sum(0) > 0
        expected[row] += slope[row] * (weigh[r] * positive)
    torch.testing.assert_close(found[0], expected)


def test_a_score_without_a_graph_has_no_map() -> None:
    grid = maps(2, 3, 4, 4).requires_grad_()
    there = (grid[0] ** 2).sum()
    found = odam_maps(grid, torch.stack([there, torch.zeros_like(there).detach()]), [0, 1])
    torch.testing.assert_close(found[0], (2 * grid[0] ** 2).sum(0))
    assert not found[1].any()
    assert not odam_maps(grid, torch.zeros(2), [0, 1]).any()
    assert int(map_distillation(found, maps(2, 4, 4)).blank_student) == 1
    with pytest.raises(konkyo.KonkyoError, match="rows \\[0, 5\\]"):
        odam_maps(grid, torch.zeros(2), [0, 5])
    with pytest.raises(konkyo.KonkyoError, match="autograd, detached"):
        odam_maps(grid, torch.zeros(2), [0, 1], mode="closed_form")  # type: ignore[arg-type]


def test_tokens_are_folded() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, 4, 4)
            self.body = nn.Identity()
            self.head = nn.Linear(6, 7)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.body(self.first(images).flatten(2).mT).tanh()).sigmoid()

    torch.manual_seed(0)
    network = Tokens().double()
    model = konkyo.Model(network, detector=konkyo.Detector(3, lambda module, images: module(images), list, "body"))
    layer = Layer("body", network.body, channel_axis=-1, tokens=(6, 8))
    own = InstanceMaps(model, (3, 24, 32), layer=layer)
    images = noise(2)
    found = own(network(images), [lambda output: output[:, 9, 5]], [1])
    tokens = network.first(images).flatten(2).mT.detach().requires_grad_()
    (slope,) = torch.autograd.grad(network.head(tokens.tanh()).sigmoid()[1, 9, 5], tokens)
    torch.testing.assert_close(found[0], (slope * tokens).sum(2).relu()[1].view(6, 8))


def test_a_detector_learns_a_teachers_maps() -> None:
    """From weights a little off: the distance of the maps falls while instances are found by likeness."""
    teacher, student, images = dense(), dense(seed=0), noise(3)
    with torch.no_grad():
        for weight in student.module.parameters():
            weight.add_(0.15 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight))
    result = konkyo.explain(teacher, images, method="odam", target=ALL)
    targets, rows = instances(result)
    own = InstanceMaps(student, images.shape[1:])
    optimiser, losses = torch.optim.Adam(student.module.parameters(), 3e-3), []
    for _ in range(60):
        found = map_distillation(own(student(images), targets, rows), result.maps)
        optimiser.zero_grad()
        found.loss.backward()
        optimiser.step()
        losses.append(found.loss.item())
    assert int(found.used) >= 10
    assert losses[-1] < 0.5 * losses[0]


def test_wrong_asking() -> None:
    model, images = dense(), noise(2)
    own = InstanceMaps(model, images.shape[1:])
    with pytest.raises(konkyo.KonkyoError, match="put out nothing"):
        own(torch.zeros(2, 48, 7), [], [])
    output = model(images)
    with pytest.raises(konkyo.KonkyoError, match="candidates of 1 images"):
        own(output[:1], [], [])
    with pytest.raises(konkyo.KonkyoError, match="put out nothing"):  # given out once
        own(output, [], [])
    model.module.requires_grad_(False)
    with pytest.raises(konkyo.KonkyoError, match="not part of a graph"):
        own(model(images), [], [])
    with pytest.raises(konkyo.KonkyoError, match="is the image itself"):
        InstanceMaps(model, images.shape[1:], layer="input")


# --- outputs ----------------------------------------------------------------------------------------------------------


def giou_by_hand(a: list[float], b: list[float]) -> float:
    """Intersection over union, less the share of the hull that neither box covers."""
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / union - (hull - union) / hull


def detection(box: tuple[float, ...], likeness: tuple[float, ...]) -> InstanceTarget:
    return InstanceTarget(max(range(len(likeness)), key=likeness.__getitem__), box, likeness, index=99)


BOXES = [[[2.0, 3, 9, 12], [20, 4, 30, 17], [1, 1, 4, 4]], [[5.0, 5, 15, 20], [22, 2, 30, 9], [10, 3, 20, 20]]]
SHARES = [[[0.7, 0.2], [0.1, 0.8], [0.6, 0.3]], [[0.4, 0.5], [0.9, 0.3], [0.2, 0.6]]]


def test_the_distance_of_outputs_is_that_of_a_transcription_in_loops() -> None:
    output = torch.cat([torch.tensor(BOXES), torch.tensor(SHARES)], 2).double()
    targets = [
        detection((1.0, 2, 8, 13), (0.9, 0.05)),
        detection((4.0, 6, 14, 19), (0.1, 0.95)),
        detection((21.0, 5, 31, 16), (0.02, 0.85)),
        detection((50.0, 50, 60, 60), (0.9, 0.1)),  # nothing is like it
    ]
    found = instance_distillation(output, targets, [0, 1, 0, 1], (24, 32))
    total = 0.0
    for target, row, candidate in zip(targets[:3], (0, 1, 0), (0, 0, 1), strict=True):
        box, shares = BOXES[row][candidate], SHARES[row][candidate]
        for aim, said in zip(target.likeness, shares, strict=True):
            total -= aim * math.log(said) + (1 - aim) * math.log(1 - said)
        for aim, side, length in zip(target.box, box, (32, 24, 32, 24), strict=True):
            total += 5 * abs(aim - side) / length
        total += 2 * (1 - giou_by_hand(list(target.box), box))
    assert found.item() == pytest.approx(total / 3, rel=1e-6)


def test_gradients_of_the_distance_of_outputs() -> None:
    output = torch.cat([torch.tensor(BOXES), torch.tensor(SHARES)], 2).double()
    targets = [detection((1.0, 2, 8, 13), (0.9, 0.05)), detection((4.0, 6, 14, 19), (0.1, 0.95))]
    checked(lambda at: instance_distillation(at, targets, [0, 1], (24, 32)), output)
    output.requires_grad_()
    absent = instance_distillation(output, [detection((50.0, 50, 60, 60), (0.9, 0.1))], [0], (24, 32))
    absent.backward()
    assert absent.item() == 0
    assert output.grad is not None
    assert not output.grad.any()
    assert instance_distillation(output, [], [], (24, 32)).item() == 0


def test_outputs_that_cannot_be_compared() -> None:
    target = detection((1.0, 2, 8, 13), (0.9, 0.05))
    for rows in ([], [2], [-1], [0, 1]):
        with pytest.raises(konkyo.KonkyoError, match="a row for each of 1 targets, images from 0 to 1"):
            instance_distillation(torch.rand(2, 3, 6), [target], rows, (24, 32))


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    tables = {
        "distil_maps": ["--images", "12", "--epochs", "1", "--seeds", "1"],
        "distil_detector": ["--images", "3", "--steps", "1"],
        "saliency_mixing": ["--images", "12", "--epochs", "3", "--seeds", "1"],
        "right_reasons": ["--images", "12", "--epochs", "1", "--seeds", "1", "--masked", "0.5"],
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} >= set(tables)
    for name, arguments in tables.items():
        runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](arguments)
        said = capsys.readouterr().out
        assert len(said.splitlines()) >= 5
        assert "nan" not in said

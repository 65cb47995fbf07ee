"""IG-ODAM, its adaptive and its complete form against loops over nodes, one image and one instance at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
import konkyo.engine.integration
import konkyo.engine.variants
from helpers.closeness import close_to_largest as close
from helpers.detections import box_of, iou_by_hand, match_by_hand, score_by_hand, summed
from helpers.detectors import SIZE, DenseDetector, PyramidDetector, dense, noise, wrapped
from konkyo import engine
from konkyo.engine.path import Lookahead, PathTrace, Sampling, Track, trapezoid
from konkyo.targets.detections import InstanceTarget

ALL = konkyo.Detections(threshold=0.0, top=3)
BLACK = torch.tensor([-2.0, -2.0, -0.6], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, *SIZE)
NOWHERE = [math.nan] * 4
Blank = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


class Node:
    """Gradient, activation, score and box at one point of the path from `start` to `image`, both (1, 3, H, W)."""

    def __init__(
        self, network: nn.Module, target: InstanceTarget, image: Tensor, alpha: float, start: Tensor = BLACK
    ) -> None:
        with torch.no_grad():
            found = network.body(start + alpha * (image - start))
        leaves = [a.clone().requires_grad_() for a in ([found] if isinstance(found, Tensor) else found)]
        output = network.after([leaf.clone() for leaf in leaves])[0]
        score = score_by_hand(target, output)
        gradients = torch.autograd.grad(score, leaves, allow_unused=True)
        self.A = [leaf.detach()[0] for leaf in leaves]
        pairs = list(zip(leaves, gradients, strict=True))
        self.G = [torch.zeros_like(leaf)[0] if g is None else g[0] for leaf, g in pairs]
        self.score = float(score.detach())
        self.index, _, found = match_by_hand(target, output)
        self.box = box_of(target, output[self.index].tolist()) if found else NOWHERE


def integral(alphas: list[float], nodes: list[Node]) -> list[Tensor]:
    """Eq. 6 as it stands, for every level."""
    totals = [torch.zeros_like(g) for g in nodes[0].G]
    for m in range(len(alphas) - 1):
        for total, g, h in zip(totals, nodes[m].G, nodes[m + 1].G, strict=True):
            total += 0.5 * (g + h) * (alphas[m + 1] - alphas[m])
    return totals


def rows_of(result: konkyo.Explanation, images: Tensor) -> list[tuple[int, InstanceTarget, Tensor]]:
    return [
        (row, target, images[int(result.image_index[row])][None])
        for row, target in enumerate(result.targets)
        if isinstance(target, InstanceTarget)
    ]


def path_of(result: konkyo.Explanation) -> PathTrace:
    assert result.path is not None
    return result.path


class Counting(nn.Module):
    """Counts the images that a detector has seen."""

    def __init__(self, network: DenseDetector) -> None:
        super().__init__()
        self.network, self.body, self.seen, self.batches = network, network.body, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        self.batches += 1
        return self.network(images)


# --- IG-ODAM ----------------------------------------------------------------------------------------------------------


@Blank
@pytest.mark.parametrize("count", [2, 7, 16])
@pytest.mark.parametrize("kind", [DenseDetector, PyramidDetector])
def test_ig_odam_is_the_trapezoid_rule_over_uniform_nodes(kind: type[DenseDetector], count: int) -> None:
    model, images = dense(kind()), noise(2)
    result = konkyo.explain(model, images, method="ig_odam", nodes=count, target=ALL)
    path, alphas, switched = path_of(result), [i / (count - 1) for i in range(count)], 0
    assert path.alphas.shape == path.scores.shape == (6, count)
    for row, target, image in rows_of(result, images):
        nodes = [Node(model.module, target, image, alpha) for alpha in alphas]
        expected = summed(integral(alphas, nodes), nodes[-1].A)
        close(result.signed[row], expected)
        close(result.maps[row], expected.relu())
        assert path.alphas[row].tolist() == pytest.approx(alphas)
        assert path.scores[row].tolist() == pytest.approx([node.score for node in nodes], rel=1e-6)
        boxes = torch.tensor([node.box for node in nodes])
        torch.testing.assert_close(path.boxes[row], boxes, rtol=1e-5, atol=1e-5, equal_nan=True)
        switched += len({node.index for node in nodes}) > 1
    assert switched or kind is PyramidDetector  # else matching at every node would not show


@Blank
@pytest.mark.parametrize("kind", [DenseDetector, PyramidDetector])
def test_one_node_is_odam_exactly(kind: type[DenseDetector]) -> None:
    model, images = dense(kind()), noise(2)
    found = konkyo.compare(model, images, ["odam", "ig_odam"], target=ALL, options={"nodes": 1})
    torch.testing.assert_close(found["ig_odam"].signed, found["odam"].signed, rtol=0, atol=1e-9)
    path = path_of(found["ig_odam"])
    assert path.alphas.tolist() == [[1.0]] * 6
    assert path.priorities.shape == (6, 0)
    torch.testing.assert_close(path.scores[:, 0], found["odam"].scores)


class Linear(nn.Module):
    """One box whose probability is linear in the layer's activations."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Tanh())
        self.weight = nn.Parameter(torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)) / 400)

    def forward(self, images: Tensor) -> Tensor:
        return self.after([self.body(images)])

    def after(self, levels: list[Tensor]) -> Tensor:
        p = 0.5 + (levels[0] * self.weight).flatten(1).sum(1)
        box = p.new_tensor([4.0, 4.0, 12.0, 16.0]).expand(len(p), 4)
        return torch.cat([box, p[:, None]], 1)[:, None]


def linear() -> konkyo.Model:
    torch.manual_seed(0)
    return wrapped(Linear(), classes=1)


@pytest.mark.parametrize("method", ["ig_odam", "adaptive_ig_odam"])
@pytest.mark.parametrize("count", [2, 3, 9, 20])
def test_where_the_gradient_is_constant_any_number_of_nodes_gives_odam(method: str, count: int) -> None:
    model, images = linear(), noise(2)
    expected = konkyo.explain(model, images, method="odam")
    found = konkyo.explain(model, images, method=method, nodes=count)
    assert path_of(found).scores.std(1).min() > 1e-3
    torch.testing.assert_close(found.signed, expected.signed, rtol=1e-5, atol=1e-9)


def test_the_weights_of_the_trapezoid_rule_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 10, 100):
        inside = torch.rand(max(0, count - 2), generator=generator, dtype=torch.float64).sort().values
        alphas = torch.cat([torch.zeros(int(count > 1)), inside, torch.ones(1)]).double()
        weights = trapezoid(alphas)
        assert len(weights) == count
        assert weights.sum().item() == pytest.approx(1, abs=1e-12)
        for m in range(1, count - 1):
            assert weights[m].item() == pytest.approx((alphas[m + 1] - alphas[m - 1]).item() / 2)
    straight = torch.tensor([0.0, 0.1, 0.7, 1.0], dtype=torch.float64)
    assert (trapezoid(straight) * (3 * straight + 2)).sum().item() == pytest.approx(3.5)


def test_weights_by_channel_are_the_mean_over_the_grid() -> None:
    model, images = dense(), noise(1)
    result = konkyo.explain(model, images, method="ig_odam", nodes=5, target=ALL, weights="channel")
    for row, target, image in rows_of(result, images):
        nodes = [Node(model.module, target, image, m / 4) for m in range(5)]
        (w,) = integral([m / 4 for m in range(5)], nodes)
        means = [torch.full_like(w[0], float(w[k].mean())) for k in range(len(w))]
        close(result.signed[row], summed([torch.stack(means)], nodes[-1].A))


def test_baselines_are_a_black_image_the_mean_colour_or_the_image_blurred() -> None:
    model, images = dense(), noise(1)
    assert model.black == pytest.approx((-0.5 / 0.25, -0.4 / 0.2, -0.3 / 0.5))
    unknown = replace(model, preprocess=None)
    starts = {"black": (model, BLACK), "mean": (model, torch.zeros_like(BLACK)), "unknown": (unknown, 0 * BLACK)}
    for name, (of, start) in starts.items():
        options = {} if name == "unknown" else {"baseline": name}
        result = konkyo.explain(of, images, method="ig_odam", nodes=5, target=ALL, **options)
        for row, target, image in rows_of(result, images):
            nodes = [Node(model.module, target, image, m / 4, start) for m in range(5)]
            close(result.signed[row], summed(integral([m / 4 for m in range(5)], nodes), nodes[-1].A))
    sigma, size = 2.0, SIZE  # a sixteenth of the longer side
    steps = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-6, 7)]

    def mirrored(i: int, n: int) -> int:
        i = abs(i)
        return 2 * (n - 1) - i if i >= n else i

    across = torch.zeros(size[1], size[1], dtype=torch.float64)
    down = torch.zeros(size[0], size[0], dtype=torch.float64)
    for matrix in (across, down):
        for i in range(len(matrix)):
            for d in range(-6, 7):
                matrix[i, mirrored(i + d, len(matrix))] += steps[d + 6] / sum(steps)
    start = down @ images @ across.T
    result = konkyo.explain(model, images, method="ig_odam", nodes=5, target=ALL, baseline="blur")
    for row, target, image in rows_of(result, images):
        nodes = [Node(model.module, target, image, m / 4, start) for m in range(5)]
        close(result.signed[row], summed(integral([m / 4 for m in range(5)], nodes), nodes[-1].A))
    with pytest.raises(konkyo.KonkyoError, match="baseline of ig_odam"):
        konkyo.explain(model, images, method="ig_odam", baseline="white", target=ALL)


@pytest.mark.parametrize("quantity", ["logit", "x2"])
def test_other_quantities_are_integrated_the_same_way(quantity: str) -> None:
    model, images = dense(), noise(1)
    wanted = replace(ALL, quantity=quantity, class_similarity="probability")  # type: ignore[arg-type]
    result = konkyo.explain(model, images, method="ig_odam", nodes=6, target=wanted)
    for row, target, image in rows_of(result, images):
        alphas = [m / 5 for m in range(6)]
        nodes = [Node(model.module, target, image, alpha) for alpha in alphas]
        close(result.signed[row], summed(integral(alphas, nodes), nodes[-1].A))


@Blank
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["detr", "deformable"])
def test_detectors_of_transformers_against_autograd_at_their_layer(name: str) -> None:
    """DETR, whose layer is the backbone's end, and deformable DETR, whose layer is a pyramid of three levels."""
    pytest.importorskip("transformers")
    from helpers import detectors_of_transformers as families

    module, images = families.network(name).requires_grad_(False).double(), families.pictures(2).double()
    names, options = ["odam", "ig_odam", "adaptive_ig_odam"], {"nodes": 5, "initial": 3}
    found = konkyo.compare(module, images, names, target=ALL, options=options)
    adaptive, uniform = path_of(found["adaptive_ig_odam"]), path_of(found["ig_odam"])
    detector = families.known(module)
    for row, target, image in rows_of(found["odam"], images):

        def node(alpha: float, target: InstanceTarget = target, image: Tensor = image) -> tuple[Any, float]:
            with families.leaves_at(module, detector.layer) as leaves:
                output = detector.propose(module, image * alpha)[0]
            score = score_by_hand(target, output)
            gradients = torch.autograd.grad(score, leaves)
            return ([g[0] for g in gradients], [leaf.detach()[0] for leaf in leaves]), score.item()

        (last, seen), score = node(1.0)
        assert found["odam"].scores[row].item() == pytest.approx(score, rel=1e-5)
        close(found["odam"].signed[row], summed(last, seen))
        for name_, path in (("ig_odam", uniform), ("adaptive_ig_odam", adaptive)):
            alphas = path.alphas[row].tolist()
            nodes = [node(alpha) for alpha in alphas]
            assert path.scores[row].tolist() == pytest.approx([s for _, s in nodes], rel=1e-4)
            total = [torch.zeros_like(g) for g in last]
            for m in range(4):
                for level, w in enumerate(total):
                    w += 0.5 * (nodes[m][0][0][level] + nodes[m + 1][0][0][level]) * (alphas[m + 1] - alphas[m])
            close(found[name_].signed[row], summed(total, seen))


# --- forwards ---------------------------------------------------------------------------------------------------------


@Blank
def test_instances_of_an_image_share_the_forwards() -> None:
    counting = Counting(dense().module)
    model, images = wrapped(counting), noise(1)
    for top in (1, 5):
        counting.seen = 0
        wanted = konkyo.Detections(threshold=0.0, top=top)
        assert len(konkyo.explain(model, images, method="ig_odam", nodes=12, target=wanted)) == top
        assert 12 <= counting.seen <= 13
        counting.seen = 0
        konkyo.explain(model, images, method="path_odam", nodes=12, target=wanted)
        assert 12 <= counting.seen <= 13
        counting.seen = 0
        counting.batches = 0
        result = konkyo.explain(model, images, method="adaptive_ig_odam", nodes=24, target=wanted)
        distinct = set(path_of(result).alphas.flatten().tolist())
        assert len(distinct) >= 24 + (top > 1)  # instances want nodes of their own
        assert len(distinct) <= counting.seen <= 1.5 * len(distinct)  # some are guessed, some run for a late row again
        assert counting.batches <= 24  # one after the other they would be `distinct`
    counting.seen = 0
    konkyo.explain(model, images, method="odam", target=konkyo.Detections(threshold=0.0, top=5))
    assert counting.seen == 1


def test_no_gradient_is_taken_below_the_layer() -> None:
    model, below = dense(), []
    model.module.body[0].register_full_backward_hook(lambda *_: below.append(1))
    konkyo.explain(model, noise(1), method="ig_odam", nodes=3, target=ALL)
    assert not below


# --- the complete form ------------------------------------------------------------------------------------------------


def test_path_odam_is_the_trapezoid_rule_over_activations() -> None:
    model, images = dense(), noise(2)
    result = konkyo.explain(model, images, method="path_odam", nodes=6, target=ALL)
    for row, target, image in rows_of(result, images):
        nodes = [Node(model.module, target, image, m / 5) for m in range(6)]
        expected = torch.zeros_like(nodes[0].A[0][0])
        for before, after in pairwise(nodes):
            expected += (0.5 * (before.G[0] + after.G[0]) * (after.A[0] - before.A[0])).sum(0)
        close(result.signed[row], expected)
    assert not result.rectified


def test_path_odam_adds_up_to_the_difference_of_scores() -> None:
    """Where one candidate is followed: the boxes stand still, and nothing else overlaps as much."""
    model, images = dense(DenseDetector(still=True)), noise(2)
    errors = []
    for count in (4, 32, 512):
        result = konkyo.explain(model, images, method="path_odam", nodes=count, target=ALL)
        path = path_of(result)
        assert path.boxes.std(1).max() == 0
        gains = []
        for _, target, image in rows_of(result, images):
            scores = [score_by_hand(target, model(x)[0]).item() for x in (image, BLACK)]
            gains.append(scores[0] - scores[1])
        gain = torch.tensor(gains)
        torch.testing.assert_close(path.scores[:, -1] - path.scores[:, 0], gain, atol=1e-6, rtol=0)
        errors.append((result.signed.flatten(1).sum(1) - gain).abs().max().item())
    assert gain.abs().max() > 0.3
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3 * gain.abs().max().item()
    plain = konkyo.explain(model, images, method="ig_odam", nodes=64, target=ALL)
    assert (plain.signed.flatten(1).sum(1) - gain).abs().max() > 0.01  # IG-ODAM does not add up, nor says so


# --- Adaptive IG-ODAM -------------------------------------------------------------------------------------------------


class Adaptive:
    """Eq. 3-7 with greedy halving, as in the paper, for one instance."""

    def __init__(self, network: nn.Module, target: InstanceTarget, image: Tensor, count: int, **options: Any) -> None:
        self.balance, self.power = options.get("balance", 0.5), options.get("length_power", 0.0)
        start = options.get("start", BLACK)
        self.scale, split = options.get("gradient_scale", "max"), options.get("split_per_round", 1)
        first = min(options.get("initial", 9), count)
        self.nodes = {a: Node(network, target, image, a, start) for a in (i / (first - 1) for i in range(first))}
        while len(self.nodes) < count:
            alphas, ranked = sorted(self.nodes), []
            for m, priority in enumerate(self.priorities()):
                a, b = alphas[m], alphas[m + 1]
                if (b - a) / 2 >= 1 / (4 * count):
                    ranked.append((priority, b - a, -a, (a + b) / 2))
            if not ranked:
                break
            for *_, middle in sorted(ranked, reverse=True)[: min(split, count - len(self.nodes))]:
                self.nodes[middle] = Node(network, target, image, middle, start)
        self.alphas = sorted(self.nodes)
        ordered = [self.nodes[a] for a in self.alphas]
        self.map = summed(integral(self.alphas, ordered), self.nodes[1.0].A)
        self.scores, self.boxes = [n.score for n in ordered], [n.box for n in ordered]

    def priorities(self) -> list[float]:
        alphas = sorted(self.nodes)
        pairs = [(self.nodes[a], self.nodes[b]) for a, b in pairwise(alphas)]
        g = [sum(float((y - x).abs().sum()) for x, y in zip(a.G, b.G, strict=True)) for a, b in pairs]
        divisor = {"none": 1.0, "max": max(g), "sum": sum(g)}[self.scale] or 1.0
        found = []
        for m, (a, b) in enumerate(pairs):
            there = [not math.isnan(node.box[0]) for node in (a, b)]
            s = 1 - iou_by_hand(a.box, b.box) if all(there) else float(any(there))
            r = self.balance * g[m] / divisor + (1 - self.balance) * s
            found.append(r * (alphas[m + 1] - alphas[m]) ** self.power)
        return found


@Blank
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_power": 1.0},
        {"gradient_scale": "none"},
        {"gradient_scale": "sum", "balance": 0.8},
        {"split_per_round": 3},
        {"initial": 2, "balance": 1.0},
        {"initial": 40, "balance": 0.0},
        {"split_per_round": 2, "length_power": 0.5, "initial": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [DenseDetector, PyramidDetector])
def test_adaptive_ig_odam_is_greedy_halving(kind: type[DenseDetector], options: dict[str, Any]) -> None:
    model, images = dense(kind()), noise(1)
    wanted = replace(ALL, top=2)
    result = konkyo.explain(model, images, method="adaptive_ig_odam", nodes=14, target=wanted, **options)
    path = path_of(result)
    for row, target, image in rows_of(result, images):
        expected = Adaptive(model.module, target, image, 14, **options)
        assert path.alphas[row].tolist() == pytest.approx(expected.alphas)
        assert path.priorities[row].tolist() == pytest.approx(expected.priorities(), rel=1e-4, abs=1e-6)
        assert path.scores[row].tolist() == pytest.approx(expected.scores, rel=1e-6)
        boxes = torch.tensor(expected.boxes)
        torch.testing.assert_close(path.boxes[row], boxes, rtol=1e-5, atol=1e-5, equal_nan=True)
        close(result.signed[row], expected.map)
        assert len(expected.alphas) == 14
    if "initial" not in options:
        uniform = konkyo.explain(model, images, method="ig_odam", nodes=14, target=wanted)
        assert (uniform.signed - result.signed).abs().max() > 1e-4 * result.signed.abs().max()


def test_the_options_of_adaptive_sampling_choose_different_nodes() -> None:
    model, images, chosen = dense(), noise(1), set()
    for options in ({}, {"length_power": 1.0}, {"gradient_scale": "none"}, {"balance": 0.0}, {"split_per_round": 4}):
        path = path_of(konkyo.explain(model, images, method="adaptive_ig_odam", nodes=14, target=ALL, **options))
        chosen.add(tuple(path.alphas.flatten().tolist()))
    assert len(chosen) == 5


class Jump(nn.Module):
    """One box, whose probability has a slope of its own at the layer on either side of a brightness."""

    def __init__(self, at: float, *, far: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 2, 4, 4, bias=False)
        self.at, self.far = at, far

    def forward(self, images: Tensor) -> Tensor:
        return self.after([self.body(images)])

    def after(self, levels: list[Tensor]) -> Tensor:
        (a,) = levels
        mean = a.flatten(1).mean(1)
        bright = mean.detach() > self.at
        p = torch.where(bright, 0.5 + 0.1 * mean, 0.5 + 0.1 * a[:, 0].flatten(1).mean(1))
        box = p.new_tensor([4.0, 4.0, 12.0, 16.0]) + 1000.0 * (~bright)[:, None].to(p) * self.far
        return torch.cat([box, p[:, None]], 1)[:, None]


def jump(at: float, *, far: bool = False) -> tuple[konkyo.Model, Tensor]:
    """The detector, whose layer's mean is alpha on the way to the image from a black one, which is 0."""
    model = replace(wrapped(Jump(at, far=far), classes=1), preprocess=None)
    with torch.no_grad():
        model.module.body.weight.fill_(1 / 48)
        model.module.body.weight[1] *= 1.5
        model.module.body.weight[0] *= 0.5
    image = 1 + noise(1) / 4
    return model, image / image.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("count", [12, 16, 33])
def test_at_a_jump_no_interval_is_halved_below_the_floor(count: int) -> None:
    model, image = jump(0.37)
    path = path_of(konkyo.explain(model, image, method="adaptive_ig_odam", nodes=count))
    alphas = path.alphas[0].double()
    widths = alphas.diff()
    assert len(set(alphas.tolist())) == count
    assert widths.min().item() >= 1 / (4 * count)
    assert widths.min().item() <= 1 / 32
    narrowest = int(widths.argmin())
    assert alphas[narrowest - 1] < 0.37 < alphas[narrowest + 2]
    expected = Adaptive(model.module, *_only(model, image), count, start=0 * image)
    assert alphas.tolist() == pytest.approx(expected.alphas)


def _only(model: konkyo.Model, image: Tensor) -> tuple[InstanceTarget, Tensor]:
    result = konkyo.explain(model, image, method="odam")
    (target,) = result.targets
    assert isinstance(target, InstanceTarget)
    return target, image


def test_the_floor_leaves_room_for_all_nodes() -> None:
    """M - 1 intervals that are all narrower than twice the floor, 1 / (2 M), would not fill [0, 1]."""
    model, image = jump(0.37)
    for count, options in [(2, {"initial": 2}), (5, {"initial": 4}), (17, {"initial": 17}), (40, {"initial": 2})]:
        path = path_of(konkyo.explain(model, image, method="adaptive_ig_odam", nodes=count, **options))
        assert path.alphas.shape == (1, count)
        in_rounds = {**options, "split_per_round": 50}
        path = path_of(konkyo.explain(model, image, method="adaptive_ig_odam", nodes=count, **in_rounds))
        assert path.alphas.shape == (1, count)
        assert path.alphas.diff().min() >= 1 / (4 * count)


def test_an_object_that_is_absent_at_first_has_no_gradient_there_and_its_nodes_count() -> None:
    model, image = jump(0.65, far=True)
    target, _ = _only(model, image)
    result = konkyo.explain(model, image, method="ig_odam", nodes=11)
    path = path_of(result)
    absent = path.alphas[0] < 0.65
    assert absent.sum() == 7
    assert path.boxes[0].isnan().all(1).tolist() == absent.tolist()
    assert path.scores[0][absent].tolist() == [0.0] * 7
    assert (path.scores[0][~absent] > 0.5).all()
    # The gradient is constant where there is one, at 0.7 .. 1: three nodes of weight 0.1, and the last of 0.05.
    odam = konkyo.explain(model, image, method="odam")
    torch.testing.assert_close(result.signed, odam.signed * 0.35, rtol=1e-5, atol=0)
    nodes = [Node(model.module, target, image, m / 10, 0 * image) for m in range(11)]
    assert [node.G[0].abs().sum().item() > 0 for node in nodes] == (~absent).tolist()
    moved = path.priorities[0] > 0
    assert moved.tolist() == [m == 6 for m in range(10)]
    assert path.priorities[0, 6].item() == pytest.approx(1.0)  # gradient and box both jump: 0.5 + 0.5
    adaptive = path_of(konkyo.explain(model, image, method="adaptive_ig_odam", nodes=20))
    weights = trapezoid(adaptive.alphas[0])
    assert weights.sum().item() == pytest.approx(1)
    assert adaptive.boxes[0].isnan().all(1).tolist() == (adaptive.alphas[0] < 0.65).tolist()


def test_at_the_end_of_the_path_the_match_is_the_detection_itself() -> None:
    """Also where another query says the same of the same place."""

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = dense().module
            self.body = self.one.body

        def forward(self, x: Tensor) -> Tensor:
            return self.after([self.body(x)])

        def after(self, levels: list[Tensor]) -> Tensor:
            """Every candidate twice, the second with a weaker gradient."""
            found = self.one.after(levels)
            return torch.cat([found, 0.5 * found + 0.5 * found.detach()], 1)

    model, images = wrapped(Doubled()), noise(2)
    for method in ("ig_odam", "adaptive_ig_odam", "path_odam"):
        result = konkyo.explain(model, images, method=method, nodes=10, target=replace(ALL, top=8))
        path = path_of(result)
        assert result.boxes is not None
        torch.testing.assert_close(path.scores[:, -1], result.scores)
        torch.testing.assert_close(path.boxes[:, -1], result.boxes)
        assert path.alphas[:, -1].tolist() == [1.0] * 16
    odam = konkyo.explain(model, images, method="odam", target=replace(ALL, top=8))
    single = konkyo.explain(model, images, method="ig_odam", nodes=1, target=replace(ALL, top=8))
    torch.testing.assert_close(single.signed, odam.signed)
    weaker = {t.index >= 48 for t in odam.targets if isinstance(t, InstanceTarget)}
    assert weaker == {False, True}
    for row, target, image in rows_of(odam, images):
        node = Node(model.module, target, image, 1.0)
        assert node.index == target.index
        close(odam.signed[row], summed(node.G, node.A))


@pytest.mark.parametrize("split", [1, 3])
def test_adaptive_nodes_of_several_instances_are_each_one_s_own(split: int) -> None:
    model, images = dense(), noise(2)
    options = {"method": "adaptive_ig_odam", "nodes": 15, "initial": 5, "split_per_round": split}
    result = konkyo.explain(model, images, target=ALL, **options)  # type: ignore[arg-type]
    path = path_of(result)
    assert len({tuple(row) for row in path.alphas.tolist()}) > 2
    for row, target, image in rows_of(result, images):
        alone = konkyo.explain(model, image, target=target, **options)  # type: ignore[arg-type]
        for name in (f.name for f in fields(PathTrace)):
            both = getattr(path_of(alone), name)[0], getattr(path, name)[row]
            torch.testing.assert_close(*both, equal_nan=True, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.signed[0], result.signed[row], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_the_path_is_kept_on_disk(suffix: str, tmp_path: Path) -> None:
    result = konkyo.explain(dense(), noise(2), method="adaptive_ig_odam", nodes=12, target=ALL)
    path = path_of(result)
    shapes = {"alphas": (6, 12), "priorities": (6, 11), "scores": (6, 12), "boxes": (6, 12, 4)}
    assert {f.name: tuple(getattr(path, f.name).shape) for f in fields(PathTrace)} == shapes
    again = konkyo.Explanation.load(result.save(tmp_path / f"path{suffix}"))
    for name in shapes:
        torch.testing.assert_close(getattr(path_of(again), name), getattr(path, name), rtol=0, atol=0, equal_nan=True)
    assert again.options["nodes"] == 12
    assert [(t.index, t.box, t.likeness) for t in again.targets if isinstance(t, InstanceTarget)] == [
        (t.index, t.box, t.likeness) for t in result.targets if isinstance(t, InstanceTarget)
    ]
    assert (
        konkyo.Explanation.load(
            konkyo.explain(dense(), noise(1), method="odam", target=ALL).save(tmp_path / f"none{suffix}")
        ).path
        is None
    )


def test_progress_is_told_and_can_end_adaptive_sampling() -> None:
    model, images, told = dense(), noise(2), list[tuple[int, int]]()
    konkyo.explain(model, images, method="ig_odam", nodes=8, target=ALL, progress=lambda *done: told.append(done))
    assert told == [(node, 16) for node in range(1, 17)]
    ended = konkyo.explain(model, images[:1], method="adaptive_ig_odam", nodes=20, target=ALL, progress=lambda *_: True)
    uniform = konkyo.explain(model, images[:1], method="ig_odam", nodes=9, target=ALL)
    assert path_of(ended).alphas.shape == (3, 9)
    torch.testing.assert_close(ended.signed, uniform.signed)
    steps, told = iter([False, False, True]), list[tuple[int, int]]()

    def stop(*done: int) -> bool:
        told.append(done)
        return next(steps)

    short = konkyo.explain(model, images, method="adaptive_ig_odam", nodes=20, target=ALL, progress=stop)
    path, early = path_of(short), path_of(ended)
    assert told[0] == (9, 40)
    assert 9 < told[1][0] < told[2][0] < 20
    for row, target, image in rows_of(short, images):
        order = list(Adaptive(model.module, target, image, 20).nodes)
        alphas = path.alphas[row][path.alphas[row].isfinite()].tolist()
        assert alphas == sorted(order[: len(alphas)])  # what the rule takes first
        assert len(alphas) == 9 if row >= 3 else 9 < told[2][0] <= len(alphas) < 20
        assert path.priorities[row].isfinite().sum() == len(alphas) - 1
    assert path.boxes[3:, 9:].isnan().all()
    torch.testing.assert_close(early.alphas[0], path.alphas[3, :9])
    assert short.signed.isfinite().all()


# --- looking ahead ----------------------------------------------------------------------------------------------------

GUESSES = [(1, 0.7), (4, 0.0), (4, 0.7), (4, 1.0), (16, 0.7)]


@Blank
@pytest.mark.parametrize(("ahead", "share"), GUESSES)
@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize(("kind", "top"), [(DenseDetector, 1), (DenseDetector, 4), (PyramidDetector, 3)])
def test_guesses_change_no_path(
    kind: type[DenseDetector], top: int, split: int, ahead: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alphas are equal to the bit to those of one node after the other; nodes hold no more memory than their own."""
    held = list[int]()

    class Watched(Lookahead):
        def add(self, row: int, alpha: float, node: engine.path.Node) -> None:
            super().add(row, alpha, node)
            held.extend(g.untyped_storage().nbytes() - g.nbytes for g in node.gradients)

    monkeypatch.setattr(engine.integration, "Lookahead", partial(Watched, ahead=ahead, share=share))
    model, images, options = dense(kind()), noise(1), {"nodes": 18, "initial": 5, "split_per_round": split}
    result = konkyo.explain(
        model,
        images,
        method="adaptive_ig_odam",
        target=replace(ALL, top=top),
        **options,  # type: ignore[arg-type]
    )
    path = path_of(result)
    for row, target, image in rows_of(result, images):
        one_by_one = Adaptive(model.module, target, image, 18, initial=5, split_per_round=split)
        assert path.alphas[row].tolist() == one_by_one.alphas
        assert path.scores[row].tolist() == pytest.approx(one_by_one.scores, rel=1e-6)
        boxes = torch.tensor(one_by_one.boxes)
        torch.testing.assert_close(path.boxes[row], boxes, rtol=1e-5, atol=1e-5, equal_nan=True)
        close(result.signed[row], one_by_one.map)
    assert len(result) == top
    assert len(held) >= top * 18
    assert not any(held)


def one_after_the_other(gradient: Callable[[float], Tensor], sampling: Sampling) -> list[float]:
    """The places of a path without boxes, halving as in Eq. 3-5, in the order in which they are taken."""
    first = min(sampling.initial, sampling.nodes)
    taken = [i / (first - 1) for i in range(first)]
    apart = cache(lambda a, b: float((gradient(b) - gradient(a)).abs().sum()))
    while len(taken) < sampling.nodes:
        g = {(a, b): apart(a, b) for a, b in pairwise(sorted(taken))}
        wide = [(a, b) for a, b in g if (b - a) / 2 >= 1 / (4 * sampling.nodes)]
        wide.sort(key=lambda ab: (-sampling.balance * g[ab] / max(g.values()), ab[0] - ab[1], ab[0]))
        taken += [(a + b) / 2 for a, b in wide[: min(sampling.split_per_round, sampling.nodes - len(taken))]]
    return taken


@pytest.mark.parametrize("ahead", [1, 4, 16])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("split", "initial"), [(1, 9), (3, 9), (1, 4), (2, 2)])
def test_rows_hold_few_nodes_that_they_have_not_asked_for(ahead: int, share: float, split: int, initial: int) -> None:
    sampling = Sampling(32, True, initial, split_per_round=split)
    generator = torch.Generator().manual_seed(1)
    jumps, slopes = (torch.rand(5, 30, generator=generator, dtype=torch.float64) for _ in range(2))

    def gradient(row: int, alpha: float) -> Tensor:
        return torch.sigmoid((alpha - jumps[row]) * 40 * slopes[row]) * slopes[4 - row]

    tracks = {row: Track() for row in range(5)}
    lookahead, runs, ran = Lookahead(tracks, sampling, ahead, share), 0, list[tuple[float, int]]()
    most = 0
    while places := lookahead.places():
        wanted = {row: track.next_places(sampling) for row, track in tracks.items()}
        missing = {alpha for row in tracks for alpha in wanted[row] if alpha not in lookahead.known[row]}
        assert missing <= set(places)
        assert len(places) <= len(missing) + (ahead + split - 1) * len(tracks)
        for alpha, rows in places.items():
            for row in rows:
                assert alpha not in tracks[row].nodes
                assert alpha not in lookahead.known[row]
                lookahead.add(row, alpha, engine.path.Node([gradient(row, alpha)], [], 0.0, tuple(NOWHERE)))
                ran.append((alpha, row))
        most = max(most, *(len(set(known) - set(wanted[row])) for row, known in lookahead.known.items()))
        lookahead.advance()
        assert not any(lookahead.known[row] for row, track in tracks.items() if len(track.nodes) == sampling.nodes)
        runs += 1
    assert most == lookahead.spare if ahead > lookahead.spare else most <= lookahead.spare
    for row, track in tracks.items():
        assert list(track.nodes) == one_after_the_other(partial(gradient, row), sampling)
    in_rounds = math.ceil((32 - initial) / split) + (initial == 2)  # a first round of one interval
    assert runs <= 1 + in_rounds
    if share == 0.7 and ahead == 4:
        assert len(ran) <= 5 * 32 * 1.6
        assert runs <= 0.7 * (32 - initial) / split + 2


def test_one_variant_runs_alone_in_a_whole_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, original = list[nn.Module](), engine.variants.measured_outputs

    def counted(root: nn.Module, outside: frozenset[nn.Module]) -> Any:
        measured.append(root)
        return original(root, outside)

    monkeypatch.setattr(engine.variants, "measured_outputs", counted)
    for method in ("ig_odam", "adaptive_ig_odam", "path_odam"):
        measured.clear()
        konkyo.explain(dense(), noise(2), method=method, nodes=20, target=ALL)
        assert len(measured) == 1


def test_a_method_may_integrate_in_several_ways_each_once_for_all_levels() -> None:
    ways: tuple[tuple[int, Any], ...] = ((2, "alpha"), (5, "alpha"), (5, "activations"))

    def of(*some: tuple[int, Any]) -> konkyo.Method:
        def weighted(inputs: Tensor, integrate: Any) -> Tensor:
            parts = [integrate(inputs * 0, Sampling(nodes), through=through).sum(1) for nodes, through in some]
            return sum(((10**k) * part for k, part in enumerate(parts)), torch.zeros(()))

        return konkyo.Method("weighted", weighted, False, None, "logit", ("inputs", "integrate"), {})

    model, images, forwards = dense(PyramidDetector()), noise(1), list[int]()

    def signed(*some: tuple[int, Any]) -> tuple[Tensor, int]:
        forwards.clear()
        return konkyo.explain(model, images, method=of(*some), target=ALL).signed, sum(forwards)

    signed(ways[0])  # the first call traces the network
    model.module.register_forward_pre_hook(lambda _, args: forwards.append(len(args[0])))
    alone = [signed(way) for way in ways]
    together, count = signed(*ways)
    close(together, sum(((10**k) * part.double() for k, (part, _) in enumerate(alone)), torch.zeros(())))
    assert [cost for _, cost in alone] == [1 + nodes for nodes, _ in ways]  # levels share the forwards
    assert count == 1 + sum(nodes for nodes, _ in ways)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"nodes": 0}, "at least one node"),
        ({"nodes": 1}, "two nodes to begin with"),
        ({"initial": 1}, "two nodes to begin with"),
        ({"balance": 1.5}, "balance in"),
        ({"length_power": -1.0}, "length_power >= 0"),
        ({"split_per_round": 0}, "split_per_round >= 1"),
        ({"gradient_scale": "mean"}, "gradient_scale"),
        ({"weights": "pixel"}, "weights"),
    ],
)
def test_samplings_that_mean_nothing_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=says):
        konkyo.explain(linear(), noise(1), method="adaptive_ig_odam", **options)


def test_a_class_of_a_classifier_has_a_path_without_boxes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model, images = konkyo.Model(network.double().eval()), noise(1)
    result = konkyo.explain(model, images, method="ig_odam", nodes=5, target=1, layer="1")
    total = torch.zeros(4, 6, 8, dtype=torch.float64)
    for m in range(5):
        leaf = network[:2](images * m / 4).detach().requires_grad_()
        (g,) = torch.autograd.grad(network[2:](leaf).softmax(1)[0, 1], leaf)
        total += g[0] * (0.125 if m in (0, 4) else 0.25)
    close(result.signed[0], (total * network[:2](images).detach()[0]).sum(0))
    path = path_of(result)
    assert path.boxes.isnan().all()
    adaptive = path_of(konkyo.explain(model, images, method="adaptive_ig_odam", nodes=12, target=1, layer="1"))
    assert adaptive.priorities.isfinite().all()

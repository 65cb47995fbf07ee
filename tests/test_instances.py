"""Explanations of detections, held to transcriptions of the formulas on a small dense detector."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import konkyo
from konkyo.candidates import pack
from konkyo.models.detectors import best_pairs
from konkyo.path import Sampling, Track, trapezoid

K, SIDE = 3, 32
pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # random networks leave some maps blank


class Dense(nn.Module):
    """A box and class probabilities for every cell of an 8 x 8 grid."""

    def __init__(self, sharpness: float = 6.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(5, 6, 3, 2, 1), nn.ReLU())
        self.mix = nn.Conv2d(6, 6, 3, 1, 1)
        self.head = nn.Conv2d(6, 4 + K, 1)
        self.sharpness, self.runs = sharpness, 0

    def forward(self, images: Tensor) -> Tensor:
        self.runs += len(images)
        grid = self.body(self.stem(images))
        out = self.head(torch.tanh(self.mix(grid)))
        h, w = out.shape[2:]
        y, x = torch.meshgrid(torch.arange(h).to(out), torch.arange(w).to(out), indexing="ij")
        centre = torch.stack([x, y], 0) * 4 + 2 + 2 * torch.tanh(out[:, :2])
        half = 3 + 2 * torch.tanh(out[:, 2:4])
        boxes = torch.cat([centre - half, centre + half], 1).flatten(2).transpose(1, 2)
        return pack(boxes, (self.sharpness * out[:, 4:] - 1).sigmoid().flatten(2).transpose(1, 2))


class Pyramid(nn.Module):
    """Two grids, 8 x 8 and 4 x 4, and a candidate for every cell of both."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Levels()
        self.heads = nn.ModuleList([nn.Conv2d(c, 4 + K, 1) for c in (5, 6)])

    def forward(self, images: Tensor) -> Tensor:
        fine, coarse = self.backbone(images)["maps"]
        mixed = [fine + F.interpolate(coarse[:, :5], scale_factor=2), coarse]
        parts = []
        for level, (head, grid) in enumerate(zip(self.heads, mixed, strict=True)):
            out, stride = head(grid), 4 * 2**level
            y, x = torch.meshgrid(*(torch.arange(s).to(out) for s in out.shape[2:]), indexing="ij")
            centre = (torch.stack([x, y], 0) + 0.5) * stride + torch.tanh(out[:, :2])
            half = stride * (1 + 0.5 * torch.tanh(out[:, 2:4]))
            parts.append(torch.cat([centre - half, centre + half, (4 * out[:, 4:]).sigmoid()], 1).flatten(2))
        return torch.cat(parts, 2).transpose(1, 2)


class Levels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 5, 3, 4, 1), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(5, 6, 3, 2, 1), nn.ReLU())

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        fine = self.one(images)
        return {"maps": [fine, self.two(fine)]}


def keep(output: Tensor, threshold: float) -> list[object]:
    return best_pairs(output, threshold, K, most=6)


def model(module: nn.Module, layer: str, seed: int = 0, **more: object) -> konkyo.Model:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.6 if parameter.ndim > 1 else 0.1)
        parameter.requires_grad_(False)
    detector = konkyo.Detector(K, lambda m, x: m(x), keep, layer)
    return konkyo.Model(module.double().eval(), detector=detector, classes=("a", "b", "c"), **more)


@pytest.fixture
def dense() -> konkyo.Model:
    return model(Dense(), "body")


def images(count: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


# --- a literal transcription ------------------------------------------------------------------------------------------


def iou(a: Tensor, b: Tensor) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = float(max(wide, 0.0) * max(tall, 0.0))
    return common / (float((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])) - common)


def matching(output: Tensor, target: konkyo.InstanceTarget, own: bool = False) -> int | None:
    """The candidate of one image (Q, 4 + K) with the largest IoU times cosine."""
    box, likeness = torch.tensor(target.box).double(), torch.tensor(target.likeness).double()
    best, found = 0.0, None
    for j, row in enumerate(output.detach()):
        p = row[4:]
        similarity = iou(box, row[:4]) * float(p @ likeness / (p.norm() * likeness.norm()))
        if similarity > best + 1e-9:
            best, found = similarity, j
    return target.index if own else found


def at(
    module: Dense, image: Tensor, target: konkyo.InstanceTarget, own: bool = False
) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """(activations, gradient, score, box) of the instance in an image (1, 3, H, W)."""
    activations = module.body(module.stem(image)).detach().requires_grad_()
    tail = Dense.__new__(Dense)
    nn.Module.__init__(tail)
    tail.stem, tail.body, tail.mix, tail.head = nn.Identity(), nn.Identity(), module.mix, module.head
    tail.sharpness, tail.runs = module.sharpness, 0
    output = Dense.forward(tail, activations)[0]
    j = matching(output, target, own)
    if j is None:
        return activations.detach()[0], torch.zeros_like(activations[0]), 0.0, None
    score = output[j, 4 + target.label]
    (gradient,) = torch.autograd.grad(score, activations)
    return activations.detach()[0], gradient[0], float(score.detach()), output[j, :4].detach()


# --- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_finds_its_candidate_by_likeness(dense: konkyo.Model) -> None:
    x = images(3)
    targets = konkyo.explain(dense, x[:1], method="odam").targets
    assert len(targets) == 6
    output = dense(x)
    for target in targets:
        assert isinstance(target, konkyo.InstanceTarget)
        match = target.match(output)
        assert match.index[0] == target.index
        assert abs(float(match.similarity[0]) - 1) < 1e-6
        for image in (1, 2):
            assert match.index[image] == matching(output[image], target)
        near(target(output), torch.stack([output[i, match.index[i], 4 + target.label] for i in range(3)]))


def test_of_equal_candidates_the_own_is_taken_then_the_likelier_then_the_first() -> None:
    box, p = [0.0, 0.0, 4.0, 4.0], [0.4, 0.2, 0.0]
    half = [v / 2 for v in p]
    output = torch.tensor([[box + half, box + p, box + p, box + half]])
    own = konkyo.InstanceTarget(0, (0.0, 0.0, 4.0, 4.0), (0.4, 0.2, 0.0), 3)
    assert own.match(output).index.tolist() == [3]
    elsewhere = konkyo.InstanceTarget(0, (0.0, 0.0, 4.0, 4.0), (0.4, 0.2, 0.0), 9)
    assert elsewhere.match(output).index.tolist() == [1]


@pytest.mark.parametrize("kind", ["cosine", "probability", "difference", "same"])
def test_similarities_of_classes(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1, 9, 2, generator=generator) * 3
    output = torch.cat(
        [corner, corner + 1 + torch.rand(1, 9, 2, generator=generator) * 3, torch.rand(1, 9, K, generator=generator)], 2
    )
    target = konkyo.InstanceTarget(1, (1.0, 1.0, 4.0, 4.0), (0.2, 0.7, 0.3), 0, "similarity", kind)  # type: ignore[arg-type]
    own = torch.tensor(target.likeness)
    best = 0.0
    for row in output[0]:
        p = row[4:]
        alike = {
            "cosine": float(p @ own / (p.norm() * own.norm())),
            "probability": float(p[1]),
            "difference": 1 - abs(0.7 - float(p[1])),
            "same": float(p[1]) if int(p.argmax()) == 1 else 0.0,
        }[kind]
        best = max(best, alike * iou(torch.tensor(target.box), row[:4]))
    assert target(output).item() == pytest.approx(best, rel=1e-5)


def test_an_absent_instance_has_no_score_and_no_gradient() -> None:
    output = torch.rand(2, 5, 4 + K)
    output[..., 2:4] += 1
    output = output.requires_grad_()
    target = konkyo.InstanceTarget(0, (50.0, 50.0, 60.0, 60.0), (0.5, 0.1, 0.1), 0)
    scores = target(output)
    (gradient,) = torch.autograd.grad(scores.sum(), output)
    assert scores.tolist() == [0.0, 0.0]
    assert not gradient.any()
    match = target.match(output)
    assert not match.found.any()
    assert match.box.isnan().all()


def test_quantities() -> None:
    output = torch.tensor([[[1.0, 2.0, 3.0, 5.0, 0.2, 0.8, 0.1]]], dtype=torch.float64)
    for quantity, expected in {
        "probability": 0.8,
        "logit": math.log(4),
        "x1": 1,
        "y1": 2,
        "x2": 3,
        "y2": 5,
        "similarity": 1,
    }.items():
        target = konkyo.InstanceTarget(1, (1.0, 2.0, 3.0, 5.0), (0.2, 0.8, 0.1), 0, quantity)  # type: ignore[arg-type]
        assert target(output).item() == pytest.approx(expected)
    with pytest.raises(konkyo.KonkyoError, match="quantity of an instance"):
        konkyo.InstanceTarget(1, (1.0, 2.0, 3.0, 5.0), (0.2,), 0, "area")  # type: ignore[arg-type]


def test_a_box_of_its_own_for_every_class() -> None:
    boxes = torch.arange(2 * K * 4).view(1, 2, K, 4).double()
    boxes[..., 2:] += boxes[..., :2]
    output = pack(boxes, torch.tensor([[[0.1, 0.2, 0.9], [0.3, 0.1, 0.2]]]).double())
    target = konkyo.InstanceTarget(2, tuple(boxes[0, 0, 2].tolist()), (0.1, 0.2, 0.9), 0)  # type: ignore[arg-type]
    assert target.match(output).box.tolist() == [boxes[0, 0, 2].tolist()]
    with pytest.raises(konkyo.KonkyoError, match=r"\(N, Q, 7\) or \(N, Q, 15\)"):
        target(torch.zeros(1, 2, 6))


# --- maps at the image itself -----------------------------------------------------------------------------------------


def test_odam_and_the_grad_cams_of_an_instance(dense: konkyo.Model) -> None:
    x, module = images(), dense.module
    assert isinstance(module, Dense)
    found = {name: konkyo.explain(dense, x, method=name) for name in ("odam", "grad_cam", "grad_cam_pp")}
    assert len(found["odam"]) == 6
    for row, target in enumerate(found["odam"].targets):
        assert isinstance(target, konkyo.InstanceTarget)
        a, g, score, box = at(module, x, target, own=True)
        assert box is not None
        near(found["odam"].maps[row], (g * a).sum(0).relu())
        near(found["grad_cam"].maps[row], (g.mean((1, 2), keepdim=True) * a).sum(0).relu())
        alpha = g**2 / (2 * g**2 + a.sum((1, 2), keepdim=True) * g**3)
        w = (alpha * g.relu()).nan_to_num(0).sum((1, 2), keepdim=True)
        near(found["grad_cam_pp"].maps[row], (w * a).sum(0).relu())
        assert found["odam"].scores[row].item() == pytest.approx(score, rel=1e-5)
        near(found["odam"].boxes[row], box)  # type: ignore[index]


def test_images_have_as_many_rows_as_detections(dense: konkyo.Model) -> None:
    x = images(3)
    x[1] = 0
    threshold = 0.6
    together = konkyo.explain(dense, x, method="odam", target=konkyo.Detections(threshold=threshold))
    counts = [
        len(konkyo.explain(dense, x[i : i + 1], method="odam", target=konkyo.Detections(threshold=threshold)))
        for i in range(3)
    ]
    assert together.image_index.bincount(minlength=3).tolist() == counts
    for i in range(3):
        alone = konkyo.explain(dense, x[i : i + 1], method="odam", target=konkyo.Detections(threshold=threshold))
        if counts[i]:
            near(together.maps[together.image_index == i], alone.maps)


def test_nothing_detected(dense: konkyo.Model, tmp_path: Path) -> None:
    found = konkyo.explain(
        dense, torch.zeros(1, 3, SIDE, SIDE), method="ig_odam", target=konkyo.Detections(threshold=0.999999)
    )
    assert found.signed.shape == (0, 8, 8)
    assert (found.labels, found.targets) == ((), ())
    assert len(konkyo.Explanation.load(found.save(tmp_path / "none.npz"))) == 0


def test_a_hundred_detections() -> None:
    many = model(Dense(), "body", 3)
    found = konkyo.explain(many, images(), method="odam", target=konkyo.Detections(threshold=0, suppressed=False))
    assert len(found) == 64
    one = found.targets[40]
    near(konkyo.explain(many, images(), method="odam", target=one).maps[0], found.maps[40])


def test_a_pyramid_is_summed_before_the_relu() -> None:
    pyramid = model(Pyramid(), "backbone")
    x, module = images(), pyramid.module
    assert isinstance(module, Pyramid)
    found = konkyo.explain(pyramid, x, method="odam")
    held: list[Tensor] = []

    def leaf(_module: nn.Module, _args: object, output: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        held[:] = [m.detach().requires_grad_() for m in output["maps"]]
        return {"maps": list(held)}

    handle = module.backbone.register_forward_hook(leaf)
    output = module(x)[0]
    handle.remove()
    both = 0
    for row, target in enumerate(found.targets):
        assert isinstance(target, konkyo.InstanceTarget)
        gradients = torch.autograd.grad(
            output[target.index, 4 + target.label], held, retain_graph=True, allow_unused=True
        )
        maps = [
            F.interpolate((g * a).sum(1)[None].detach(), size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
            for g, a in zip(gradients, held, strict=True)
            if g is not None
        ]
        both += len(maps) == 2
        near(found.maps[row], torch.stack(maps).sum(0).relu())
    assert both
    path = konkyo.explain(pyramid, x, method="ig_odam", nodes=1)
    near(path.maps, found.maps)


def test_the_combination_is_the_largest_of_five_scaled_maps(dense: konkyo.Model) -> None:
    x = images()
    whole = konkyo.explain(dense, x, method="odam", target=konkyo.Detections(top=3, quantity="combined"))
    parts = [
        konkyo.explain(dense, x, method="odam", target=konkyo.Detections(top=3, quantity=q)).maps  # type: ignore[arg-type]
        for q in ("probability", "x1", "y1", "x2", "y2")
    ]
    low, high = (torch.stack([f(m.flatten(1), 1)[:, None, None] for m in parts]) for f in (torch.amin, torch.amax))
    near(whole.maps, ((torch.stack(parts) - low) / (high - low)).amax(0))
    assert [t.quantity for t in whole.targets if isinstance(t, konkyo.InstanceTarget)] == ["combined"] * 3


def test_which_detections(dense: konkyo.Model) -> None:
    x = images()
    every = konkyo.explain(dense, x, method="odam")
    named = konkyo.explain(dense, x, method="odam", target=every.labels[0])
    assert set(named.labels) == {every.labels[0]}
    assert len(konkyo.explain(dense, x, method="odam", target=konkyo.TopK(2))) == 2
    assert every.boxes is not None
    box = tuple(every.boxes[3].tolist())
    near(konkyo.explain(dense, x, method="odam", target=konkyo.Detections(boxes=(box,))).boxes, every.boxes[3:4])  # type: ignore[arg-type]
    assert len(konkyo.explain(dense, x, method="odam", target=konkyo.Detections(boxes=((900, 900, 950, 950),)))) == 0
    for wrong in ({"threshold": 1.0}, {"top": 0}, {"boxes": ((1, 2, 3),)}, {"classes": "a"}):
        with pytest.raises(konkyo.KonkyoError):
            konkyo.Detections(**wrong)  # type: ignore[arg-type]
    with pytest.raises(konkyo.KonkyoError, match="unknown class 'd'"):
        konkyo.explain(dense, x, target="d")


def test_a_classifier_has_no_detections() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    for settings in ({"target": konkyo.Detections()}, {"method": "d_rise"}):
        with pytest.raises(konkyo.NotApplicable, match="is no detector"):
            konkyo.explain(classifier, torch.rand(1, 3, 16, 16), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method", ["saliency", "integrated_gradients", "ablation_cam", "occlusion", "smooth_grad", "score_cam", "finer_cam"]
)
def test_other_methods_see_each_instance_as_if_alone(dense: konkyo.Model, method: str) -> None:
    x = images()
    try:
        together = konkyo.explain(dense, x, method=method)
    except konkyo.NotApplicable:
        assert method == "finer_cam"  # it compares logits of classes
        return
    for row, target in enumerate(together.targets):
        near(together.signed[row], konkyo.explain(dense, x, method=method, target=target).signed[0])


# --- paths ------------------------------------------------------------------------------------------------------------


def test_ig_odam_is_the_trapezoid_rule(dense: konkyo.Model) -> None:
    x, module, nodes = images(), dense.module, 7
    assert isinstance(module, Dense)
    found = konkyo.explain(dense, x, method="ig_odam", nodes=nodes)
    channel = konkyo.explain(dense, x, method="ig_odam", nodes=nodes, weights="channel")
    for row, target in enumerate(found.targets):
        assert isinstance(target, konkyo.InstanceTarget)
        a = at(module, x, target)[0]
        grads = [at(module, x * m / (nodes - 1), target, own=m == nodes - 1)[1] for m in range(nodes)]
        w = sum(((g + h) / 2 / (nodes - 1) for g, h in pairwise(grads)), torch.zeros_like(a))
        near(found.maps[row], (w * a).sum(0).relu())
        near(channel.maps[row], (w.mean((1, 2), keepdim=True) * a).sum(0).relu())


def test_one_node_is_odam_and_black_is_black() -> None:
    shifted = model(Dense(), "body", preprocess=konkyo.Preprocess((SIDE, SIDE), None, (0.4,) * 3, (0.5,) * 3))
    assert shifted.black == (-0.8, -0.8, -0.8)
    x = images()
    near(konkyo.explain(shifted, x, method="ig_odam", nodes=1).maps, konkyo.explain(shifted, x, method="odam").maps)
    module = shifted.module
    assert isinstance(module, Dense)
    found = konkyo.explain(shifted, x, method="ig_odam", nodes=2)
    target = found.targets[0]
    assert isinstance(target, konkyo.InstanceTarget)
    a, end, _, _ = at(module, x, target, own=True)
    _, start, _, _ = at(module, torch.full_like(x, -0.8), target)
    near(found.maps[0], ((start + end) / 2 * a).sum(0).relu())


def test_weights_sum_to_one() -> None:
    alphas = torch.tensor([0.0, 0.1, 0.15, 0.7, 1.0], dtype=torch.float64)
    assert trapezoid(alphas).sum().item() == pytest.approx(1)
    near(trapezoid(alphas), torch.tensor([0.05, 0.075, 0.3, 0.425, 0.15]))
    assert trapezoid(torch.ones(1)).tolist() == [1.0]


def test_the_complete_form_adds_up_to_the_change_of_the_score() -> None:
    smooth = model(Dense(sharpness=0.4), "body", 5)
    x = images()
    errors = []
    for nodes in (8, 64, 512):
        found = konkyo.explain(smooth, x, method="path_odam", nodes=nodes, target=konkyo.Detections(threshold=0, top=1))
        assert found.path is not None
        moved = found.path.boxes[0]
        assert (moved.diff(dim=0).abs().amax() if nodes == 512 else torch.zeros(())) < 0.1  # one candidate all the way
        change = float(found.path.scores[0, -1] - found.path.scores[0, 0])
        errors.append(abs(float(found.signed[0].double().sum()) - change) / abs(change))
    assert errors[2] < 1e-3
    assert errors[2] < errors[0]


def test_forwards_are_shared_by_instances(dense: konkyo.Model) -> None:
    module = dense.module
    assert isinstance(module, Dense)
    for method, options, most in (("ig_odam", {"nodes": 9}, 11), ("d_rise", {"masks": 20}, 22), ("odam", {}, 1)):
        module.runs = 0
        assert len(konkyo.explain(dense, images(), method=method, **options)) == 6  # type: ignore[arg-type]
        assert module.runs <= most


def adaptive(
    module: Dense, x: Tensor, target: konkyo.InstanceTarget, nodes: int, initial: int, balance: float, power: float
) -> tuple[list[float], Tensor]:
    """Eq. 3-7 with halving of the best interval, one after the other."""
    known: dict[float, tuple[Tensor, Tensor | None]] = {}

    def look(alpha: float) -> None:
        _, g, _, box = at(module, x * alpha, target, own=alpha == 1)
        known[alpha] = g, box

    for i in range(initial):
        look(i / (initial - 1))
    while len(known) < nodes:
        alphas = sorted(known)
        pairs = list(pairwise(alphas))
        g = [float((known[b][0] - known[a][0]).abs().sum()) for a, b in pairs]
        s = []
        for a, b in pairs:
            one, two = known[a][1], known[b][1]
            s.append(float((one is None) != (two is None)) if one is None or two is None else 1 - iou(one, two))
        r = [
            (balance * gm / max(g) + (1 - balance) * sm) * (b - a) ** power
            for gm, sm, (a, b) in zip(g, s, pairs, strict=True)
        ]
        open_ = [
            (v, b - a, -a, (a + b) / 2) for v, (a, b) in zip(r, pairs, strict=True) if (b - a) / 2 >= 1 / (4 * nodes)
        ]
        if not open_:
            break
        look(max(open_)[3])
    alphas = sorted(known)
    w = sum((known[a][0] + known[b][0]) / 2 * (b - a) for a, b in pairwise(alphas))
    assert isinstance(w, Tensor)
    return alphas, w


@pytest.mark.parametrize(("balance", "power"), [(0.5, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_adaptive_sampling_is_the_greedy_halving_of_the_paper(
    dense: konkyo.Model, balance: float, power: float
) -> None:
    x, module = images(), dense.module
    assert isinstance(module, Dense)
    found = konkyo.explain(
        dense, x, method="adaptive_ig_odam", nodes=12, initial=4, balance=balance, length_power=power
    )
    assert found.path is not None
    for row, target in enumerate(found.targets):
        assert isinstance(target, konkyo.InstanceTarget)
        alphas, w = adaptive(module, x, target, 12, 4, balance, power)
        own = found.path.alphas[row]
        near(own[~own.isnan()], torch.tensor(alphas))
        near(found.maps[row], (w * at(module, x, target)[0]).sum(0).relu())
        alone = konkyo.explain(
            dense, x, method="adaptive_ig_odam", target=target, nodes=12, initial=4, balance=balance, length_power=power
        )
        near(alone.maps[0], found.maps[row])


def test_the_path_is_kept_and_saved(dense: konkyo.Model, tmp_path: Path) -> None:
    found = konkyo.explain(dense, images(), method="adaptive_ig_odam", nodes=10, initial=3)
    assert found.path is not None
    assert found.boxes is not None
    ends = (~found.path.alphas.isnan()).sum(1) - 1
    rows = torch.arange(len(found))
    assert (found.path.alphas[rows, ends] == 1).all()
    near(found.path.scores[rows, ends], found.scores)  # the match at the image itself is the detection
    near(found.path.boxes[rows, ends], found.boxes)
    assert found.path.priorities.shape == (len(found), found.path.alphas.shape[1] - 1)
    for name in ("path.npz", "path.safetensors"):
        again = konkyo.Explanation.load(found.save(tmp_path / name))
        assert again.path is not None
        torch.testing.assert_close(again.path.boxes, found.path.boxes, equal_nan=True)
        assert again.targets == found.targets


class Jump(nn.Module):
    """One candidate, whose gradient at the layer jumps where the mean of the image passes a threshold."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.body, self.least = nn.Conv2d(3, 2, 1, bias=False), least

    def forward(self, images: Tensor) -> Tensor:
        grid = self.body(images)
        bright = (images.mean((1, 2, 3)) > self.least).to(images)
        score = (grid.mean((1, 2, 3)) * (0.1 + bright)).sigmoid()
        place = 4 + 40 * (1 - bright) if self.least < 0.01 else torch.full_like(score, 4.0)
        box = torch.stack([place, place, place + 8, place + 8], 1)
        rest = torch.full((len(images), K - 1), 0.05).to(images)
        return pack(box[:, None], torch.cat([score[:, None], rest], 1)[:, None])


def test_at_a_jump_intervals_keep_a_width() -> None:
    x, nodes = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64), 16
    found = konkyo.explain(
        model(Jump(0.1234), "body"),
        x,
        method="adaptive_ig_odam",
        nodes=nodes,
        initial=3,
        target=konkyo.Detections(threshold=0),
    )
    assert found.path is not None
    alphas = found.path.alphas[0]
    widths = alphas[~alphas.isnan()].diff()
    assert widths.min() >= 1 / (4 * nodes) - 1e-9
    assert ((alphas[:-1] < 0.2468) & (alphas[1:] > 0.2468) & (alphas.diff() <= 2 / (4 * nodes) + 1e-9)).any()
    tight = Sampling(nodes=64, adaptive=True, initial=9)
    track = Track()
    assert track.wanted(tight) == [i / 8 for i in range(9)]


def test_an_instance_that_is_not_there_at_first_gives_no_gradient_there() -> None:
    """Where the image is dark the only candidate is far away: those nodes stay, with a gradient of 0."""
    x = torch.full((1, 3, 8, 8), 0.01, dtype=torch.float64)
    jump = model(Jump(0.005), "body")
    found = konkyo.explain(jump, x, method="ig_odam", nodes=11, target=konkyo.Detections(threshold=0, top=1))
    assert found.path is not None
    assert found.path.boxes[0, :5].isnan().all()
    assert found.path.scores[0, :5].tolist() == [0.0] * 5
    there = ~found.path.boxes[0].isnan().any(1)
    gradient = float(konkyo.explain(jump, x, method="odam", target=found.targets[0]).signed[0].sum())
    weight = float(trapezoid(torch.linspace(0, 1, 11))[there].sum())
    assert float(found.signed[0].sum()) == pytest.approx(gradient * weight, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"balance": 2.0}, {"initial": 1}, {"split_per_round": 0}])
def test_samplings_that_make_no_sense(dense: konkyo.Model, wrong: dict[str, object]) -> None:
    with pytest.raises(konkyo.KonkyoError):
        konkyo.explain(dense, images(), method="adaptive_ig_odam", **wrong)


# --- D-RISE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("enlarge", "centre"), [("bilinear", False), ("nearest", True)])
def test_d_rise_is_the_mean_of_masks_weighed_by_likeness(enlarge: str, centre: bool) -> None:
    watched = model(Dense(), "body")
    x, seen = images(), []
    x = x.clamp_min(0.05)
    watched.module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach().clone()))
    found = konkyo.explain(
        watched,
        x,
        method="d_rise",
        masks=24,
        cells=4,
        keep=0.5,
        seed=3,
        enlarge=enlarge,
        centre=centre,
        target=konkyo.TopK(2),
    )
    masked = torch.cat(seen[1:])
    assert len(masked) == 24
    masks = (masked / x)[:, 0]
    near((masked / x)[:, 1], masks)
    if enlarge == "nearest":
        assert set(masks.round(decimals=6).unique().tolist()) == {0.0, 1.0}
    for row, target in enumerate(found.targets):
        assert isinstance(target, konkyo.InstanceTarget)
        weights = []
        for output in watched(masked):
            likeness = torch.tensor(target.likeness).double()
            weights.append(
                max(
                    iou(torch.tensor(target.box).double(), q[:4])
                    * float(q[4:] @ likeness / (q[4:].norm() * likeness.norm()))
                    for q in output
                )
            )
        w = torch.tensor(weights).double()
        w = w - w.mean() if centre else w
        near(found.signed[row], (w[:, None, None] * masks).mean(0))

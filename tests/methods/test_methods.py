"""Every method against a slow, literal transcription of its formula, in double precision on a small network."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.formulas import OPTIONS, Literal
from helpers.networks import Dense, SmallResNet, images, seeded
from helpers.paths import TESTS
from konkyo.utils.tensors import fuse

CLASSES = [3, 0, 4]


LITERAL = [name for name in vars(Literal) if name in konkyo.methods()]


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights some maps are all negative
@pytest.mark.parametrize("method", LITERAL)
def test_method_equals_its_formula(method: str) -> None:
    network = seeded(SmallResNet())
    x = images()
    found = konkyo.explain(network, x, method=method, target=CLASSES, **OPTIONS.get(method, {}))
    assert found.maps.flatten(1).abs().amax(1).count_nonzero() >= 2
    for image, label in enumerate(CLASSES):
        expected = getattr(Literal(network, x[image : image + 1], label), method)()
        torch.testing.assert_close(found.maps[image].double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
@pytest.mark.parametrize("layer", ["stage1", "stage2"])
@pytest.mark.parametrize("method", ["grad_cam_pp", "ablation_cam", "eigen_cam", "xgrad_cam", "layer_cam", "score_cam"])
def test_method_at_an_earlier_layer(method: str, layer: str) -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method=method, target=2, layer=layer)
    expected = getattr(Literal(network, x, 2, layer), method)()
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_every_method_has_a_reference() -> None:
    """Each is named in one of the files that hold methods to their formulas, in whatever folder."""
    names = (
        "methods",
        "gradient",
        "perturbation",
        "rules",
        "attention",
        "odam",
        "path",
        "paths",
        "d_rise",
        "grad_eclip",
        "pairs",
        "relevance",
        "deep_lift",
        "segment_games",
        "sensitivity",
        "detr",
        "scales",
        "wrappers",
    )
    files = ["formulas.py", *(f"test_{name}.py" for name in names)]
    texts = "".join(next(TESTS.rglob(file)).read_text(encoding="utf-8") for file in files)
    assert [m for m in konkyo.methods() if not re.search(rf'"{m}"|def {m}\b', texts)] == []


def test_random_cam_weighs_channels_by_seeded_numbers() -> None:
    network, x = seeded(SmallResNet()), images(1)
    weights = torch.rand(24, generator=torch.Generator().manual_seed(7)) * 2 - 1
    expected = Literal(network, x, 0).weighted(list(weights.double()))
    found = konkyo.explain(network, x, method="random_cam", seed=7)
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found.maps, konkyo.explain(network, x, method="random_cam", seed=8).maps)


def test_rise_is_the_score_weighted_mean_of_its_masks() -> None:
    """Masks rebuilt here as the paper does: upsample a coarse grid, crop at a random offset below a cell."""
    network, x = seeded(SmallResNet()), images(1)
    count, cells = 40, 4
    found = konkyo.explain(network, x, method="rise", target=1, seed=5, masks=count, cells=cells, keep=0.4)
    generator = torch.Generator().manual_seed(5)
    coarse = (torch.rand(count, cells, cells, generator=generator) < 0.4).double()
    cell = math.ceil(32 / cells), math.ceil(40 / cells)
    down = torch.randint(cell[0], (count,), generator=generator)
    right = torch.randint(cell[1], (count,), generator=generator)
    total = torch.zeros(32, 40, dtype=torch.double)
    for i in range(count):
        size = (cells + 1) * cell[0], (cells + 1) * cell[1]
        large = functional.interpolate(coarse[i][None, None], size, mode="bilinear", align_corners=False)[0, 0]
        mask = large[down[i] : down[i] + 32, right[i] : right[i] + 40]
        with torch.no_grad():
            total += network(x * mask).softmax(1)[0, 1] * mask
    torch.testing.assert_close(found.maps[0].double(), total / (count * 0.4), rtol=1e-5, atol=1e-6)


def mirrored_by_hand(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """skimage.transform.resize(grid, size, order=1, mode="reflect"), pixel by pixel."""
    large = torch.zeros(size, dtype=torch.double)
    inside = lambda i, n: 0 if n == 1 else abs(i) if i < n else 2 * (n - 1) - i
    for y in range(size[0]):
        for x in range(size[1]):
            places = [(at + 0.5) * n / s - 0.5 for at, n, s in zip((y, x), grid.shape, size, strict=True)]
            (top, left), (down, right) = [math.floor(p) for p in places], [p - math.floor(p) for p in places]
            for i, a in ((top, 1 - down), (top + 1, down)):
                for j, b in ((left, 1 - right), (left + 1, right)):
                    large[y, x] += a * b * grid[inside(i, grid.shape[0]), inside(j, grid.shape[1])]
    return large


def test_the_mirrored_border_has_the_values_of_scikit_image() -> None:
    row = mirrored_by_hand(torch.tensor([[0.0, 1, 0, 0]]).double(), (1, 32))[0, :5]
    torch.testing.assert_close(row, torch.tensor([0.4375, 0.3125, 0.1875, 0.0625, 0.0625]).double())


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # one cell makes a constant map
@pytest.mark.parametrize("cells", [1, 2, 3])
def test_rise_with_the_border_of_the_authors(cells: int) -> None:
    """Their code (explanations.py) transcribed: a grid resized with a mirrored border, and cropped at random."""
    network, x = seeded(SmallResNet()), images(1)[..., :8, :11]
    options = {"masks": 12, "cells": cells, "keep": 0.5}
    mirrored = konkyo.explain(network, x, method="rise", target=1, seed=5, border="mirror", **options)
    clamped = konkyo.explain(network, x, method="rise", target=1, seed=5, **options)
    generator = torch.Generator().manual_seed(5)
    coarse = (torch.rand(12, cells, cells, generator=generator) < 0.5).double()
    high, wide = math.ceil(8 / cells), math.ceil(11 / cells)
    down, right = (torch.randint(cell, (12,), generator=generator) for cell in (high, wide))
    total = torch.zeros(8, 11, dtype=torch.double)
    for i in range(12):
        large = mirrored_by_hand(coarse[i], ((cells + 1) * high, (cells + 1) * wide))
        mask = large[down[i] : down[i] + 8, right[i] : right[i] + 11]
        with torch.no_grad():
            total += network(x * mask).softmax(1)[0, 1] * mask / (12 * 0.5)
    torch.testing.assert_close(mirrored.maps[0].double(), total, rtol=1e-5, atol=1e-6)
    assert torch.allclose(mirrored.maps, clamped.maps) == (cells == 1)


def test_rise_finds_the_pixels_that_matter() -> None:
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(4.0))

        def forward(self, x: Tensor) -> Tensor:
            seen = (x[:, :, :8, :8].mean((1, 2, 3)) - 0.5) * self.scale
            return torch.stack([seen, -seen], 1)

    found = konkyo.explain(Corner(), torch.ones(1, 3, 32, 32), method="rise", target=0, masks=400, cells=4)
    inside, outside = found.maps[0, :8, :8].mean(), found.maps[0, 16:, 16:].mean()
    assert inside > 1.3 * outside


# --- properties that hold by definition ------------------------------------------------------------------------------


def test_integrated_gradients_completeness() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        difference = network(x)[0, 1] - network(torch.zeros_like(x))[0, 1]
    errors = {}
    for rule in ("right", "midpoint"):
        found = konkyo.explain(network, x, method="integrated_gradients", target=1, steps=200, rule=rule)
        errors[rule] = (found.maps.double().sum() - difference).abs() / difference.abs()
    assert errors["right"] < 0.05
    assert errors["midpoint"] < 0.02


def test_integrated_gradients_at_a_layer_is_complete_too() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    found = konkyo.explain(
        network, x, method="integrated_gradients", target=1, layer="stage2", steps=200, rule="midpoint"
    )
    with torch.no_grad():
        features = network.stage2(network.stage1(network.stem(x)))
        tail = lambda f: network.head(network.stage3(f).mean((2, 3)))[0, 1]
        difference = tail(features) - tail(torch.zeros_like(features))
    assert found.maps.shape[1:] == features.shape[2:]
    torch.testing.assert_close(found.maps.double().sum(), difference, rtol=2e-2, atol=1e-4)


def test_hires_cam_sums_to_the_score_without_bias_for_a_linear_head() -> None:
    network, x = seeded(SmallResNet()), images(2)
    found = konkyo.explain(network, x, method="hires_cam", target=3)
    torch.testing.assert_close(
        found.maps.double().sum((1, 2)), found.scores.double() - network.head.bias[3].detach(), rtol=1e-5, atol=1e-6
    )


def test_cam_and_grad_cam_agree_for_a_linear_head() -> None:
    network, x = seeded(SmallResNet()), images(2)
    maps = konkyo.compare(network, x, ["cam", "grad_cam"], target=[0, 3])
    cells = maps["cam"].maps[0].numel()
    torch.testing.assert_close(maps["cam"].signed / cells, maps["grad_cam"].signed, rtol=1e-5, atol=1e-7)


BODY = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
POOL = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
HEADS = {
    "before the pooling": (nn.Conv2d(8, 5, 1), *POOL),
    "after the pooling": (nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1), nn.Flatten()),
    "without bias": (nn.Conv2d(8, 5, 1, bias=False), *POOL),
    "as many classes as channels": (nn.Conv2d(8, 8, 1), *POOL),
    "after dropout": (nn.Dropout(), nn.Conv2d(8, 5, 1), *POOL),
    "with weight norm": (
        nn.AdaptiveAvgPool2d(1),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 5, 1)),
        nn.Flatten(),
    ),
    "a large bias": (nn.Conv2d(8, 5, 1), *POOL),
    "a linear layer": (*POOL, nn.Linear(8, 5)),
    "one logit": (nn.Conv2d(8, 1, 1), *POOL),
}


@pytest.mark.parametrize("head", HEADS)
def test_cam_with_a_head_of_one_cell(head: str) -> None:
    """Against the closed form, and ablation without a forward."""
    network, x = seeded(nn.Sequential(*BODY, *HEADS[head])), images(2)
    last = next(m for m in network[4:] if hasattr(m, "weight"))
    if head == "a large bias":
        last.bias.data += 1e4
    with torch.no_grad():
        features = network[:4](x)
        weight = last.weight.flatten(1)
        expected = torch.einsum("c,nchw->nhw", weight[1 if len(weight) > 1 else 0], features)
    found = konkyo.explain(network, x, method="cam", target=1, layer="3")
    torch.testing.assert_close(found.signed.double(), expected, rtol=1e-5, atol=1e-6)
    calls: list[int] = []
    handle = network[4].register_forward_hook(lambda *_: calls.append(1))
    ablated = konkyo.explain(network, x, method="ablation_cam", target=1, layer="3")
    handle.remove()
    assert len(calls) <= 2
    scores = ablated.scores.double()[:, None]
    weights = features.mean((2, 3)) * weight[1 if len(weight) > 1 else 0] / scores.abs()
    expected = (weights[..., None, None] * features).sum(1)
    torch.testing.assert_close(ablated.signed.double(), expected, rtol=1e-4, atol=1e-5)


def test_cam_of_a_squeezenet() -> None:
    """A ReLU follows its convolution: at the ReLU the class's channel is the map, before it there is no such sum."""
    network, x = seeded(nn.Sequential(*BODY, nn.Conv2d(8, 5, 1), nn.ReLU(), *POOL)), images(2)
    found = konkyo.explain(network, x, method="cam", target=1, layer="5")
    with torch.no_grad():
        torch.testing.assert_close(found.signed.double(), network[:6](x)[:, 1])
    with pytest.raises(konkyo.NotApplicable, match="1x1 convolution"):
        konkyo.explain(network, x, method="cam", target=1, layer="3")


def test_cam_refuses_convolutions_of_more_than_a_cell_or_with_strides() -> None:
    for head in (nn.Conv2d(8, 5, 3), nn.Conv2d(8, 5, 1, stride=2), nn.Conv2d(8, 8, 1, groups=2)):
        with pytest.raises(konkyo.NotApplicable, match="1x1 convolution"):
            konkyo.explain(seeded(nn.Sequential(*BODY, head, *POOL)), images(1), method="cam", target=1, layer="3")


def test_cam_says_where_it_does_not_apply() -> None:
    with pytest.raises(konkyo.NotApplicable, match="global average pooling"):
        konkyo.explain(seeded(SmallResNet(deep_head=True)), images(1), method="cam")
    with pytest.raises(konkyo.NotApplicable, match="stage2"):
        konkyo.explain(seeded(SmallResNet()), images(1), method="cam", layer="stage2")


def test_eigen_cam_centred_is_the_first_principal_component() -> None:
    network, x = seeded(SmallResNet()), images(1)
    A = Literal(network, x, 0).A
    centred = A - A.mean((1, 2), keepdim=True)
    expected = Literal(network, x, 0).first_component(centred)
    found = konkyo.explain(network, x, method="eigen_cam", centred=True)
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", ["stem", "stage3"])
def test_eigen_cam_through_either_gram_matrix(layer: str) -> None:
    """stem: 1280 pixels, 8 channels; stage3: 20 pixels, 24 channels."""
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="eigen_cam", layer=layer)
    expected = Literal(network, x, 0, layer).eigen_cam()
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_ablation_by_replay_equals_the_closed_form() -> None:
    network, x = seeded(SmallResNet()), images(2)
    closed = konkyo.explain(network, x, method="ablation_cam", target=1)

    class Hidden(nn.Module):  # the same function, whose head cannot be recognised as pooling + linear
        def __init__(self) -> None:
            super().__init__()
            self.body = network

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + 1.0

    replayed = konkyo.explain(Hidden(), x, method="ablation_cam", target=1, layer="body.stage3")
    ratio = replayed.scores / closed.scores  # the drop is divided by the score, which is one higher
    torch.testing.assert_close(replayed.maps * ratio.abs()[:, None, None], closed.maps, rtol=1e-5, atol=1e-7)


def test_ablation_sets_signed_activations_to_zero() -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="ablation_cam", target=1, layer="stage2.bn2")
    features: list[Tensor] = []
    with torch.no_grad():
        handle = network.stage2.bn2.register_forward_hook(lambda _m, _a, o: features.append(o.clone()))
        y = network(x)[0, 1]
        handle.remove()
    assert features[0].min() < 0
    weights = []
    for k in range(16):

        def zero(_m: nn.Module, _a: object, o: Tensor, k: int = k) -> Tensor:
            o = o.clone()
            o[:, k] = 0
            return o

        with torch.no_grad():
            handle = network.stage2.bn2.register_forward_hook(zero)
            weights.append((y - network(x)[0, 1]) / y.abs())
            handle.remove()
    expected = sum(w * a for w, a in zip(weights, features[0][0], strict=True)).relu()
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-7)


def test_grad_cam_pp_leaves_no_room_for_an_epsilon() -> None:
    """Scaling the score by c scales the weights as the formula says, down to gradients of 1e-9."""
    network, x = seeded(SmallResNet()), images(1)
    whole = konkyo.explain(network, x, method="grad_cam_pp", target=1).signed
    tiny = konkyo.explain(network, x, method="grad_cam_pp", target=lambda out: out[:, 1] * 1e-9).signed
    literal = Literal(network, x, 1)
    G = literal.G * 1e-9
    alpha = torch.where(G > 0, 1 / (2 + literal.A.sum((1, 2), keepdim=True) * G), 0.0)
    expected = literal.weighted(list((alpha * G.relu()).sum((1, 2))))
    torch.testing.assert_close(tiny[0].double(), expected, rtol=1e-5, atol=0)
    assert not torch.allclose(tiny / tiny.max(), whole / whole.max(), atol=1e-3)


def test_layers_are_fused_as_in_layer_cam() -> None:
    """As the paper fuses, literally: tanh(2 M / max M) for all but the deepest, largest of the enlarged maps."""
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="layer_cam", target=1, layer=["stage1", "stage2", "stage3"])
    expected = torch.zeros(16, 20, dtype=torch.double)
    for layer in ("stage1", "stage2", "stage3"):
        one = Literal(network, x, 1, layer).layer_cam()
        one = one / one.max()
        if layer != "stage3":
            one = torch.tanh(2 * one)
        enlarged = functional.interpolate(one[None, None], (16, 20), mode="bilinear", align_corners=False)[0, 0]
        expected = torch.maximum(expected, enlarged)
    assert found.layer == "stage1+stage2+stage3"
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_fusing_a_blank_map_gives_the_other() -> None:
    one = torch.rand(2, 4, 4)
    torch.testing.assert_close(fuse([torch.zeros(2, 4, 4), one]), one / one.amax((1, 2), keepdim=True))


def test_score_cam_gives_dead_channels_no_weight_and_no_forward() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.stage3.bn2.bias[:4] = -1e3
        network.stage3.shortcut.bias[:4] = -1e3
    counted: list[int] = []
    network.stem.register_forward_hook(lambda _m, _a, out: counted.append(len(out)))
    konkyo.explain(network, x, method="score_cam", budget=2)  # traces the network, and tries images together
    counted.clear()
    found = konkyo.explain(network, x, method="score_cam", target=1)
    forwards = sum(counted)
    expected = Literal(network, x, 1).score_cam()
    alive = sum(bool(a.max() > a.min()) for a in Literal(network, x, 1).A)
    assert 0 < alive <= 20
    assert forwards == alive + 1
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-7)


def test_perturbation_works_where_channels_last_fails() -> None:
    from helpers.networks import Viewing

    network, x = seeded(Viewing()), images(1)
    found = konkyo.explain(network, x, method="score_cam", layer="conv", target=1)
    assert found.diagnosis[0].ok


def test_concatenating_networks_replay_faithfully() -> None:
    network, x = seeded(Dense()), images(2)
    found = konkyo.explain(network, x, method="ablation_cam", layer="second", target=1)
    for image in range(2):
        with torch.no_grad():
            first = network.first(x[image : image + 1])
            second = network.second(first.relu())

            def tail(second: Tensor, first: Tensor = first) -> Tensor:
                y = torch.cat([first, second.relu()], 1)
                return network.head(torch.cat([y, network.third(y).relu()], 1).mean((2, 3)))[0, 1]

            y, weights = tail(second), []
            for k in range(4):
                without = second.clone()
                without[:, k] = 0
                weights.append((y - tail(without)) / y.abs())
        expected = sum(w * a for w, a in zip(weights, second[0], strict=True)).relu()
        torch.testing.assert_close(found.maps[image].double(), expected, rtol=1e-5, atol=1e-8)

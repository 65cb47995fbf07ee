"""Gradient, activation, noise and path methods: slow literal formulas on a convolutional network, a vision transformer,
a Swin and a volume, what holds by definition, and the peers where they are right."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.closeness import close
from helpers.networks import Attention, SmallResNet, images, seeded
from konkyo.utils.tensors import min_max, resize

pytestmark = pytest.mark.filterwarnings("ignore")  # maps of random weights, and the peers
SEED = 3
CLASSES = [1, 3]
SYSTEMS = ["resnet", "vit", "swin", "volume"]
Score = Callable[[Tensor], Tensor]


class System:
    """A network with one layer at hand: what it puts out, and the gradient there, by hooks and plain autograd."""

    def __init__(
        self, network: nn.Module, x: Tensor, layer: str, fold: Callable[[Tensor], Tensor], prefix: int = 0
    ) -> None:
        self.network, self.x, self.layer, self.fold, self.prefix = network, x, layer, fold, prefix

    def at(self, image: Tensor, score: Score, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """(A, G), each (C, *grid), with the layer's output multiplied by `scale`, but for its class token."""
        held: list[Tensor] = []

        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output = output.detach().clone()
            output[:, self.prefix :] *= scale
            held.append(output.requires_grad_())
            return held[0].clone()

        handle = self.network.get_submodule(self.layer).register_forward_hook(hook)
        try:
            value = score(self.network(image)).sum()
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(value, held[0])
        return self.fold(held[0].detach()), self.fold(gradient)

    def at_input(self, image: Tensor, score: Score) -> Tensor:
        leaf = image.clone().requires_grad_()
        return torch.autograd.grad(score(self.network(leaf)).sum(), leaf)[0][0]


class Volume(nn.Module):
    """A three-dimensional network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(2, 4, 3, 2, 1), nn.Conv3d(4, 6, 3, 2, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3, 4)).tanh())


def small_swin() -> nn.Module:
    """Four stages, as torchvision's, with weights under which the output depends on the image."""
    from torchvision.models import SwinTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [4, 4], num_classes=6).double().eval()
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return network


@pytest.fixture(scope="module")
def systems() -> dict[str, System]:
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randn(2, 3, 64, 96, generator=generator).double()
    volumes = torch.randn(2, 2, 8, 12, 16, generator=generator).double()
    return {
        "resnet": System(seeded(SmallResNet(deep_head=True)), images(2), "stage3", lambda a: a[0]),
        "vit": System(seeded(Attention()), images(2), "norm", lambda a: a[0, 1:].T.reshape(12, 4, 5), 1),
        "swin": System(small_swin(), pictures, "features.5", lambda a: a[0].permute(2, 0, 1)),
        "volume": System(seeded(Volume()), volumes, "second", lambda a: a[0]),
    }


def logit(label: int) -> Score:
    return lambda output: output[:, label]


def rest(label: int) -> Score:
    """The utility ReST of the ShapleyCAM paper."""
    return lambda output: output[:, label] + output.log_softmax(1)[:, label]


def weighted(weights: list[Tensor], A: Tensor) -> Tensor:
    total = torch.zeros_like(A[0])
    for weight, channel in zip(weights, A, strict=True):
        total = total + weight * channel
    return total


def noisy(image: Tensor, samples: int, std: float) -> list[Tensor]:
    noise = torch.randn(samples, *image.shape[1:], generator=torch.Generator().manual_seed(SEED)).double()
    return [image + std * (image.max() - image.min()) * one for one in noise]


def first_component(values: Tensor) -> Tensor:
    """Centred, by SVD; the largest absolute value is positive."""
    matrix = values.flatten(1).T.numpy()
    matrix = matrix - matrix.mean(0)
    projection = matrix @ np.linalg.svd(matrix, full_matrices=False)[2][0]
    return torch.from_numpy(projection * np.sign(projection[np.abs(projection).argmax()])).view_as(values[0])


# --- the formulas as the papers have them -----------------------------------------------------------------------------


def smooth_grad_cam_pp(system: System, image: Tensor, label: int, numerator: str = "second") -> Tensor:
    A, _ = system.at(image, logit(label))
    G = [system.at(one, logit(label))[1] for one in noisy(image, 6, 0.1)]
    weights = []
    for k, channel in enumerate(A):
        d1, d2, d3 = (sum(g[k] ** p for g in G) / 6 for p in (1, 2, 3))
        alpha = (d2 if numerator == "second" else d1) / (2 * d2 + channel.sum() * d3)
        weights.append((alpha * d1.clamp(min=0))[d2 > 0].sum())
    return weighted(weights, A).relu()


def finer_cam(system: System, image: Tensor, label: int, kind: str = "mean") -> Tensor:
    with torch.no_grad():
        y = system.network(image)[0]
    others = sorted((abs(float(y[k] - y[label])), k) for k in range(len(y)) if k != label)
    near = [k for _, k in others[:3]]
    p = [float(y[k].exp()) if kind == "softmax" else 1.0 for k in near]

    def difference(output: Tensor) -> Tensor:
        rivals = sum(w / sum(p) * output[:, k] for w, k in zip(p, near, strict=True))
        return output[:, label] - 0.6 * rivals

    A, G = system.at(image, difference)
    return weighted([g.sum() / g.numel() for g in G], A).relu()


def shapley_cam(system: System, image: Tensor, label: int) -> Tensor:
    """The Hessian times A by central differences of the gradient, along A."""
    A, G = system.at(image, rest(label))
    step = 1e-4
    above, below = (system.at(image, rest(label), 1 + sign * step)[1] for sign in (1, -1))
    curved = (above - below) / (2 * step)
    assert curved.abs().max() > 1e-3 * G.abs().max()
    return weighted([(g - h / 2).sum() / g.numel() for g, h in zip(G, curved, strict=True)], A).relu()


def integrated_grad_cam(system: System, image: Tensor, label: int, rectify: str = "nodes") -> Tensor:
    base = torch.full_like(image, 0.3)
    start, _ = system.at(base, logit(label))
    total = torch.zeros_like(start[0])
    for t in range(1, 6):
        A, G = system.at(base + t / 5 * (image - base), logit(label))
        one = weighted([g.sum() / g.numel() for g in G], A - start)
        total += (one.relu() if rectify == "nodes" else one) / 5
    return total.relu()


def fem(system: System, image: Tensor, label: int) -> Tensor:
    A, _ = system.at(image, logit(label))
    total = torch.zeros_like(A[0])
    for channel in A.numpy():
        threshold = channel.mean() + 1.5 * channel.std()
        for place in np.ndindex(channel.shape):
            if channel[place] > threshold:
                total[place] += channel.mean()
    return total


def kpca_cam(system: System, image: Tensor, label: int) -> Tensor:
    """By scikit-learn."""
    KernelPCA = pytest.importorskip("sklearn.decomposition").KernelPCA

    A, _ = system.at(image, logit(label))
    matrix = A.flatten(1).T.numpy()
    found = KernelPCA(1, kernel="sigmoid").fit_transform(matrix - matrix.mean(0))[:, 0]
    return torch.from_numpy(found * np.sign(found[np.abs(found).argmax()])).view_as(A[0])


def seg_eigen_cam(system: System, image: Tensor, label: int) -> Tensor:
    A, G = system.at(image, logit(label))
    return first_component(G.abs() * A)


def smooth_grad(system: System, image: Tensor, label: int) -> Tensor:
    total = torch.zeros_like(image[0])
    for one in noisy(image, 6, 0.1):
        total += system.at_input(one, logit(label)) / 6
    return total.abs().max(0).values


def var_grad(system: System, image: Tensor, label: int) -> Tensor:
    G = np.stack([system.at_input(one, logit(label)).numpy() for one in noisy(image, 6, 0.1)])
    return torch.from_numpy(G.var(0).max(0))


def square_grad(system: System, image: Tensor, label: int) -> Tensor:
    squares = [system.at_input(one, logit(label)).numpy() ** 2 for one in noisy(image, 6, 0.1)]
    return torch.from_numpy(np.stack(squares).mean(0).max(0))


def ss_grad_cam(system: System, image: Tensor, label: int) -> Tensor:
    A, G = system.at(image, logit(label))
    total = torch.zeros_like(A[0])
    for a, g in zip(A, G, strict=True):
        for place in np.ndindex(tuple(a.shape)):
            total[place] += g.mean() * a[place] * (abs(g[place]) / g.abs().max() if g.abs().max() > 0 else 0)
    return total.relu()


def ss_grad_cam_pp(system: System, image: Tensor, label: int, support: str = "gradient") -> Tensor:
    A, G = system.at(image, logit(label))
    total = torch.zeros_like(A[0])
    for a, g in zip(A, G, strict=True):
        inside = sum(a[p] for p in np.ndindex(tuple(a.shape)) if support == "all" or g[p] != 0)
        positive = [g[p] for p in np.ndindex(tuple(a.shape)) if g[p] > 0]
        w = sum(v**2 / (2 * v**2 + inside * v**3) * v for v in positive)
        total += w * a * g.abs() / g.abs().max() if g.abs().max() > 0 else 0 * a
    return total.relu()


def edge_map(_system: System, image: Tensor, _label: int) -> Tensor:
    """By scipy."""
    from scipy.ndimage import sobel

    grey = image[0].numpy().mean(0)
    return torch.from_numpy(np.sqrt(sum(sobel(grey, axis, mode="nearest") ** 2 for axis in range(grey.ndim))))


FORMULAS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "smooth_grad_cam_pp": (smooth_grad_cam_pp, {"samples": 6, "std": 0.1}),
    "finer_cam": (finer_cam, {}),
    "ss_grad_cam": (ss_grad_cam, {"score": "logit"}),
    "ss_grad_cam_pp": (ss_grad_cam_pp, {"score": "logit"}),
    "shapley_cam": (shapley_cam, {}),
    "integrated_grad_cam": (integrated_grad_cam, {"steps": 5, "baseline": 0.3}),
    "fem": (fem, {"sigma": 1.5}),
    "kpca_cam": (kpca_cam, {}),
    "seg_eigen_cam": (seg_eigen_cam, {}),
    "smooth_grad": (smooth_grad, {"samples": 6, "std": 0.1}),
    "var_grad": (var_grad, {"samples": 6, "std": 0.1}),
    "square_grad": (square_grad, {"samples": 6, "std": 0.1}),
    "edge_map": (edge_map, {}),
}
AT_THE_INPUT = ("smooth_grad", "var_grad", "square_grad", "edge_map", "saliency")


def explain(system: System, method: str, target: Any = None, x: Tensor | None = None, **options: Any) -> Any:
    layer = None if method in AT_THE_INPUT else system.layer
    x = system.x if x is None else x
    target = CLASSES[: len(x)] if target is None else target
    return konkyo.explain(system.network, x, method=method, target=target, layer=layer, seed=SEED, **options)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("method", FORMULAS)
def test_method_equals_its_formula(systems: dict[str, System], method: str, name: str) -> None:
    system, (formula, options) = systems[name], FORMULAS[method]
    target = [rest(label) for label in CLASSES] if method == "shapley_cam" else CLASSES
    found = explain(system, method, target, **options)
    checked = 0
    for i, label in enumerate(CLASSES):
        expected = formula(system, system.x[i : i + 1], label)
        if expected.abs().max() > 0:  # a ReLU may leave nothing of one of the two
            close(found.maps[i], expected)
            checked += 1
        else:
            assert found.maps[i].abs().max() <= 1e-6 * found.signed[i].abs().max()
    assert checked


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("method", [*FORMULAS, "zoom_cam", "refine_cam"])
def test_a_batch_equals_its_images_one_by_one(systems: dict[str, System], method: str, name: str) -> None:
    system, options = systems[name], FORMULAS[method][1] if method in FORMULAS else {}
    batch = explain(system, method, **options)
    for i, label in enumerate(CLASSES):
        close(batch.signed[i], explain(system, method, label, system.x[i : i + 1], **options).signed[0])
    assert not torch.equal(batch.signed[0], batch.signed[1])


@pytest.mark.parametrize("method", [m for m in FORMULAS if m not in ("fem", "kpca_cam", "edge_map")])
def test_several_targets_of_an_image_equal_one_by_one(systems: dict[str, System], method: str) -> None:
    system, options = systems["vit"], FORMULAS[method][1]
    both = explain(system, method, konkyo.Each(4, 2), **options)
    for row, label in enumerate([4, 2, 4, 2]):
        image = system.x[row // 2 : row // 2 + 1]
        close(both.signed[row], explain(system, method, label, image, **options).signed[0])


def test_options_that_change_the_formula(systems: dict[str, System]) -> None:
    system, image, label = systems["resnet"], systems["resnet"].x[:1], 1
    for method, formula, choice in (
        ("smooth_grad_cam_pp", smooth_grad_cam_pp, {"numerator": "first"}),
        ("finer_cam", finer_cam, {"weights": "softmax"}),
        ("integrated_grad_cam", integrated_grad_cam, {"rectify": "sum"}),
    ):
        options = FORMULAS[method][1]
        changed = explain(system, method, label, image, **options, **choice)
        close(changed.maps[0], formula(system, image, label, next(iter(choice.values()))))
        assert not torch.allclose(changed.maps, explain(system, method, label, image, **options).maps, rtol=1e-3)


# --- several layers ---------------------------------------------------------------------------------------------------

STAGES = {
    "resnet": {name: (lambda a: a[0]) for name in ("stem", "stage1", "stage2", "stage3")},
    "swin": {
        **{f"features.{i}": (lambda a: a[0].permute(2, 0, 1)) for i in (1, 3, 5)},
        "permute": lambda a: a[0],
    },
}


def over_the_layers(name: str, system: System, image: Tensor, label: int, method: str) -> Tensor:
    fused: Tensor | None = None
    size: tuple[int, ...] = ()
    for layer, fold in STAGES[name].items():
        A, G = System(system.network, image, layer, fold).at(image, logit(label))
        if method == "zoom_cam":
            one = sum(g * a for a, g in zip(A, G, strict=True)).relu()
        else:
            w = []
            for a, g in zip(A, G, strict=True):
                alpha = torch.where(g > 0, g**2 / (2 * g**2 + a.sum() * g**3), 0.0)
                w.append((alpha * g.clamp(min=0)).sum())
            one = weighted(w, A).relu()
        size = size or tuple(one.shape)
        one = functional.interpolate((one / one.max())[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        combine = torch.maximum if method == "zoom_cam" else torch.mul
        fused = one if fused is None else combine(fused, one)
    assert fused is not None
    return fused


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("method", ["zoom_cam", "refine_cam"])
def test_maps_over_the_stages(systems: dict[str, System], method: str, name: str) -> None:
    system = systems[name]
    for label in range(5):
        expected = [over_the_layers(name, system, image[None], label, method) for image in system.x]
        if not any(one.isnan().any() for one in expected):  # of some classes a ReLU leaves nothing at some layer
            break
    else:
        pytest.skip("the random weights of this version of torch leave nothing at some layer, whatever the class")
    found = konkyo.explain(system.network, system.x, method=method, target=label)
    assert found.layer == "+".join(STAGES[name])
    for i in range(2):
        close(found.maps[i], expected[i])


@pytest.mark.parametrize(("method", "base"), [("zoom_cam", "hires_cam"), ("refine_cam", "grad_cam_pp")])
def test_one_stage_is_the_map_that_it_is_made_of(systems: dict[str, System], method: str, base: str) -> None:
    """A vision transformer has grids of one size only."""
    system = systems["vit"]
    run = lambda name: konkyo.explain(system.network, system.x, method=name, target=CLASSES)
    whole = run(method)
    assert "+" not in whole.layer
    close(min_max(whole.maps), min_max(run(base).maps.relu()))


# --- what holds by definition -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_without_noise_there_is_nothing_to_smooth(systems: dict[str, System], name: str) -> None:
    system = systems[name]
    close(explain(system, "smooth_grad_cam_pp", samples=2, std=0.0).signed, explain(system, "grad_cam_pp").signed)
    run = lambda method, **o: konkyo.explain(system.network, system.x, method=method, target=CLASSES, **o).maps
    close(run("smooth_grad", samples=2, std=0.0), run("saliency"))
    assert run("var_grad", samples=2, std=0.0).abs().max() == 0


def test_a_single_sample_or_node_is_enough(systems: dict[str, System]) -> None:
    system = systems["resnet"]
    close(explain(system, "smooth_grad", samples=1, std=0.0).maps, explain(system, "saliency").maps)
    found = explain(system, "integrated_grad_cam", steps=1, rectify="sum").signed
    for i, label in enumerate(CLASSES):
        A, G = system.at(system.x[i : i + 1], logit(label))
        start, _ = system.at(torch.zeros_like(system.x[:1]), logit(label))
        close(found[i], weighted(list(G.mean((1, 2))), A - start))


class Linear(nn.Module):
    """Convolution and linear head without biases: the gradient is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Linear(6 * 16 * 20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def test_noise_does_not_matter_to_a_linear_network() -> None:
    network, x = seeded(Linear()), images(2)
    run = lambda method, **o: konkyo.explain(network, x, method=method, target=2, **o).maps.double()
    close(run("smooth_grad", samples=3, std=0.5), run("saliency"))
    assert run("var_grad", samples=3, std=0.5).max() <= 1e-20
    close(run("square_grad", samples=3, std=0.5), run("saliency") ** 2)
    pp = lambda method, **o: konkyo.explain(network, x, method=method, target=2, layer="conv", **o).signed
    close(pp("smooth_grad_cam_pp", samples=3, std=0.5), pp("grad_cam_pp"))


@pytest.mark.parametrize(("rule", "share"), [("right", 0.6), ("midpoint", 0.5)])
def test_integrated_grad_cam_of_a_linear_network(rule: str, share: float) -> None:
    """The activations grow evenly from the baseline's, so 5 nodes see (1 + 2 + ... + 5) / 25 of the difference."""
    network, x = seeded(Linear()), images(1)
    found = konkyo.explain(
        network, x, method="integrated_grad_cam", target=2, layer="conv", steps=5, rule=rule, baseline=-0.5
    )
    with torch.no_grad():
        difference = network.conv(x) - network.conv(torch.full_like(x, -0.5))
        weights = network.head.weight[2].view(6, 16, 20).mean((1, 2))
        expected = torch.einsum("k,nkhw->nhw", weights, difference).relu() * share
    close(found.maps, expected)


class Reader(nn.Module):
    """Logit 0 reads all cells alike, logit 1 one cell, logit 2 half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.body(x)
        return torch.stack([a[:, :2].mean((1, 2, 3)), a[:, :, 2, 3].sum(1), (a[..., :4] ** 2).sum((1, 2, 3))], 1)


def test_ss_grad_cam_is_grad_cam_where_all_places_count_alike_and_one_place_where_one_does() -> None:
    network, x = seeded(Reader()), images(1)[..., :8, :8]
    run = lambda method, target, **o: konkyo.explain(
        network, x, method=method, target=konkyo.ClassTarget(target), layer="body", **o
    ).signed[0]
    close(run("ss_grad_cam", 0), run("grad_cam", 0))
    close(run("ss_grad_cam_pp", 0), run("grad_cam_pp", 0))
    for method in ("ss_grad_cam", "ss_grad_cam_pp"):
        one = run(method, 1)
        assert one[2, 3] != 0
        one[2, 3] = 0
        assert (one == 0).all()
    assert not torch.allclose(run("ss_grad_cam_pp", 2), run("ss_grad_cam_pp", 2, support="all"), rtol=1e-2)
    with torch.no_grad():
        a = network.body(x)[0]
        g = 2 * a * (torch.arange(8) < 4)
        w = (g.relu() / (2 + a.sum((1, 2), keepdim=True) * g)).sum((1, 2), keepdim=True)
        size = g.abs() / g.abs().amax((1, 2), keepdim=True)
    close(run("ss_grad_cam_pp", 2, support="all"), (w * a * size).sum(0))


@pytest.mark.parametrize("name", SYSTEMS)
def test_finer_cam_without_comparison_is_grad_cam(systems: dict[str, System], name: str) -> None:
    system = systems[name]
    close(explain(system, "finer_cam", gamma=0.0).signed, explain(system, "grad_cam").signed)


@pytest.mark.parametrize("weights", ["mean", "softmax"])
def test_finer_cam_of_two_classes_is_antisymmetric(weights: str) -> None:
    network, x = seeded(SmallResNet(classes=2)), images(2)
    run = lambda label, **o: konkyo.explain(network, x, method="finer_cam", target=label, weights=weights, **o).signed
    close(run(0, gamma=1.0), -run(1, gamma=1.0))  # asks for 3 classes, of which 1 is left
    assert not torch.allclose(run(0), -run(1), rtol=1e-3)


def test_finer_cam_counts_a_rival_with_the_same_logit_once() -> None:
    """Not the class itself, though its distance is 0, too."""
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        network.head.weight[4], network.head.bias[4] = network.head.weight[1], network.head.bias[1]
    found = konkyo.explain(network, x, method="finer_cam", target=4, classes=1, gamma=1.0)
    assert found.signed.abs().max() <= 1e-6
    close(
        konkyo.explain(network, x, method="finer_cam", target=4, classes=1, gamma=0.5).signed,
        konkyo.explain(network, x, method="grad_cam", target=4).signed / 2,
    )


def test_finer_cam_against_named_classes() -> None:
    network, x = seeded(SmallResNet()), images(2)
    model = konkyo.Model(network, classes=("ant", "bee", "cat", "dog", "elk"))
    run = lambda target, **o: konkyo.explain(model, x, method="finer_cam", target=target, gamma=1.0, **o)
    pair = run(2, against=["Bee"])
    close(pair.signed, konkyo.explain(model, x, method="grad_cam", target=konkyo.ContrastTarget(2, 1)).signed)
    assert torch.equal(run(2, against=(1, "bee", 2)).signed, pair.signed)  # once, and not itself
    assert torch.equal(run(2, against="bee").signed, pair.signed)

    def rivals(weights: str) -> konkyo.Target:
        with torch.no_grad():
            share = network(x)[:, [0, 3]].softmax(1) if weights == "softmax" else torch.full((2, 2), 0.5)
        return lambda output: output[:, 2] - (share[: len(output)] * output[:, [0, 3]]).sum(1)

    far = run(2, against=[3, 0])
    close(far.signed, konkyo.explain(model, x, method="grad_cam", target=rivals("mean")).signed)
    one = konkyo.explain(model, x[:1], method="grad_cam", target=rivals("softmax"))
    close(run(2, against=[0, 3], weights="softmax").signed[:1], one.signed)
    mixed = run([0, 2], against=[0, 3])  # the first row has one rival, the second two
    close(mixed.signed[1], far.signed[1])
    close(mixed.signed[0], run(0, against=[3]).signed[0])
    close(run([0, 2], against=[0, 3], weights="softmax").signed[0], run(0, against=[3]).signed[0])


@pytest.mark.parametrize(
    ("against", "said"),
    [([2], "other classes"), (["bird"], "bird"), ([5], "0 to 4"), ([True], "True"), (1.5, "a list of classes")],
)
def test_finer_cam_against_classes_that_are_none(against: object, said: str) -> None:
    model = konkyo.Model(seeded(SmallResNet()), classes=("ant", "bee", "cat", "dog", "elk"))
    with pytest.raises(konkyo.KonkyoError, match=said):
        konkyo.explain(model, images(1), method="finer_cam", target=2, against=against)


def test_finer_cam_of_pytorch_grad_cam(systems: dict[str, System]) -> None:
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam import FinerCAM
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    network, x, checked = seeded(SmallResNet()), images(1), 0
    with FinerCAM(network, [network.stage3]) as theirs:
        for this, that in ((0, 4), (4, 0), (1, 0), (1, 4)):
            expected = torch.from_numpy(theirs(x, [FinerWeightedTarget(this, [that], 0.7)]))
            options = {"against": [that], "gamma": 0.7}
            found = konkyo.explain(network, x, method="finer_cam", target=this, layer="stage3", **options)
            assert (found.maps.max() > 0) == (expected.max() > 0)
            if expected.max() > 0:
                close(min_max(resize(min_max(found.maps), tuple(x.shape[2:]))), expected, tolerance=1e-3)
                checked += 1
    assert checked >= 2


def test_finer_cam_says_where_it_does_not_apply() -> None:
    x = images(2)
    run = lambda network, target: konkyo.explain(network, x, method="finer_cam", target=target)
    with pytest.raises(konkyo.NotApplicable, match="two classes"):
        run(seeded(SmallResNet(classes=1)), 0)
    with pytest.raises(konkyo.NotApplicable, match="finer_cam"):
        run(seeded(SmallResNet()), [1, lambda output: output[:, 1]])
    with pytest.raises(konkyo.NotApplicable, match="logit"):
        run(seeded(SmallResNet()), konkyo.ClassTarget(1, "probability"))


def test_shapley_cam_of_a_logit_after_which_all_is_linear_is_grad_cam() -> None:
    network, x = seeded(SmallResNet()), images(2)
    run = lambda method, layer: konkyo.explain(network, x, method=method, target=1, layer=layer).signed
    for layer in ("stage2", "stage3"):
        close(run("shapley_cam", layer), run("grad_cam", layer))


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_shapley_cam_of_a_quadratic_score_is_half_of_grad_cam(systems: dict[str, System], name: str) -> None:
    """Of degree 2 in the activations, so the Hessian times the activations is the gradient (Euler)."""
    inner = systems[name]

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = inner.network

        def forward(self, x: Tensor) -> Tensor:
            held: list[Tensor] = []
            handle = self.body.get_submodule(inner.layer).register_forward_hook(lambda _m, _a, o: held.append(o))
            self.body(x)
            handle.remove()
            means = held[0].flatten(2).mean(2) if name == "resnet" else held[0].mean((1, 2))
            return torch.stack([(means**2).sum(1), means[:, 0] * means[:, 1]], 1)

    run = lambda method: konkyo.explain(Quadratic(), inner.x, method=method, target=0, layer=f"body.{inner.layer}")
    close(run("shapley_cam").signed, run("grad_cam").signed / 2)


@pytest.mark.parametrize("name", SYSTEMS)
def test_kpca_cam_with_a_linear_kernel_is_eigen_cam_centred(systems: dict[str, System], name: str) -> None:
    system = systems[name]
    close(explain(system, "kpca_cam", kernel="linear").maps, explain(system, "eigen_cam", centred=True).maps)


@pytest.mark.parametrize(("kernel", "gamma"), [("sigmoid", 0.02), ("rbf", 0.0), ("rbf", 0.3)])
def test_kpca_cam_is_scikit_learns(systems: dict[str, System], kernel: str, gamma: float) -> None:
    """At stage1: 320 places, where scikit-learn takes an iterative solver."""
    KernelPCA = pytest.importorskip("sklearn.decomposition").KernelPCA

    system = systems["resnet"]
    found = konkyo.explain(system.network, system.x, method="kpca_cam", layer="stage1", kernel=kernel, gamma=gamma)
    for i in range(2):
        A, _ = System(system.network, system.x, "stage1", lambda a: a[0]).at(system.x[i : i + 1], logit(0))
        matrix = A.flatten(1).T.numpy()
        theirs = KernelPCA(1, kernel=kernel, gamma=gamma or None, random_state=0).fit_transform(matrix - matrix.mean(0))
        theirs = torch.from_numpy(theirs[:, 0]).view(16, 20)
        peak = theirs.flatten()[theirs.abs().argmax()]
        close(found.maps[i], theirs * peak.sign())


def test_kpca_cam_of_one_broken_image_leaves_the_others(systems: dict[str, System]) -> None:
    system = systems["resnet"]
    x = system.x.clone()
    x[0] = torch.nan
    found = explain(system, "kpca_cam", x=x).maps
    assert found[0].isnan().all()
    close(found[1], explain(system, "kpca_cam").maps[1])


def test_kpca_cam_refuses_a_grid_whose_pairs_do_not_fit() -> None:
    with pytest.raises(konkyo.NotApplicable, match="4096"):
        konkyo.explain(seeded(SmallResNet()), torch.zeros(1, 3, 80, 80).double(), method="kpca_cam", layer="stem")


def test_seg_eigen_cam_uncentred(systems: dict[str, System]) -> None:
    system = systems["resnet"]
    found = explain(system, "seg_eigen_cam", centred=False)
    A, G = system.at(system.x[:1], logit(CLASSES[0]))
    matrix = (G.abs() * A).flatten(1).T
    projection = matrix @ torch.linalg.svd(matrix, full_matrices=False).Vh[0]
    close(found.maps[0], (projection * projection[projection.abs().argmax()].sign()).view(4, 5))
    assert found.maps[0].max() == found.maps[0].abs().max()


def test_fem_marks_what_stands_out() -> None:
    """One channel with a single peak, one without any: only the peak is marked, with the first channel's mean."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.head = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    network = Two().double().eval()
    with torch.no_grad():
        network.conv.weight.zero_()
        network.conv.weight[0, 0] = 1
        network.conv.bias.copy_(torch.tensor([0.0, 5.0]))
    x = torch.zeros(1, 3, 8, 8).double()
    x[0, 0, 2, 3] = 64
    maps = konkyo.explain(network, x, method="fem", layer="conv", target=0).maps
    assert maps[0, 2, 3] == 1
    assert maps.count_nonzero() == 1


def test_edges_of_a_step() -> None:
    x = torch.zeros(1, 3, 32, 40).double()
    x[..., 20:] = 1
    first, second = (konkyo.explain(seeded(SmallResNet(), seed), x, method="edge_map").maps for seed in (0, 1))
    expected = torch.zeros(32, 40)
    expected[:, 19:21] = 4
    assert torch.equal(first[0], expected)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "method",
    [
        *("cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam", "grad_cam_elementwise"),
        *("finer_cam", "shapley_cam", "smooth_grad_cam_pp", "fem", "random_cam"),
        *("input_x_gradient", "integrated_gradients"),
    ],
)
def test_sums_over_channels_show_what_each_channel_adds(method: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    found = konkyo.explain(network, x, method=f"first_component({method})", target=CLASSES)
    assert found.signed.shape == konkyo.explain(network, x, method=method, target=CLASSES).signed.shape


@pytest.mark.parametrize("method", ["eigen_cam", "kpca_cam", "seg_eigen_cam", "integrated_grad_cam", "saliency"])
def test_what_is_no_sum_over_channels_says_so(method: str) -> None:
    with pytest.raises(konkyo.NotApplicable, match="no sum over channels"):
        konkyo.explain(seeded(SmallResNet()), images(1), method=f"first_component({method})", target=1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("smooth_grad_cam_pp", {"samples": 0}),
        ("smooth_grad_cam_pp", {"std": -0.1}),
        ("smooth_grad_cam_pp", {"numerator": "third"}),
        ("smooth_grad", {"samples": 0}),
        ("smooth_grad", {"std": math.inf}),
        ("smooth_grad", {"samples": 2.5}),
        ("var_grad", {"samples": 1}),
        ("square_grad", {"samples": 0}),
        ("var_grad", {"std": math.nan}),
        ("finer_cam", {"gamma": -1.0}),
        ("finer_cam", {"gamma": math.nan}),
        ("finer_cam", {"classes": 0}),
        ("finer_cam", {"weights": "sum"}),
        ("integrated_gradients", {"steps": 0}),
        ("integrated_grad_cam", {"steps": 0}),
        ("integrated_grad_cam", {"rule": "upper"}),
        ("integrated_grad_cam", {"rectify": "never"}),
        ("fem", {"sigma": -1.0}),
        ("kpca_cam", {"kernel": "cubic"}),
        ("kpca_cam", {"gamma": -1.0}),
        ("shapley_cam", {"samples": 3}),
        ("edge_map", {"sigma": 1.0}),
    ],
)
def test_bad_options(method: str, options: dict[str, Any]) -> None:
    with pytest.raises(konkyo.KonkyoError, match=method):
        konkyo.explain(seeded(SmallResNet()), images(1), method=method, target=1, **options)


# --- the peers, where they are right ----------------------------------------------------------------------------------


def test_noise_tunnel_of_captum(monkeypatch: pytest.MonkeyPatch, systems: dict[str, System]) -> None:
    """With our noise; it averages signed gradients for `Saliency(abs=False)`."""
    captum = pytest.importorskip("captum.attr")

    system, samples, std = systems["resnet"], 4, 0.2

    def ours(input: Tensor, _stdev: float, _partition: int) -> Tensor:
        return torch.cat([one for picture in input for one in noisy(picture[None], samples, std)])

    monkeypatch.setattr(captum.NoiseTunnel, "_add_noise_to_input", staticmethod(ours))
    tunnel = captum.NoiseTunnel(captum.Saliency(system.network))
    for method, kind in (("smooth_grad", "smoothgrad"), ("var_grad", "vargrad")):
        theirs = tunnel.attribute(system.x, kind, nt_samples=samples, target=CLASSES, abs=False).abs().amax(1)
        close(explain(system, method, samples=samples, std=std).maps, theirs.detach())
    theirs = tunnel.attribute(system.x, "smoothgrad_sq", nt_samples=samples, target=CLASSES, abs=False).amax(1)
    close(explain(system, "square_grad", samples=samples, std=std).maps, theirs.detach())
    mean = tunnel.attribute(system.x, "smoothgrad", nt_samples=samples, target=CLASSES, abs=False).sum(1)
    wrapped = konkyo.smoothed("gradient", samples=samples, std=std)
    found = konkyo.explain(system.network, system.x, method=wrapped, target=CLASSES, seed=SEED)
    close(found.maps, mean.detach())


def test_finer_cam_of_torch_cam(systems: dict[str, System]) -> None:
    torchcam = pytest.importorskip("torchcam.methods")

    system = systems["resnet"]
    other = copy.deepcopy(system.network)
    with torchcam.FinerCAM(other, "stage3") as extractor:
        scores = other(system.x.clone().requires_grad_())
        theirs = extractor(CLASSES, scores, normalized=False)[0]
    close(explain(system, "finer_cam").maps, theirs.detach().relu())


def test_product_of_torch_cam_over_the_stages(systems: dict[str, System]) -> None:
    """Of Grad-CAM's maps: its Grad-CAM++ is another. It subtracts the smallest value, too, which is 0 for these."""
    torchcam = pytest.importorskip("torchcam.methods")

    system, layers = systems["resnet"], ["stage1", "stage2"]
    run = lambda layer, **o: konkyo.explain(system.network, system.x, target=CLASSES, layer=layer, **o).maps
    assert all(run(layer).flatten(1).amin(1).max() == 0 for layer in layers)
    other = copy.deepcopy(system.network)
    with torchcam.RefineCAM(other, layers, base_method=torchcam.GradCAM) as extractor:
        scores = other(system.x.clone().requires_grad_())
        theirs = extractor(CLASSES, scores, normalized=False)[0]
    close(run(layers, fuse="product"), theirs.detach())


def test_shapley_cam_of_pytorch_grad_cam(systems: dict[str, System]) -> None:
    pgc = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputReST

    system = systems["resnet"]
    other = copy.deepcopy(system.network)
    with pgc.ShapleyCAM(model=other, target_layers=[other.stage3]) as cam:
        theirs = torch.from_numpy(cam(system.x[:1].clone(), [ClassifierOutputReST(1)])).double()
    ours = min_max(explain(system, "shapley_cam", rest(1), system.x[:1]).maps.double())
    enlarged = functional.interpolate(ours[:, None], (32, 40), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(min_max(enlarged), theirs, rtol=0, atol=2e-5)


def test_projections_of_pytorch_grad_cam(systems: dict[str, System]) -> None:
    pgc = pytest.importorskip("pytorch_grad_cam.utils.svd_on_activations")

    system = systems["resnet"]
    for i, label in enumerate(CLASSES):
        A, G = system.at(system.x[i : i + 1], logit(label))
        theirs = torch.from_numpy(pgc.get_2d_projection_with_sign_correction((G.abs() * A)[None].numpy()))[0]
        close(explain(system, "seg_eigen_cam").maps[i], theirs)
        theirs = torch.from_numpy(pgc.get_2d_projection_kernel(A[None].numpy()))[0]
        found = explain(system, "kpca_cam").maps[i]
        close(found, theirs * (theirs * found).sum().sign())

"""What speaks against a target: in products of signed maps and in contrasts; and classes that there are not."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import Tensor

import konkyo
from helpers.closeness import close
from helpers.formulas import Literal, Slow, up
from helpers.networks import SmallResNet, images, seeded
from helpers.paths import DOCS
from konkyo.utils.tensors import Fuse, agreeing, fuse, normalised, resize

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")

LAYERS = ["stage2", "stage3"]


# --- the product of signed maps --------------------------------------------------------------------------------------


def test_the_product_of_signed_maps_place_by_place() -> None:
    a = torch.tensor([[[1.0, 1.0, -1.0, -1.0, 0.0, -0.5]]])
    b = torch.tensor([[[0.5, -0.5, 0.5, -0.5, -1.0, -1.0]]])
    expected = torch.tensor([[[0.5, 0.0, 0.0, -0.5, 0.0, -0.5]]])
    torch.testing.assert_close(fuse([a, b], "product"), expected)
    torch.testing.assert_close(fuse([a, b, b], "product"), torch.tensor([[[0.25, 0.0, 0.0, -0.25, 0.0, -0.5]]]))
    torch.testing.assert_close(fuse([-a, -b], "product"), -expected)


def test_what_speaks_against_a_target_at_all_layers_speaks_against_it() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(2)
    run = lambda layer: konkyo.explain(network, x, method="hires_cam", layer=layer, target=1, fuse="product").signed
    fused, single = run(LAYERS), [normalised(run(layer)) for layer in LAYERS]
    deep = resize(single[1], tuple(single[0].shape[1:]))
    signs = single[0].sign() + deep.sign()
    assert {-2.0, 0.0, 2.0} <= set(signs.flatten().tolist())  # all three cases are there
    close(fused, torch.where(signs == 0, 0.0, (single[0] * deep).abs() * signs.sign()))


# --- a way to fuse of one's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "came"),
    [
        (lambda maps: None, "NoneType"),
        (lambda maps: list(maps), "list"),
        (lambda maps: maps[0].numpy(), "ndarray"),
        (lambda maps: maps[0][:1], r"\(1, 8, 10\)"),
        (lambda maps: maps[0][0], r"\(8, 10\)"),
        (lambda maps: maps[0][:, None], r"\(2, 1, 8, 10\)"),
        (lambda maps: maps[0].sum(), r"\(\)"),
        (lambda maps: maps[0][:, :0], r"\(2, 0, 10\)"),
    ],
)
@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_a_function_that_fuses_must_give_a_map_per_image(method: str, made: Fuse, came: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=rf"shape \(2, \*grid\) whose grid has 2 axes; got {came}$"):
        konkyo.explain(seeded(SmallResNet()), images(2), method=method, layer=LAYERS, target=1, fuse=made)


def test_a_function_that_fuses_may_choose_its_grid() -> None:
    run = lambda **how: konkyo.explain(seeded(SmallResNet()), images(2), method="hires_cam", target=1, **how).signed
    assert torch.equal(run(layer=LAYERS, fuse=lambda maps: maps[1]), run(layer="stage3"))
    assert torch.equal(run(layer="stage3", fuse=lambda maps: maps[0][:, :2]), run(layer="stage3")[:, :2])


# --- contrasts -------------------------------------------------------------------------------------------------------


class Contrasted(Slow):
    """Group-CAM's formula of the probability of one class minus that of another."""

    def __init__(self, one: Literal, other: Literal) -> None:
        super().__init__(one)
        self.G, self.against = one.G - other.G, other.label

    @torch.no_grad()
    def probability(self, image: Tensor) -> Tensor:
        p = self.network(image).softmax(1)[0]
        return p[self.label] - p[self.against]


def test_group_cam_of_a_contrast() -> None:
    """The contrast of the probabilities is measured, that of the logits is differentiated."""
    network, x = seeded(SmallResNet(deep_head=True)), images(2)
    found = konkyo.explain(network, x, method="group_cam", target=konkyo.ContrastTarget(1, 4), groups=4).maps
    for i in range(2):
        slow = Contrasted(*(Literal(network, x[i : i + 1], label) for label in (1, 4)))
        close(up(found[i].double(), (32, 40)), slow.group_cam(4, "paper"))


@pytest.mark.parametrize("nested", [False, True])
def test_group_cam_weighs_channels_by_logits_whatever_is_measured(nested: bool) -> None:
    """One group's map is the channels with their weights, times one number: all of these have the same but for that."""
    network, x = seeded(SmallResNet(deep_head=True)), images(1)

    def run(score: konkyo.targets.classes.Score) -> Tensor:
        one, other = (konkyo.ClassTarget(label, score) for label in (1, 4))
        plain = konkyo.ContrastTarget(one, other)
        against = konkyo.Against(konkyo.ContrastTarget(other, konkyo.Against(konkyo.Against(one))))
        target = against if nested else plain
        return konkyo.explain(network, x, method="group_cam", target=target, groups=1, variant="released").maps

    logits = run("logit")
    contrast = konkyo.explain(network, x, method="grad_cam", target=konkyo.ContrastTarget(1, 4)).maps
    close(logits / logits.amax(), contrast / contrast.amax())
    for score in ("probability", "sigmoid"):
        close(run(score) / run(score).amax(), logits / logits.amax())


def test_group_cam_of_a_contrast_with_a_score_of_ones_own() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(2)
    run = lambda target: konkyo.explain(network, x, method="group_cam", target=target, groups=4).maps
    mine = lambda output: output[:, 1] - output[:, 4]
    close(run(konkyo.ContrastTarget(mine, lambda output: 0 * output[:, 0])), run(mine))


# --- classes there are not -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [5, 99, -1])
def test_finer_cam_of_a_class_there_is_not(index: int) -> None:
    network, x = seeded(SmallResNet(classes=5)), images(2)
    for target in (konkyo.ClassTarget(index), [konkyo.ClassTarget(1), konkyo.ClassTarget(index)]):
        with pytest.raises(konkyo.KonkyoError, match=rf"class {index} of a model with 5 classes \(0 to 4\)"):
            konkyo.explain(network, x, method="finer_cam", target=target)


@pytest.mark.parametrize("target", [konkyo.Against(1), konkyo.ContrastTarget(1, 4)])
def test_finer_cam_contrasts_by_itself(target: konkyo.Target) -> None:
    with pytest.raises(konkyo.NotApplicable, match="a class's logit"):
        konkyo.explain(seeded(SmallResNet()), images(1), method="finer_cam", target=target)


# --- signs of components ---------------------------------------------------------------------------------------------


def test_the_sign_that_agrees_with_the_evidence() -> None:
    evidence = torch.tensor([[[1.0, 2.0], [1.0, -1.0]], [[-1.0, -2.0], [-1.0, 1.0]]])
    maps = torch.tensor([[-1.0, -1.0], [3.0, -2.0]])
    assert torch.equal(agreeing(maps, evidence), torch.tensor([[1.0, 1.0], [-3.0, 2.0]]))
    assert torch.equal(agreeing(-maps, evidence), agreeing(maps, evidence))


def test_eigen_grad_cam_is_the_first_component_of_hires_cam() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(3)
    run = lambda method, **options: konkyo.explain(network, x, method=method, target=1, **options).signed
    close(run("eigen_grad_cam"), run("first_component(hires_cam)"))
    assert not torch.allclose(run("eigen_grad_cam", centred=True), run("eigen_grad_cam"), rtol=1e-3)


# --- what the documentation says of a method -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("grad_cam", "any classifier or detector with a feature grid"),
        ("poly_cam", "any classifier or detector with a feature grid"),
        ("saliency", "any classifier or detector"),
        ("rise", "any classifier or detector"),
        ("finer_cam", "classifiers with two classes or more"),
        ("guided_backprop", "networks with ReLU or ReLU6"),
        ("d_rise", "detectors"),
    ],
)
def test_the_networks_that_a_method_is_for(generate: ModuleType, method: str, where: str) -> None:
    assert generate.applies(konkyo.methods()[method]) == where


def test_a_class_against_itself_is_refused() -> None:
    with pytest.raises(konkyo.KonkyoError, match="with itself"):
        konkyo.explain(seeded(SmallResNet()), images(1), target=konkyo.ContrastTarget(2, 2))

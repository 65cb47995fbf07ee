"""Maps in training by any differentiable method, and the forwards that they are of."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import konkyo
from helpers.networks import Attention, SmallResNet, images, seeded
from konkyo import KonkyoError
from konkyo.methods.base import METHODS, method
from konkyo.training.differentiable import _obstacle, trainable
from konkyo.training.maps import Mode, TrainingMaps

SHAPE = (3, 32, 40)
CLASSES = torch.tensor([3, 0, 1, 1, 2])
FAMILY = ["cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam", "xgrad_cam", "grad_cam_elementwise"]
EVERY = [*FAMILY, "eigen_grad_cam", "seg_eigen_cam"]


class Pooled(nn.Module):
    """Two smooth convolutions, the mean over the grid and one linear layer: no corners for finite differences."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.soft = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 10, 3, 2, 1), nn.Softplus()
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.soft(self.conv2(self.conv1(x).tanh())).mean((2, 3)))


class Deep(nn.Module):
    """Two convolutions and a head with a hidden layer over the flattened grid: every cell has its own gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 5))
        self.head = nn.Sequential(nn.Linear(120, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.conv(x))).flatten(1))


def explained(net: nn.Module, name: str, layer: str | None, classes: Tensor = CLASSES) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of blank maps
        shown = konkyo.explain(net, images(len(classes)), method=name, target=classes.tolist(), layer=layer)
    return shown.maps.double()


def weighted(maps: Tensor) -> Tensor:
    return (maps * torch.linspace(0.5, 2.0, maps.numel()).to(maps).view(maps.shape)).sum()


def cases() -> list[tuple[str, str, Mode]]:
    found: list[tuple[str, str, Mode]] = [("pooled", name, "closed_form") for name in EVERY]
    found += [("pooled", name, "autograd") for name in EVERY if name != "cam"]
    return found + [("deep", name, mode) for name in EVERY if name != "cam" for mode in ("autograd", "detached")]


@pytest.mark.parametrize(("kind", "name", "mode"), cases())
def test_maps_are_those_of_explain_and_have_the_right_gradient(kind: str, name: str, mode: Mode) -> None:
    net = seeded(Pooled() if kind == "pooled" else Deep()).eval()
    layer = "soft" if kind == "pooled" else "relu"
    maps = TrainingMaps(net, SHAPE, layer=layer, mode=mode, method=name)
    found = maps(net(images(5)), CLASSES)
    torch.testing.assert_close(found, explained(net, name, layer), rtol=1e-5, atol=1e-7)
    assert found.flatten(1).std(1).max() > 0
    if mode == "detached":
        assert found.requires_grad
        return
    weights = dict(net.named_parameters())
    names = ("conv1.weight", "head.weight") if kind == "pooled" else ("conv.weight", "head.0.weight", "head.2.weight")
    slopes = torch.autograd.grad(weighted(found), [weights[n] for n in names])
    for key, slope in zip(names, slopes, strict=True):
        direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(2)).to(slope)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                weights[key] += step * direction
            values.append(weighted(maps(net(images(5)), CLASSES)).detach())
        with torch.no_grad():
            weights[key] += 1e-6 * direction
        expected = float(values[0] - values[1]) / 2e-6
        assert float((slope * direction).sum()) == pytest.approx(expected, rel=2e-4, abs=1e-7), key
    maps.close()


def test_which_methods_can_be_trained_is_read_from_what_they_need() -> None:
    konkyo.methods()
    offered = {name for name in METHODS if not _obstacle(METHODS[name])}
    assert offered >= set(FAMILY)
    for name, why in (
        ("score_cam", "it needs inputs, rescore"),
        ("input_x_gradient", "defined at 'input'"),
        ("eigen_cam", "same for every class"),
        ("odam", "explains the probability"),
        ("augmented(grad_cam)", "cannot be trained"),
    ):
        with pytest.raises(KonkyoError, match=why):
            trainable(name)
    with pytest.raises(KonkyoError, match=r"unknown method for training 'gradcam'; did you mean 'grad_cam'.*layer_cam"):
        trainable("gradcam")


def test_a_method_of_ones_own_is_checked() -> None:
    try:

        @method(rectified=True)
        def squared_cam(activations: Tensor, gradients: Tensor) -> Tensor:
            """Squares."""
            return gradients.mean((2, 3), keepdim=True) ** 2 * activations

        @method
        def cut_cam(activations: Tensor, gradients: Tensor) -> Tensor:
            """Is cut off from what it is made of, in part."""
            return gradients.detach().mean((2, 3), keepdim=True) * activations

        @method
        def root_cam(activations: Tensor, gradients: Tensor) -> Tensor:
            """Has an infinite slope at zero."""
            return gradients * activations.sqrt()

        assert trainable("squared_cam").name == "squared_cam"
        for name in ("cut_cam", "root_cam"):
            with pytest.raises(KonkyoError, match="finite differences"):
                trainable(name)
    finally:
        for name in ("squared_cam", "cut_cam", "root_cam"):
            METHODS.pop(name, None)


def test_cam_reads_the_head() -> None:
    with pytest.raises(KonkyoError, match="its mode is 'closed_form'"):
        TrainingMaps(seeded(SmallResNet()), SHAPE, method="cam", mode="autograd")
    with pytest.raises(KonkyoError, match="method 'grad_cam' takes any head"):
        TrainingMaps(seeded(Deep()), SHAPE, layer="relu", method="cam")


@pytest.mark.parametrize("mode", ["closed_form", "autograd", "detached"])
def test_several_classes_of_an_image(mode: Mode) -> None:
    net = seeded(SmallResNet()).eval()
    rows, classes = torch.tensor([4, 0, 0, 2, 0, 4]), torch.tensor([1, 3, 0, 2, 1, 0])
    maps = TrainingMaps(net, SHAPE, mode=mode, method="layer_cam")
    found = maps(net(images(5)), classes, rows)
    for row, (image, c) in enumerate(zip(rows.tolist(), classes.tolist(), strict=True)):
        alone = maps(net(images(5)), torch.full((5,), c))
        torch.testing.assert_close(found[row], alone[image], rtol=1e-9, atol=1e-12)
    nothing = maps(net(images(5)), classes[:0], rows[:0])
    assert (nothing.shape, nothing.requires_grad) == ((0, *maps.grid), True)
    maps.close()


# --- without gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["closed_form", "autograd", "detached"])
@pytest.mark.parametrize("view", ["train", "eval"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_maps_are_the_same_numbers(mode: Mode, view: str, context: type) -> None:
    net = seeded(SmallResNet()).eval()
    maps = TrainingMaps(net, SHAPE, mode=mode, view=view, method="layer_cam")  # type: ignore[arg-type]
    expected = maps(net(images(5)), CLASSES).detach()
    with context():
        found = maps(net(images(5)), CLASSES)
        assert not found.requires_grad
        assert torch.equal(found, expected) or torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
        assert all(p.grad is None for p in net.parameters())
    logits = net(images(5))
    with torch.no_grad():  # a forward with gradients, maps without
        found = maps(logits, CLASSES)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        logits = net(images(5))
    with pytest.raises(KonkyoError, match="without gradients, and here they are enabled"):
        maps(logits, CLASSES)
    maps.close()


# --- which forward ----------------------------------------------------------------------------------------------------


class WithDropout(nn.Module):
    def __init__(self, *, reentrant: bool | None = None, deep: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.before, self.conv, self.drop = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Dropout(0.5)
        self.relu = nn.ReLU()
        self.head: nn.Module = nn.Linear(8, 4)
        if deep:
            self.head = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))

    def features(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = self.features(x) if self.reentrant is None else self.checked(self.features, x)
        x = self.drop(x.mean((2, 3)))
        return self.head(x) if self.reentrant is None else self.checked(self.head, x)

    def checked(self, part: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(part, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["closed_form", "autograd", "detached"])
@pytest.mark.parametrize("view", ["train", "eval"])
def test_logits_of_another_forward_are_refused(mode: Mode, view: str) -> None:
    net = seeded(WithDropout()).train()
    maps = TrainingMaps(net, SHAPE, layer="relu", mode=mode, view=view)  # type: ignore[arg-type]
    first = net(images(5, seed=1))
    second = net(images(5))
    with pytest.raises(KonkyoError, match="not of the network's last forward"):
        maps(first, CLASSES)
    for same in (lambda z: z, lambda z: z.float(), lambda z: z * 2 - 1, lambda z: {"z": z}["z"][:, :]):
        second = net(images(5))
        assert maps(same(second), CLASSES).requires_grad
    if mode == "closed_form" or view == "eval":  # only what they decide matters
        for same in (lambda z: z.detach(), lambda z: z.detach().clone()):
            assert maps(same(net(images(5))), CLASSES).requires_grad
    net(images(5))
    with pytest.raises(KonkyoError, match="not of the network's last forward"):
        maps(first.detach().clone(), CLASSES)
    with torch.no_grad():
        first, second = net(images(5, seed=1)), net(images(5))
        with pytest.raises(KonkyoError, match="not of the network's last forward"):
            maps(first, CLASSES)
        second = net(images(5))
        assert len(maps(second.half().float(), CLASSES)) == 5
    maps.close()


def test_two_views_one_after_the_other_or_as_one_batch() -> None:
    net = seeded(SmallResNet()).eval()
    maps = TrainingMaps(net, SHAPE, mode="autograd")
    one, other = images(5), images(5, seed=1)
    apart = [maps(net(x), CLASSES) for x in (one, other)]
    together = maps(net(torch.cat([one, other])), CLASSES.repeat(2))
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-7, atol=1e-9)
    maps.close()


def test_an_explanation_between_forward_and_maps_is_no_forward_of_the_training() -> None:
    net = seeded(SmallResNet()).train()
    maps = TrainingMaps(net, SHAPE, mode="autograd")
    expected = maps(net(images(5)), CLASSES)
    logits = net(images(5))
    explained(net, "grad_cam", None)
    torch.testing.assert_close(maps(logits, CLASSES), expected, rtol=1e-9, atol=1e-12)
    maps.close()


def test_copies_of_data_parallel_are_told() -> None:
    net = seeded(SmallResNet()).eval()
    maps = TrainingMaps(nn.DataParallel(net), SHAPE)
    assert len(maps(nn.DataParallel(net)(images(5)), CLASSES)) == 5  # on one device the network itself runs
    copy_ = net._replicate_for_data_parallel()
    copy_._parameters = net._parameters
    logits = copy_(images(5))
    with pytest.raises(KonkyoError, match="DistributedDataParallel"):
        maps(logits, CLASSES)
    maps.close()


# --- checkpointed activations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("mode", ["autograd", "detached", "closed_form"])
def test_a_checkpoint_around_the_layer_and_what_follows_changes_nothing(deep: bool, mode: Mode) -> None:
    if deep and mode == "closed_form":
        pytest.skip("another head")
    found = []
    for reentrant in (None, False):
        net = seeded(WithDropout(reentrant=reentrant, deep=deep)).train()
        maps = TrainingMaps(net, SHAPE, layer="relu", mode="auto" if mode == "closed_form" else mode)
        assert maps.mode == "autograd" or mode != "autograd"
        steps = []
        for _ in range(2):
            torch.manual_seed(3)
            logits = net(images(5))
            total = weighted(maps(logits, CLASSES)) + logits.square().sum()
            net.zero_grad()
            total.backward()
            steps.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        for one, other in zip(*steps, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        found.append(steps[0])
        maps.close()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("mode", ["auto", "autograd", "detached"])
def test_a_reentrant_checkpoint_around_the_layer_is_told(mode: Mode) -> None:
    net = seeded(WithDropout(reentrant=True)).train()
    maps = TrainingMaps(net, SHAPE, layer="relu", mode=mode)
    logits = net(images(5))
    with pytest.raises(KonkyoError, match="use_reentrant=False"):
        maps(logits, CLASSES)
    maps.close()


# --- attention --------------------------------------------------------------------------------------------------------


def _timm(**how: object) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(  # type: ignore[no-any-return]
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=4, **how
    )


def _torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=4)
    nn.init.normal_(net.heads.head.weight, std=0.5)  # zeros at first
    return net


def _transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
        **{"image_size": 32, "patch_size": 8, "num_labels": 4},
    )
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [_timm, _torchvision, _transformers])
def test_vision_transformers_need_nothing_of_the_user(make: object) -> None:
    torch.manual_seed(0)
    net = make().double().train()  # type: ignore[operator]
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    classes = torch.tensor([3, 0, 1, 2])
    for mode in ("autograd", "detached"):
        maps = TrainingMaps(net, (3, 32, 32), mode=mode, method="hires_cam")  # type: ignore[arg-type]
        output = net(x)
        logits = output if isinstance(output, Tensor) else output.logits
        found = maps(logits, classes)
        found.square().sum().backward()
        slopes = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        assert all(g.isfinite().all() for g in slopes.values())
        net.zero_grad()
        maps.close()
        if mode == "autograd":
            keys = ("qkv.weight", "in_proj_weight", "q_proj.weight", "query.weight")
            name = [n for n in slopes if n.endswith(keys)][-1]
            _same_slope(net, x, classes, name, slopes[name])


def _same_slope(net: nn.Module, x: Tensor, classes: Tensor, name: str, slope: Tensor) -> None:
    """The gradient by a weight of the last attention, against finite differences."""
    weight, values = dict(net.named_parameters())[name], []
    maps = TrainingMaps(net, (3, 32, 32), mode="autograd", method="hires_cam")
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(1)).to(slope)
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight += step * direction
        output = net(x)
        values.append(maps(output if isinstance(output, Tensor) else output.logits, classes).square().sum().detach())
    maps.close()
    assert float(slope.abs().amax()) > 0
    assert float((slope * direction).sum()) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-12)


def test_attention_of_a_copy_in_eval_mode_has_the_same_maps() -> None:
    net = seeded(Attention()).eval()
    maps = TrainingMaps(net, SHAPE, mode="autograd", method="layer_cam")
    result = maps(net(images(5)), CLASSES)
    torch.testing.assert_close(result, explained(copy.deepcopy(net), "layer_cam", None), rtol=1e-5, atol=1e-7)
    maps.close()

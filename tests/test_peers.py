"""Equality with pytorch-grad-cam, torch-cam and captum, where those are right (double precision)."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.utils.tensors import min_max

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES = [3, 0, 4]


def network() -> nn.Module:
    return seeded(SmallResNet())


def mine(method: str, **options: Any) -> Tensor:
    return konkyo.explain(network(), images(), method=method, target=CLASSES, layer="stage3", **options).maps.double()


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("grad_cam", "GradCAM"),
        ("hires_cam", "HiResCAM"),
        ("layer_cam", "LayerCAM"),
        ("xgrad_cam", "XGradCAM"),
        ("grad_cam_elementwise", "GradCAMElementWise"),
    ],
)
def test_pytorch_grad_cam(method: str, peer: str) -> None:
    """It gives ReLU, min-max at low resolution, resize, min-max; so do we here."""
    import pytorch_grad_cam as pgc
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    other = copy.deepcopy(network())
    with getattr(pgc, peer)(model=other, target_layers=[other.stage3]) as cam:
        theirs = torch.from_numpy(cam(images(), [ClassifierOutputTarget(c) for c in CLASSES]))
    maps = min_max(mine(method).relu())
    enlarged = functional.interpolate(maps[:, None], (32, 40), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(min_max(enlarged), theirs.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "peer"),
    [("cam", "CAM"), ("grad_cam", "GradCAM"), ("layer_cam", "LayerCAM"), ("xgrad_cam", "XGradCAM")],
)
def test_torch_cam(method: str, peer: str) -> None:
    from torchcam import methods as torchcam

    other, x = network(), images()
    arguments = {"fc_layer": "head"} if peer == "CAM" else {}
    with getattr(torchcam, peer)(other, "stage3", **arguments) as extractor:
        scores = other(x.requires_grad_())
        found = extractor(CLASSES, scores, normalized=False)[0]
    torch.testing.assert_close(mine(method).relu(), found.detach().relu(), rtol=1e-5, atol=1e-8)


def test_captum() -> None:
    from captum import attr as captum

    other, x = network(), images()
    found = captum.LayerGradCam(other, other.stage3).attribute(x, target=CLASSES, relu_attributions=True)[:, 0]
    torch.testing.assert_close(mine("grad_cam"), found.detach(), rtol=1e-5, atol=1e-9)
    found = captum.LayerGradientXActivation(other, other.stage3).attribute(x, target=CLASSES).sum(1)
    torch.testing.assert_close(mine("hires_cam"), found.detach(), rtol=1e-5, atol=1e-8)
    run = lambda method, **o: konkyo.explain(network(), x, method=method, target=CLASSES, **o).maps.double()
    found = captum.Saliency(other).attribute(x, target=CLASSES).amax(1)
    torch.testing.assert_close(run("saliency"), found.detach(), rtol=1e-5, atol=1e-8)
    found = captum.InputXGradient(other).attribute(x, target=CLASSES).sum(1)
    torch.testing.assert_close(run("input_x_gradient"), found.detach(), rtol=1e-5, atol=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ig = captum.IntegratedGradients(other)
        found = ig.attribute(x, target=CLASSES, n_steps=9, method="riemann_right").sum(1)
        torch.testing.assert_close(run("integrated_gradients", steps=9), found.detach(), rtol=1e-5, atol=1e-7)
        found = ig.attribute(x, target=CLASSES, n_steps=8, method="riemann_middle").sum(1)
    torch.testing.assert_close(
        run("integrated_gradients", steps=8, rule="midpoint"), found.detach(), rtol=1e-5, atol=1e-7
    )


def test_score_cam_of_pytorch_grad_cam() -> None:
    """It enlarges masks with aligned corners; with masks enlarged as ours it gives our weights."""
    import pytorch_grad_cam as pgc
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class HalfPixel(nn.Upsample):
        def __init__(self, size: Any) -> None:
            super().__init__(size=tuple(size), mode="bilinear", align_corners=False)

    other, x = copy.deepcopy(network()), images(1)
    with pytest.MonkeyPatch.context() as patch, pgc.ScoreCAM(model=other, target_layers=[other.stage3]) as cam:
        patch.setattr(torch.nn, "UpsamplingBilinear2d", HalfPixel)
        activations = other.stage3(other.stage2(other.stage1(other.stem(x)))).detach()
        theirs = cam.get_cam_weights(x, other.stage3, [ClassifierOutputTarget(3)], activations.numpy(), None)
    alive = activations[0].flatten(1).amax(1) > activations[0].flatten(1).amin(1)
    theirs = torch.as_tensor(theirs).double()[0] * alive  # it spends weight on channels without a mask
    expected = torch.einsum("k,khw->hw", theirs / theirs.sum(), activations[0]).relu()
    torch.testing.assert_close(mine("score_cam")[0], expected, rtol=1e-5, atol=1e-8)


def test_eigen_cam_of_pytorch_grad_cam_is_ours_centred_up_to_sign() -> None:
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    other, x = network(), images(1)
    activations = other.stage3(other.stage2(other.stage1(other.stem(x)))).detach()
    theirs = torch.as_tensor(get_2d_projection(activations.numpy()))[0].double()
    found = mine("eigen_cam", centred=True)[0]
    torch.testing.assert_close(found, theirs * (found * theirs).sum().sign(), rtol=1e-5, atol=1e-6)

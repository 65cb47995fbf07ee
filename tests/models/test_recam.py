"""ReCAM against the authors' formulas written out, masked features and all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.errors import KonkyoError
from konkyo.models.networks.recam import ReCAM, ReCAMOutput, recam_loss


def network(seed: int = 0) -> ReCAM:
    torch.manual_seed(seed)
    return ReCAM(seeded(SmallResNet()), 4)


def literal(model: ReCAM, pictures: Tensor, present: list[list[int]]) -> Tensor:
    """The second loss by the features that every class's map masks, (N, K, C, h, w), image by image."""
    w, other = model.first.weight, model.second.weight
    f = model.backbone(pictures)
    a = functional.conv2d(f, w[:, :, None, None]).relu()
    m = a / (functional.adaptive_max_pool2d(a, (1, 1)) + 1e-5)
    masked = (m[:, :, None] * f[:, None]).flatten(3).mean(-1)  # (N, K, C)
    total = torch.zeros((), dtype=f.dtype)
    for features, classes in zip(masked, present, strict=True):
        if classes:
            logits = functional.conv2d(features[classes][:, :, None, None], other[:, :, None, None])[..., 0, 0]
            total = total + functional.cross_entropy(logits, torch.tensor(classes))
    return total / len(pictures)


def several(present: list[list[int]]) -> Tensor:
    labels = torch.zeros(len(present), 4)
    for row, classes in zip(labels, present, strict=True):
        row[classes] = 1
    return labels


@pytest.mark.parametrize("present", [[[1], [3], [0]], [[0, 2], [], [1, 2, 3]]])
def test_the_losses_are_the_authors(present: list[list[int]]) -> None:
    model, pictures, single = network().train(), images(), all(len(classes) == 1 for classes in present)
    model.backbone.eval()  # batch norms that do not change between the two forwards
    labels = torch.tensor([c for (c,) in present]) if single else several(present)
    terms = recam_loss(model(pictures), labels, weight=0.7)
    logits = model.first(model.backbone(pictures).mean((-2, -1)))
    if single:
        first = -sum(row.log_softmax(0)[c] for row, (c,) in zip(logits, present, strict=True)) / 3
    else:
        p, y = logits.sigmoid(), labels.double()
        first = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    second = literal(model, pictures, present)
    assert torch.allclose(terms["classification"], torch.as_tensor(first), atol=1e-12)
    assert torch.allclose(terms["reactivation"], second, atol=1e-12)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(terms["loss"], list(parameters.values()), retain_graph=True)
    expected = torch.autograd.grad(first + 0.7 * second, list(parameters.values()))
    for name, one, other in zip(parameters, found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-10), name
        assert one.abs().sum() > 0
    assert not any(term.requires_grad for name, term in terms.items() if name != "loss")


def test_the_masks_are_not_detached() -> None:
    """The second loss alone reaches w, through the masks only."""
    model, labels = network().train(), torch.tensor([0, 1, 2])
    output = model(images())
    loss = recam_loss(output, labels)["loss"] - functional.cross_entropy(output.logits, labels)
    (gradient,) = torch.autograd.grad(loss, model.first.weight)
    assert gradient[:3].abs().sum() > 0


def test_the_first_stage_is_a_classifiers_training() -> None:
    model, pictures, labels = network().train(), images(), torch.tensor([0, 1, 2])
    terms = recam_loss(model(pictures), labels, weight=0)
    terms["loss"].backward()
    assert terms["loss"].item() == pytest.approx(float(terms["classification"]))
    assert all(p.grad is not None for p in model.parameters())
    assert model.second.weight.grad.abs().sum() == 0
    slow, fast = sorted(model.groups(), key=lambda group: group["lr"])
    assert fast["lr"] == 5e-4
    assert slow["lr"] == pytest.approx(5e-5)
    assert fast["params"] == [model.second.weight]
    assert len(slow["params"]) + 1 == len(list(model.parameters()))
    assert "first.bias" not in model.state_dict()


def test_blank_maps_are_counted() -> None:
    model = network().train()
    model.first.weight.data[1] = -1
    model.backbone.eval()
    terms = recam_loss(model(images()), torch.tensor([1, 0, 1]))
    assert float(terms["blank"]) >= 2 / 3
    assert terms["loss"].isfinite()
    none = recam_loss(model(images()), torch.zeros(3, 4))
    assert float(none["blank"]) == float(none["reactivation"]) == 0
    assert none["loss"].isfinite()


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of maps that are blank before a random head
def test_recam_is_the_cam_of_both_weights() -> None:
    model, pictures = network().train(), images()
    found = model.maps(pictures)
    assert model.training
    model.eval()
    f = model.backbone(pictures)
    weight = model.first.weight * model.second.weight
    expected = torch.stack([(weight[k][:, None, None] * f).sum(1).relu() for k in range(4)], 1)
    assert torch.allclose(found, expected, atol=1e-12)
    logits = model(pictures)
    assert torch.allclose(logits, f.mean((-2, -1)) @ model.first.weight.T, atol=1e-12)
    sharper = model.reactivated()
    for k in range(4):
        plain = konkyo.explain(model, pictures, method="cam", target=k).maps.double()
        assert torch.allclose(plain, torch.einsum("c,nchw->nhw", model.first.weight[k], f), atol=1e-6)
        assert torch.allclose(plain.mean((-2, -1)), logits[:, k], atol=1e-6)
        again = konkyo.explain(sharper, pictures, method="cam", target=k).maps.double()
        assert torch.allclose(again.relu(), expected[:, k], atol=1e-6)


def test_maps_of_mirrored_and_resized_images_are_added() -> None:
    model, pictures = network().eval(), images()
    plain = model.maps(pictures)
    flipped = model.maps(pictures.flip(-1)).flip(-1)
    assert torch.allclose(model.maps(pictures, flip=True), plain + flipped, atol=1e-12)
    half = functional.interpolate(pictures, scale_factor=0.5, mode="bilinear")
    small = functional.interpolate(model.maps(half), size=plain.shape[2:], mode="bilinear")
    assert torch.allclose(model.maps(pictures, scales=(1.0, 0.5)), plain + small, atol=1e-12)
    unit = model.maps(pictures, flip=True, scales=(1.0, 0.5), normalised=True)
    total = model.maps(pictures, flip=True, scales=(1.0, 0.5))
    for n in range(3):
        for k in range(4):
            assert torch.allclose(unit[n, k], total[n, k] / (total[n, k].max() + 1e-5))


def test_it_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    pictures = torch.randn(16, 3, 16, 16, generator=generator) * 0.2
    pictures[labels == 1, :2, :8, :8] += 1.5
    torch.manual_seed(0)
    model = ReCAM(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()), 2).train()
    values = []
    for weight in (0.0, 1.0):  # the two stages
        optimiser = torch.optim.Adam(model.parameters() if weight == 0 else model.groups(0.05), 0.02)
        for _ in range(30):
            terms = recam_loss(model(pictures), labels, weight=weight)
            optimiser.zero_grad()
            terms["loss"].backward()
            optimiser.step()
            values.append({name: float(term.detach()) for name, term in terms.items()})
    assert values[29]["classification"] < 0.5 * values[0]["classification"]
    assert values[29]["reactivation"] > 0.5
    assert values[-1]["reactivation"] < 0.6 * values[30]["reactivation"]


def test_half_precision_and_mistakes() -> None:
    model = ReCAM(seeded(SmallResNet(), double=False), 4).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(double=False))
        terms = recam_loss(output, torch.tensor([0, 1, 2]))
    assert isinstance(output, ReCAMOutput)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    with pytest.raises(KonkyoError, match="in eval mode"):
        recam_loss(output.logits, torch.tensor([0, 1, 2]))
    for labels in (torch.zeros(3), torch.zeros(3, 5), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(KonkyoError, match=r"\(3,\) integers, or \(3, 4\)"):
            recam_loss(output, labels)

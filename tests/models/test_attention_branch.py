"""The attention branch network against the authors' forward, written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.errors import KonkyoError
from konkyo.models.networks.attention_branch import AttentionBranchNetwork, AttentionBranchOutput, attention_branch_loss
from konkyo.models.networks.backbone import Backbone, features_of


def network(**options: Backbone) -> AttentionBranchNetwork:
    torch.manual_seed(0)
    return AttentionBranchNetwork(seeded(SmallResNet()), 4, **options)


def lively(model: nn.Module) -> nn.Module:
    """With batch norms that do something in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def literal(model: AttentionBranchNetwork, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """bn_att, att_conv, bn_att2, relu; att_conv2, pooling; att_conv3, bn_att3, sigmoid; x att + x, pooling, fc."""

    def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        shape = (1, -1, 1, 1)
        if model.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, var = bn.running_mean, bn.running_var
        scaled = (x - mean.view(shape)) / (var.view(shape) + bn.eps).sqrt()
        return scaled * bn.weight.view(shape) + bn.bias.view(shape)

    x = model.backbone(pictures)
    bn_att, att_conv, bn_att2, _ = model.attending.maps
    att_conv3, bn_att3, _ = model.attending.attention
    ax = norm(functional.conv2d(norm(x, bn_att), att_conv.weight), bn_att2).clamp_min(0)
    att = torch.sigmoid(norm(functional.conv2d(ax, att_conv3.weight, padding=1), bn_att3))
    scores = functional.conv2d(ax, model.attending.scores.weight).mean((-2, -1))
    rx = x * att + x
    return model.head(rx.mean((-2, -1))), scores, att[:, 0]


@pytest.mark.parametrize("training", [True, False])
def test_the_forward_is_the_authors(training: bool) -> None:
    model, pictures = lively(network()).train(training), images()
    model.backbone.eval()
    logits, scores, attention = literal(model, pictures)
    output = copy.deepcopy(model)(pictures)  # batch norms in training keep statistics
    if training:
        assert isinstance(output, AttentionBranchOutput)
        for found, expected in zip(output, (logits, scores, attention), strict=True):
            assert torch.allclose(found, expected, atol=1e-12)
    else:
        assert torch.allclose(output, logits, atol=1e-12)
        assert torch.allclose(model.attention(pictures), attention, atol=1e-12)
    assert all("bias" not in name for name, _ in model.attending.scores.named_parameters())


def test_the_loss_is_the_sum_of_two() -> None:
    model, labels = network().train(), torch.tensor([2, 0, 3])
    output = model(images())
    terms = attention_branch_loss(output, labels)
    each = [-sum(row.log_softmax(0)[c] for row, c in zip(t, labels, strict=True)) / 3 for t in output[:2]]
    assert torch.allclose(terms["ce"], each[0])
    assert torch.allclose(terms["branch"], each[1])
    assert torch.allclose(terms["loss"], each[0] + each[1])
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert not terms["ce"].requires_grad


def test_attention_leaves_the_network_as_it_was() -> None:
    model, pictures = lively(network()).train(), images()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = model.attention(pictures)
    assert found.shape == (3, 8, 10)[:1] + tuple(model.backbone(pictures).shape[2:])
    assert ((found > 0) & (found < 1)).all()
    assert model.training
    assert not found.requires_grad
    model.load_state_dict(state)
    model.attention(pictures)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(found, model.eval().attention(pictures))


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of maps that are blank before a random head
def test_cam_is_that_of_the_emphasised_grid() -> None:
    model, pictures = lively(network()).eval(), images()
    grid, attention = model.backbone(pictures), model.attention(pictures)
    for k in range(4):
        expected = torch.einsum("c,nchw->nhw", model.head.weight[k], grid) * (1 + attention)
        found = konkyo.explain(model, pictures, method="cam", target=k)
        assert found.layer == "emphasis"
        assert torch.allclose(found.maps.double(), expected, atol=1e-6)
        assert torch.allclose(expected.mean((-2, -1)) + model.head.bias[k], model(pictures)[:, k], atol=1e-12)
        assert konkyo.explain(model, pictures, method="grad_cam", target=k).maps.shape == found.maps.shape


def test_the_last_stage_can_be_split_as_the_authors_do() -> None:
    whole = seeded(SmallResNet())
    unstrided = copy.deepcopy(whole.stage3)
    unstrided.conv1.stride = unstrided.shortcut.stride = (1, 1)
    model = AttentionBranchNetwork(
        features_of(whole, "stage2"),
        4,
        branch=Backbone(unstrided, 24),
        perception=Backbone(copy.deepcopy(whole.stage3), 24),
    ).eval()
    pictures = images()
    grid = whole.stage2(whole.stage1(whole.stem(pictures)))
    attention = model.attention(pictures)
    assert attention.shape[1:] == grid.shape[2:]
    last = whole.stage3(grid * (1 + attention[:, None]))
    assert torch.allclose(model(pictures), model.head(last.mean((-2, -1))), atol=1e-12)
    cam = konkyo.explain(model, pictures, method="cam", target=0).maps.double()
    assert torch.allclose(cam, torch.einsum("c,nchw->nhw", model.head.weight[0], last), atol=1e-6)
    strided = AttentionBranchNetwork(features_of(whole, "stage2"), 4, branch=Backbone(whole.stage3, 24))
    with pytest.raises(KonkyoError, match="a branch has no stride"):
        strided(pictures)


def test_it_learns_and_half_precision_and_mistakes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    pictures = torch.randn(16, 3, 16, 16, generator=generator) * 0.2
    pictures[labels == 1, :2, :8, :8] += 1.5
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten())
    model = AttentionBranchNetwork(body, 2).train()
    optimiser, values = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(30):
        terms = attention_branch_loss(model(pictures), labels)
        optimiser.zero_grad()
        terms["loss"].backward()
        optimiser.step()
        values.append(terms["loss"].item())
    assert values[-1] < 0.6 * values[0]
    with torch.autocast("cpu", torch.bfloat16):
        terms = attention_branch_loss(model(pictures), labels)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    with pytest.raises(KonkyoError, match="in eval mode"):
        attention_branch_loss(model.eval()(pictures), labels)

"""The methods on a transformer of tokens and on a Swin: the same literal formulas as on a residual network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.formulas import OPTIONS, Literal, references, swin
from helpers.networks import Attention, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


def at(layer: str, method: str) -> dict[str, str]:
    """The layer, for methods that are not defined at the input."""
    return {} if konkyo.methods()[method].layer else {"layer": layer}


@pytest.mark.parametrize(
    "method", [name for name in vars(Literal) if name in konkyo.methods() and name not in ("cam", "grad_cam_pp")]
)
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_method_equals_its_formula(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = images(2), [2, 4]
    network, layer, _ = references(kind, x[:1], 0)
    found = konkyo.explain(network, x, method=method, target=labels, **at(layer, method), **OPTIONS.get(method, {}))
    assert found.layer in (layer, "input")
    if kind == "swin":
        assert konkyo.Model(network).automatic_layers(x.shape[1:])[0].name == layer
    for i, label in enumerate(labels):
        literal = references(kind, x[i : i + 1], label)[2]
        with monkeypatch.context() as without:
            if found.rectified:  # compared before the last ReLU, which may leave nothing
                without.setattr(Tensor, "relu", lambda values: values)
            expected = getattr(literal, method)()
        scale = expected.abs().max()
        assert scale > 0
        torch.testing.assert_close(found.signed[i].double(), expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_grad_cam_pp_on_signed_activations(kind: str) -> None:
    """Taken at its word where 2 + sum(A) G is not 0, as the reduced formula is."""
    x = images(1)
    network, layer, literal = references(kind, x, 3)
    found = konkyo.explain(network, x, method="grad_cam_pp", target=3, layer=layer)
    total = literal.A.sum((1, 2), keepdim=True)
    weights = (literal.G.relu() / (2 + total * literal.G)).sum((1, 2))
    expected = literal.weighted(list(weights)).relu()
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-5 * expected.max())


def test_cam_on_a_swin_and_where_a_class_token_decides() -> None:
    x = images(1)
    network, _, literal = references("swin", x, 3)
    found = konkyo.explain(network, x, method="cam", target=3)
    expected = literal.weighted(list(network.head.weight[3].detach()))
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(konkyo.NotApplicable, match="global average pooling"):
        konkyo.explain(seeded(Attention()), x, method="cam")


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_random_cam_and_rise_do_not_depend_on_the_kind_of_network(kind: str) -> None:
    x = images(1)
    network, layer, literal = references(kind, x, 1)
    weights = torch.rand(len(literal.A), generator=torch.Generator().manual_seed(3)) * 2 - 1
    found = konkyo.explain(network, x, method="random_cam", seed=3, layer=layer)
    torch.testing.assert_close(found.maps[0].double(), literal.weighted(list(weights.double())), rtol=1e-5, atol=1e-6)
    maps = konkyo.explain(network, x, method="rise", target=1, masks=6, keep=1.0).maps  # masks of ones alone
    score = network(x).softmax(1)[0, 1].detach()
    torch.testing.assert_close(maps.double(), score.expand(1, 32, 40), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_methods_of_relus_say_that_they_have_no_place(kind: str) -> None:
    x = images(1)
    network, _, _ = references(kind, x, 1)
    for method in ("guided_backprop", "guided_grad_cam"):
        with pytest.raises(konkyo.NotApplicable, match="ReLU"):
            konkyo.explain(network, x, method=method)
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule for"):
        konkyo.explain(network, x, method="relevance_cam", layer="patch" if kind == "vit" else "features.0")


def test_full_grad_on_a_swin() -> None:
    """The terms of every module with a bias, channels last or first, each made a picture by hand."""
    x, network = images(1), swin()
    found = konkyo.explain(network, x, method="full_grad", target=2)
    outputs, handles = list[tuple[Tensor, nn.Module]](), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm)) and module.bias is not None:
            handles.append(module.register_forward_hook(lambda m, _a, out: outputs.append((out, m))))
    image = x.clone().requires_grad_()
    score = network(image)[0, 2]
    for handle in handles:
        handle.remove()
    slope, *slopes = torch.autograd.grad(score, [image, *(out for out, _ in outputs)])
    terms = [(image * slope).abs()]
    for (out, module), gradient in zip(outputs, slopes, strict=True):
        if out.ndim == 4:
            bias = module.bias.view(1, -1, 1, 1) if isinstance(module, nn.Conv2d) else module.bias
            term = (gradient * bias).abs()
            terms.append(term if isinstance(module, nn.Conv2d) else term.permute(0, 3, 1, 2))
    assert len(terms) > 10
    expected = torch.zeros(32, 40, dtype=torch.double)
    for term in terms:
        scaled = (term - term.amin()) / (term.amax() - term.amin())
        expected += nn.functional.interpolate(scaled.detach(), (32, 40), mode="bilinear").sum(1)[0]
    torch.testing.assert_close(found.maps[0].double(), expected, rtol=1e-5, atol=1e-5 * expected.max())


@pytest.mark.parametrize("side", [32, 64])
def test_full_grad_where_layer_norms_have_channels_first(side: int) -> None:
    """A ConvNeXt whose second stage has as many channels (8) as its grid has columns, for images of 64 pixels."""
    import timm

    network = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5)
    network, x = seeded(network), images(1)[..., :32].repeat(1, 1, side // 32, side // 32)
    terms: list[tuple[Tensor, Tensor, int]] = []
    for module in network.modules():
        bias = getattr(module, "bias", None)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.LayerNorm)) and bias is not None:
            axis = 1 if isinstance(module, nn.Conv2d) or "2d" in type(module).__name__ else -1
            module.register_forward_hook(lambda _m, _a, out, b=bias, axis=axis: terms.append((out, b, axis)))
    image = x.clone().requires_grad_()
    score = network(image)[0, 2]
    found = list(terms)
    slope, *slopes = torch.autograd.grad(score, [image, *(out for out, _, _ in found)])
    expected = torch.zeros(side, side, dtype=torch.double)
    for term in [
        image * slope,
        *(g.movedim(a, 1) * b.view(1, -1, *[1] * (g.ndim - 2)) for g, (_, b, a) in zip(slopes, found, strict=True)),
    ]:
        if term.ndim == 4 and term.shape[2:] != (1, 1):
            size = term.abs()
            size = ((size - size.amin()) / (size.amax() - size.amin())).detach()
            expected += nn.functional.interpolate(size, (side, side), mode="bilinear").sum(1)[0]
    maps = konkyo.explain(network, x, method="full_grad", target=2).maps
    torch.testing.assert_close(maps[0].double(), expected, rtol=1e-5, atol=1e-5 * expected.max())

"""Grad-ECLIP against literal transcriptions, on a class token and on a pooling attention, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import konkyo
from helpers.closeness import close
from konkyo.engine.forward import Pass
from konkyo.engine.probe import Probe
from konkyo.models import as_model

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


class Block(nn.Module):
    """A block of width 12 with two heads, by the fused function, or by hand."""

    def __init__(self, *, by_hand: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2, self.by_hand = nn.LayerNorm(12), nn.LayerNorm(12), by_hand
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm1(x)
        q, k, v = (part(inner).unflatten(2, (2, 6)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.by_hand:
            read = (q @ k.mT / 6**0.5).softmax(-1) @ v
        else:
            read = functional.scaled_dot_product_attention(q, k, v)
        return self.after(x, read.transpose(1, 2).flatten(2))

    def after(self, x: Tensor, read: Tensor) -> Tensor:
        x = x + self.out(read)
        return x + self.mlp(self.norm2(x))


class Network(nn.Module):
    """Two blocks over 16 patches; read at a class token, by an attention pooling ("pool"), or as a mean."""

    def __init__(self, read: str = "class", *, by_hand: bool = False) -> None:
        super().__init__()
        self.read, count = read, int(read == "class")
        self.patch, self.places = nn.Conv2d(3, 12, 8, 8), nn.Parameter(torch.randn(1, 16 + count, 12))
        self.first, self.last = Block(), Block(by_hand=by_hand)
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)
        if read == "pool":
            self.probe, self.pool = nn.Parameter(torch.randn(1, 1, 12)), nn.MultiheadAttention(12, 3, batch_first=True)

    def embed(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).mT
        if self.read == "class":
            x = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
        return x + self.places

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.last(self.first(self.embed(images))))
        if self.read == "pool":
            probe = self.probe.expand(len(x), -1, -1)
            return self.head(self.pool(probe, x, x, need_weights=False)[0][:, 0])
        return self.head(x[:, 0] if self.read == "class" else x.mean(1))


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.double)


def eclip(query: Tensor, keys: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
    """The formula, a patch at a time: (C,), (L, C), (L, C), (C,) -> (L,)."""
    cosines = torch.stack([(query @ key) / query.norm() / key.norm() for key in keys])
    weights = (cosines - cosines.min()) / (cosines.max() - cosines.min())
    return torch.stack([max(weight * (gradient @ value), 0 * weight) for weight, value in zip(weights, values)])  # noqa: B905


def by_hand(network: Network, image: Tensor, label: int, heads: str) -> Tensor:
    """The map of a network that reads a class token, (4, 4)."""
    block, x = network.last, network.first(network.embed(image[None]))
    inner = block.norm1(x)[0]
    q, k, v = block.q(inner), block.k(inner), block.v(inner)
    parts = 2 if heads == "model" else 1
    width, read = 12 // parts, []
    for head in range(parts):
        part = slice(head * width, (head + 1) * width)
        read.append(((q[:, part] @ k[:, part].T) / width**0.5).softmax(1) @ v[:, part])
    read = torch.cat(read, 1)[None].detach().requires_grad_()
    with torch.enable_grad():
        score = network.head(network.norm(block.after(x, read))[:, 0])[0, label]
        (slope,) = torch.autograd.grad(score, read)
    return eclip(block.out(q)[0], block.out(k)[1:], v[1:], slope[0, 0]).view(4, 4).detach()


@pytest.mark.parametrize("heads", ["model", "one"])
def test_it_is_the_formula_at_a_class_token(heads: str) -> None:
    network, x = Network().double().eval(), images()
    result = konkyo.explain(network, x, method="grad_eclip", target=konkyo.Each(1, 3), heads=heads)
    expected = [by_hand(network, image, label, heads) for image in x for label in (1, 3)]
    assert min(map(float, (result.maps.amax(), expected[0].amax()))) > 0
    for row, other in zip(result.maps, expected, strict=True):
        close(row, other)


def test_one_head_is_another_network_only_while_it_is_asked_for() -> None:
    network, x = Network().double().eval(), images()
    before = network(x).detach()
    one, model = (konkyo.explain(network, x, method="grad_eclip", target=1, heads=h) for h in ("one", "model"))
    assert (one.maps - model.maps).abs().max() > 1e-3
    close(one.scores, before[:, 1])  # the score is the network's own
    assert torch.equal(network(x), before)


def test_it_reads_a_pooling_attention() -> None:
    network, x = Network("pool").double().eval(), images(1)
    result = konkyo.explain(network, x, method="grad_eclip", target=2)
    tokens, pool = network.norm(network.last(network.first(network.embed(x))))[0].detach(), network.pool
    (wq, wk, wv), (bq, bk, bv) = pool.in_proj_weight.chunk(3), pool.in_proj_bias.chunk(3)
    q, k, v = (t @ w.T + b for t, w, b in ((network.probe[0], wq, bq), (tokens, wk, bk), (tokens, wv, bv)))
    parts = [((q[:, p] @ k[:, p].T) / 2).softmax(1) @ v[:, p] for p in (slice(0, 4), slice(4, 8), slice(8, 12))]
    read = torch.cat(parts, 1).detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(network.head(pool.out_proj(read))[0, 2], read)
    close(result.maps[0], eclip(pool.out_proj(q)[0], pool.out_proj(k), v, slope[0]).view(4, 4).detach())


def test_values_weighed_by_the_attention_are_what_the_token_reads() -> None:
    network, x = Network().double().eval(), images()
    model = as_model(network)
    layer = model.layer(None, (3, 32, 32))
    probe = Probe(Pass(model, x, [layer]), [konkyo.ClassTarget(1)] * 2, layer)
    read = probe.reading("one")
    inner = network.last.norm1(network.first(network.embed(x)))
    weights = (network.last.q(inner)[:, :1] @ network.last.k(inner).mT / 12**0.5).softmax(-1)  # (N, 1, L)
    total = (weights[:, 0] * torch.einsum("nc,nlc->nl", read.gradient, read.values)).sum(1)
    close(total, (read.gradient * (weights @ network.last.v(inner))[:, 0]).sum(1).detach())


def test_without_loosened_attention_it_is_gradient_times_value() -> None:
    network, x = Network().double().eval(), images(1)
    plain = konkyo.explain(network, x, method="grad_eclip", target=1, loosened=False)
    full = konkyo.explain(network, x, method="grad_eclip", target=1)
    assert ((plain.maps > 0) >= (full.maps > 0)).all()
    assert (plain.maps - full.maps).min() >= -1e-9


def test_it_is_the_formula_on_the_tower_of_clip() -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=5)
    network, x = CLIPVisionModelWithProjection(config).double().eval(), images(1)
    block, parts = network.vision_model.encoder.layers[-1].self_attn, {}
    hooks = [
        getattr(block, name).register_forward_hook(lambda m, i, o, name=name: parts.__setitem__(name, o[0].detach()))
        for name in ("q_proj", "k_proj", "v_proj")
    ]

    def leaf(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts["o"] = args[0].detach().requires_grad_()
        return (parts["o"],)

    hooks.append(block.out_proj.register_forward_pre_hook(leaf))
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(network(pixel_values=x).image_embeds[0, 3], parts["o"])
    for hook in hooks:
        hook.remove()
    q, k = (block.out_proj(parts[name]).detach() for name in ("q_proj", "k_proj"))
    expected = eclip(q[0], k[1:], parts["v_proj"][1:], slope[0, 0]).view(4, 4)
    model = konkyo.Model(network, select=lambda output: output.image_embeds)
    close(konkyo.explain(model, x, method="grad_eclip", target=lambda output: output[:, 3]).maps[0], expected)


def test_a_mean_of_tokens_and_a_softmax_by_hand_are_refused() -> None:
    with pytest.raises(konkyo.NotApplicable, match=r"reads one token .* here it reads 16"):
        konkyo.explain(Network("mean").eval(), images().float(), method="grad_eclip", target=1)
    with pytest.raises(konkyo.NotApplicable, match="scaled_dot_product_attention"):
        konkyo.explain(Network(by_hand=True).eval(), images().float(), method="grad_eclip", target=1)

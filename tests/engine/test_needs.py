"""Needs declare what they are, and a method that makes variants of any of them explains each target as if alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import konkyo
from helpers.networks import SmallResNet, images, seeded
from konkyo.engine.needs import Need, need, needs_of
from konkyo.engine.path import Sampling
from konkyo.engine.probe import NEEDS, Probe
from konkyo.engine.rules import CONTRASTIVE
from konkyo.methods.base import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


def halves(x: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Two variants of every row: itself, and half of it."""
    return lambda row, k: x[row][None] * (1 - 0.5 * k.view(-1, *[1] * (x.ndim - 1)).to(x))


CALLS: dict[str, Callable[..., Any]] = {
    "ablate": lambda ask, x: ask(),
    "segment": lambda ask, x: ask("slic", 12),
    "rescore": lambda ask, x: ask(2, inputs=halves(x)),
    "score_at": lambda ask, x: ask(torch.ones(len(x), 24, 4, 5).to(x)),
    "note": lambda ask, x: ask("number", x.flatten(1).sum(1)) or x,
    "regrad": lambda ask, x: ask(torch.ones(2).to(x), inputs=halves(x)),
    "differentiate": lambda ask, x: ask(lambda output, score: score**2),
    "curvature": lambda ask, x: ask(torch.ones(len(x), 24, 4, 5).to(x)),
    "revisit": lambda ask, x: rows_of(x, ask(2, inputs=halves(x))),
    "integrate": lambda ask, x: ask(torch.zeros_like(x), Sampling(3)),
    "on": lambda ask, x: ask(x * 0.5).score,
    "on_grid": lambda ask, x: ask(torch.arange(17.0).to(x).expand(len(x), 17)),
    "block_gradients": lambda ask, x: ask(),
    "reading": lambda ask, x: ask().gradient,
    "class_index": lambda ask, x: torch.full((len(x),), float(ask("bee"))),
    "cross_attentions": lambda ask, x: ask(torch.full((len(x),), 3)),
    "encoder_decoder": lambda ask, x: ask(lambda a, g: (a * g).sum(1)).steps[-1][1],
    "propagate": lambda ask, x: ask(CONTRASTIVE),
    "lift": lambda ask, x: ask(torch.zeros_like(x)),
}
"""How a need that is called is asked; x: the images of the rows."""


def rows_of(x: Tensor, visits: Any) -> Tensor:
    rows: list[list[Tensor]] = [[] for _ in x]
    for row, _, _, gradients in visits:
        rows[row].append(gradients)
    return torch.stack([torch.cat(found) for found in rows])


def amount(name: str, value: Any, x: Tensor) -> Tensor:
    """Of what a need gives a number in (0, 1) for every row, which tells rows of different values apart."""
    value = CALLS[name](value, x) if NEEDS[name].signature else value
    if name == "probe":
        value = value.score
    elif name == "targets":
        value = torch.tensor([float(target.index) for target in value])
    elif name == "generator":
        value = torch.rand(1, generator=value).expand(len(x), 1)
    parts = value if isinstance(value, tuple) else (value,)
    flat = torch.cat([part.to(x).reshape(len(x), -1) for part in parts], 1)
    places = torch.linspace(0.3, 1.7, flat.shape[1]).to(x)
    return 0.5 + 0.4 * (20 * flat * places).mean(1).sin()


DECODERS = ("queries", "cross_attentions", "encoder_decoder")


def targets_for(name: str, network: Any, x: Tensor) -> list[Any]:
    if name not in DECODERS:
        return [1, 3]
    return list(konkyo.explain(network, x, method="odam", target=konkyo.Detections(threshold=0.0, top=2)).targets)


def network_for(name: str) -> tuple[Any, Tensor]:
    if name in DECODERS:
        from helpers.detectors_of_transformers import network, pictures

        return network("detr").double(), pictures(1).double()
    if name == "class_index":
        return konkyo.Model(seeded(SmallResNet()), classes=("ant", "bee", "cat", "dog", "elk")), images(1)
    attention = {"attentions", "attention_gradients", "readout", "on_grid", "block_gradients", "reading"}
    if name in attention:
        noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        return seeded(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)), noise.double()
    return seeded(SmallResNet(deep_head=name in ("ablate", "curvature"))), images(1)


@pytest.mark.parametrize("name", NEEDS)
def test_variants_made_of_a_need_are_those_of_the_own_target(name: str) -> None:
    amounts: list[Tensor] = []

    def function(value: Any, inputs: Tensor, rescore: Any) -> Tensor:
        share = amount(name, value, inputs)
        amounts.append(share)
        scores = rescore(1, inputs=lambda row, _: share[row] * inputs[row][None])
        return scores[:, :, None] * inputs[:, 0]

    method = konkyo.Method("of_need", function, False, None, "logit", (name, "inputs", "rescore"), {})
    network, x = network_for(name)
    targets = targets_for(name, network, x)
    together = konkyo.explain(network, x, method=method, target=konkyo.Each(*targets)).signed
    shares = amounts.pop()
    assert shares.isfinite().all()
    assert torch.allclose(shares[0], shares[1], rtol=1e-9) == (not NEEDS[name].of_target), shares
    for row, target in enumerate(targets):
        alone = konkyo.explain(network, x, method=method, target=target).signed[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-6)


def test_every_need_that_is_called_is_called_here() -> None:
    assert {name for name, declared in NEEDS.items() if declared.signature} == set(CALLS)


@pytest.mark.parametrize("name", ["ablate", "integrate"])
def test_variants_after_a_need_in_closed_form_or_along_a_path(name: str) -> None:
    def function(value: Any, inputs: Tensor, activations: Tensor, rescore: Any) -> Tensor:
        given = CALLS[name](value, inputs)
        weights = given if given.ndim == 2 else given.mean((2, 3))
        cam = torch.einsum("nc,nchw->nhw", weights - weights.amin(1, keepdim=True), activations)
        large = torch.nn.functional.interpolate(cam[:, None], inputs.shape[2:])
        return rescore(1, inputs=lambda row, _: large[row][None] * inputs[row][None])[:, :, None] * cam

    method = konkyo.Method("of_two", function, False, None, "logit", (name, "inputs", "activations", "rescore"), {})
    network, x = seeded(SmallResNet()), images(1)
    together = konkyo.explain(network, x, method=method, target=konkyo.Each(1, 3)).signed
    for row, target in enumerate((1, 3)):
        alone = konkyo.explain(network, x, method=method, target=target).signed[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-6)


def test_variants_of_the_image_alone_are_run_once_for_all_targets() -> None:
    network, x = seeded(SmallResNet()), images(1)
    batches: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    cost = []
    for target in (konkyo.Each(1), konkyo.Each(1, 2, 3)):
        konkyo.explain(network, x, method="score_cam", target=target)
        batches.clear()
        konkyo.explain(network, x, method="score_cam", target=target)
        cost.append(sum(batches))
    handle.remove()
    assert cost[0] == cost[1]


def test_a_member_that_declares_nothing_is_refused() -> None:
    class Offers:
        @property
        @need(of_target=False)
        def declared(self) -> int:
            """A number. And more."""
            return 1

        @cached_property
        def undeclared(self) -> int:
            """A number."""
            return 1

    with pytest.raises(TypeError, match="undeclared is a public member without @need"):
        needs_of(Offers)


def test_a_need_says_whether_it_depends_on_the_target() -> None:
    with pytest.raises(TypeError, match="of_target"):
        need(cost="something")
    with pytest.raises(TypeError, match="of_gradient is of_target, too"):
        Need(of_target=False, of_layer=True, of_gradient=True)


@pytest.mark.parametrize(
    "name",
    [n for n, m in METHODS.items() if m.score != "similarity" and not any(NEEDS[one].inside for one in m.needs)],
)
def test_needs_of_the_network_within_are_told(name: str) -> None:
    """What does without the network's modules explains a network that has none."""
    method = METHODS[name]
    network = seeded(SmallResNet(), double=False)

    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(x)

    small = {"masks": 4, "window": 16, "stride": 16, "samples": 4, "permutations": 1, "count": 4}
    small |= {"grid": 2, "designs": 8, "evaluations": 6}
    small = {option: value for option, value in small.items() if option in method.options}
    result = konkyo.explain(Closed(), images(1, double=False), method=name, layer="input", **small)
    assert result.signed.isfinite().all()


def test_every_need_is_offered_by_a_probe() -> None:
    assert set(NEEDS) == {name for name in vars(Probe) if not name.startswith("_")}
    assert all(declared.name == name and declared.summary for name, declared in NEEDS.items())

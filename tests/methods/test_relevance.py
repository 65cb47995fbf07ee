"""LRP and excitation backprop, against literal transcriptions of every rule, and the sums that they keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as tv
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

import konkyo
from helpers.closeness import close
from helpers.networks import Block, SmallResNet, images, seeded
from konkyo.engine.forward import Pass
from konkyo.engine.layer import INPUT, Layer
from konkyo.engine.probe import Probe
from konkyo.engine.rules import COMPOSITES, composed, rule_of

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


def without_biases(network: nn.Module) -> nn.Module:
    """The network with every bias, running mean and embedding of a place at 0."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and name.endswith(("bias", "running_mean", "pos_embedding", "class_token")):
            tensor.zero_()
    return network


def lrp(network: nn.Module, x: Tensor, target: object = 1, **options: object) -> Tensor:
    """Relevance per channel, in double precision."""
    layer = options.pop("layer", INPUT)
    model = konkyo.Model(network)
    where = Layer(INPUT, None) if layer == INPUT else model.layer(layer, tuple(x.shape[1:]))
    probe = Probe(Pass(model, x, [where]), [konkyo.ClassTarget(target)] * len(x), where)
    settings = {"composite": "epsilon", **options}
    return probe.propagate(composed(**settings))


def sums(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


# --- every rule, word for word ----------------------------------------------------------------------------------------


def literal_shares(rule: str, x: Tensor, w: Tensor, b: Tensor, bias: str, epsilon: float) -> Tensor:
    """share_ij of R_j, (outputs j, inputs i), from the definition, one product after the other."""
    name, numbers = rule_of(rule).name, rule_of(rule).numbers
    shares = torch.zeros_like(w)
    kept = b if bias == "absorb" else torch.zeros_like(b)
    stab = lambda z: z + (epsilon if z >= 0 else -epsilon)
    plus, minus = (lambda v: max(float(v), 0.0)), (lambda v: min(float(v), 0.0))
    for j in range(len(w)):
        z = float(x @ w[j]) + float(kept[j])
        up = sum(plus(x[i]) * plus(w[j, i]) + minus(x[i]) * minus(w[j, i]) for i in range(len(x)))
        down = sum(plus(x[i]) * minus(w[j, i]) + minus(x[i]) * plus(w[j, i]) for i in range(len(x)))
        for i in range(len(x)):
            xi, wij = float(x[i]), float(w[j, i])
            positive, negative = max(xi * wij, 0.0), min(xi * wij, 0.0)
            if name == "epsilon":
                shares[j, i] = xi * wij / stab(z)
            elif name == "gamma":
                g = numbers[0]
                if z > 0:
                    shares[j, i] = (xi * wij + g * positive) / stab(z + g * up + g * plus(kept[j]))
                elif z < 0:
                    shares[j, i] = (xi * wij + g * negative) / stab(z + g * down + g * minus(kept[j]))
            elif name in ("alpha_beta", "z_plus"):
                alpha, beta = numbers or (1.0, 0.0)
                above, below = up + plus(kept[j]), down + minus(kept[j])
                shares[j, i] = alpha * positive / above if above else 0.0
                shares[j, i] -= beta * negative / below if below else 0.0
            elif name == "flat":
                shares[j, i] = w.reach[j, i] / w.reach[j].sum()
            elif name == "w_square":
                shares[j, i] = wij**2 / float((w[j] ** 2).sum())
            else:
                low, high = -1.0, 2.0
                terms = [float(x[k] * w[j, k]) - low * plus(w[j, k]) - high * minus(w[j, k]) for k in range(len(x))]
                shares[j, i] = terms[i] / stab(sum(terms))
    return shares


class TwoLayers(nn.Module):
    """A convolution that reads the image, a ReLU and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, 2, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().flatten(1))


def as_matrix(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map, from what it makes of every unit."""
    count = torch.Size(shape).numel()
    return linear(torch.eye(count, dtype=torch.double).view(count, *shape)).flatten(1).T


@pytest.mark.parametrize("bias", ["absorb", "leave_out"])
@pytest.mark.parametrize(
    "first",
    ["epsilon", "gamma(0.25)", "gamma(3)", "alpha_beta(2, 1)", "alpha_beta(1, 0)", "z_plus", "flat", "w_square", "box"],
)
def test_rules_by_hand(first: str, bias: str) -> None:
    network = seeded(TwoLayers())
    x = torch.randn(1, 1, 4, 6, dtype=torch.double)
    x[0, 0, 0, :3] = 0  # a pixel of 0 has relevance, too, where the rule does not ask for its value
    inside = "epsilon" if first in ("flat", "w_square", "box") else first
    model = konkyo.Model(network)
    probe = Probe(Pass(model, x, [Layer(INPUT, None)]), [konkyo.ClassTarget(1)], Layer(INPUT, None))
    probe._pass.network = Painted(model)
    found = probe.propagate(
        composed("epsilon", rules={"first": first, "linear": inside}, bias=bias, epsilon=0.01)
    ).detach()

    with torch.no_grad():
        w1 = as_matrix(lambda v: functional.conv2d(v, network.conv.weight, None, 2, 1), (1, 4, 6))
        w1.reach = as_matrix(
            lambda v: functional.conv2d(v, torch.ones_like(network.conv.weight), None, 2, 1), (1, 4, 6)
        )
        b1 = network.conv.bias.repeat_interleave(6)
        hidden = network.conv(x).relu().flatten()
        w2 = network.head.weight.clone()
        shares = literal_shares(inside, hidden, w2, network.head.bias, bias, 0.01)
        inner = shares[1] * network(x)[0, 1]
        inner[hidden == 0] = 0
        expected = inner @ literal_shares(first, x.flatten(), w1, b1, bias, 0.01)
    close(found.flatten(), expected, 1e-9)


class Painted:
    """A network whose black is -1 and whose white is 2."""

    black, white = (-1.0,), (2.0,)

    def __init__(self, model: konkyo.Model) -> None:
        self.module, self.name, self._model = model.module, model.name, model

    def __call__(self, x: Tensor) -> Tensor:
        return self._model(x)


class Plain(nn.Module):
    """Convolutions, ReLUs, pooling and two linear layers; `between` runs in the middle."""

    def __init__(self, between: Callable[[Tensor], Tensor] = Tensor.relu) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.hidden, self.head, self.between = nn.Linear(8, 6), nn.Linear(6, 5), between

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.b(self.a(x).relu()).relu(), 2)
        x = self.c(self.between(x)).relu().mean((2, 3))
        return self.head(self.hidden(x).relu())


def test_epsilon_without_biases_is_input_times_gradient() -> None:
    network, x = without_biases(seeded(Plain())), images(2)
    found = konkyo.explain(network, x, method="lrp", composite="epsilon", epsilon=0.0, target=1)
    close(found.signed, konkyo.explain(network, x, method="input_x_gradient", target=1).signed)
    far = konkyo.explain(network, x, method="lrp", composite="epsilon", epsilon=0.1, target=1)
    assert not torch.allclose(far.signed, found.signed, rtol=1e-2)


def test_gamma_grows_into_z_plus() -> None:
    network, x = without_biases(seeded(Plain())), images(2).abs()
    z_plus = lrp(network, x, rules={"conv": "z_plus"}, layer="a")
    for gamma, near in ((1e6, True), (0.5, False)):
        found = lrp(network, x, rules={"conv": f"gamma({gamma})"}, layer="a")
        assert torch.allclose(found, z_plus, rtol=1e-4, atol=1e-6) == near


@pytest.mark.parametrize("layer", ["a", "b", "c", INPUT])
@pytest.mark.parametrize("composite", [name for name in COMPOSITES if "alpha2" not in name])
def test_relevance_is_kept_in_every_layer(composite: str, layer: str) -> None:
    network, x = without_biases(seeded(Plain())), images(2).abs()
    found = sums(lrp(network, x, composite=composite, epsilon=1e-9, layer=layer))
    close(found, network(x)[:, 1].detach(), 0.02 if "plus" in composite else 1e-6)


def test_alpha_beta_keeps_relevance_where_both_sums_are_there() -> None:
    network, x = without_biases(seeded(Plain())), images(2).abs()
    assert (network.c(network.b(network.a(x).relu()).relu()) != 0).all()
    found = sums(lrp(network, x, composite="epsilon_alpha2_beta1_flat", epsilon=1e-9))
    close(found, network(x)[:, 1].detach(), 0.05)


# --- batch norms, sums, products --------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1"])
def test_a_batch_norm_is_part_of_the_convolution_before_it(composite: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    fused = copy.deepcopy(network)
    for block in fused.modules():
        if isinstance(block, Block):
            block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
            block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
    fused.stem[0], fused.stem[1] = fuse_conv_bn_eval(fused.stem[0], fused.stem[1]), nn.Identity()
    close(lrp(network, x, composite=composite), lrp(fused, x, composite=composite), 1e-8)


@pytest.mark.parametrize("bias", ["absorb", "leave_out"])
def test_factors_and_summands_per_channel_are_batch_norms(bias: str) -> None:
    norm = seeded(nn.BatchNorm2d(8))
    frozen = FrozenBatchNorm2d(8).double()
    frozen.load_state_dict({k: v for k, v in norm.state_dict().items() if "num_batches" not in k})
    options = {"composite": "epsilon_plus_flat", "bias": bias}
    of = [lrp(seeded(Plain(nn.Sequential(nn.Conv2d(8, 8, 1), n))), images(2), **options) for n in (norm, frozen)]
    close(of[0], of[1])


def test_a_convolution_that_is_read_twice_and_one_that_puts_out_the_scores() -> None:
    conv, norm = seeded(nn.Conv2d(8, 8, 1)), seeded(nn.BatchNorm2d(8))

    def twice(x: Tensor) -> Tensor:
        y = conv(x)
        return norm(y).relu() + y.relu()

    def apart(x: Tensor) -> Tensor:
        return norm(conv(x)).relu() + conv(x).relu()

    x = images(2)
    found = [lrp(seeded(Plain(f)), x, composite="epsilon_plus_flat") for f in (twice, apart)]
    close(found[0], found[1])
    network = seeded(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1)))
    flat = copy.deepcopy(network)
    flat[3] = nn.Sequential(nn.Flatten(), nn.Linear(8, 5).double())
    flat[3][1].weight.data, flat[3][1].bias.data = network[3].weight.data.flatten(1), network[3].bias.data
    close(*(lrp(konkyo_flat(n), x, composite="epsilon_plus") for n in (network, flat)))


def konkyo_flat(network: nn.Module) -> nn.Module:
    return nn.Sequential(network, nn.Flatten())


class OneToOne(nn.Module):
    """Two units of one pixel are added: 3x and -x."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        a, b = functional.linear(x, x.new_tensor([[3.0]])), functional.linear(x, x.new_tensor([[-1.0]]))
        return functional.linear(a + b, x.new_tensor([[1.0], [2.0]]))


def test_a_sum_by_hand() -> None:
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.double)
    network = OneToOne()
    for addition, shares in (("ratio", (3 / 4, 1 / 4)), ("epsilon", (3 / 2, -1 / 2))):
        seen = {}
        for name, hide in (("a", 0), ("b", 1)):  # what goes through the other summand is cut off

            class Half(nn.Module):
                def forward(self, x: Tensor, hide: int = hide) -> Tensor:
                    x = x.flatten(1)
                    parts = [functional.linear(x, x.new_tensor([[w]])) for w in (3.0, -1.0)]
                    parts[1 - hide] = parts[1 - hide].detach().clone().requires_grad_() * 1
                    return functional.linear(parts[0] + parts[1], x.new_tensor([[1.0], [2.0]]))

            seen[name] = float(lrp(Half(), x, addition=addition, epsilon=0.0).sum())
        assert seen["a"] == pytest.approx(2.0 * shares[0])
        assert seen["b"] == pytest.approx(2.0 * shares[1])
        assert float(lrp(network, x, addition=addition, epsilon=0.0).sum()) == pytest.approx(2.0)


class Gated(nn.Module):
    """A squeeze-and-excitation gate."""

    def __init__(self, constant: bool = False, inplace: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(4, 8, 1, bias=False)
        self.constant, self.inplace = constant, inplace

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        gate = gate.detach() if self.constant else gate
        return x.clone().mul_(gate) if self.inplace else x * gate


def test_gates() -> None:
    x = images(2)
    network = without_biases(seeded(Plain(Gated())))
    close(sums(lrp(network, x)), network(x)[:, 1].detach(), 1e-3)
    constant = copy.deepcopy(network)
    constant.between.constant = True
    close(lrp(network, x, product="gate"), lrp(constant, x), 1e-6)
    assert not torch.allclose(lrp(network, x), lrp(constant, x))
    network.between.inplace = True
    close(lrp(network, x, product="gate"), lrp(constant, x), 1e-6)


@pytest.mark.parametrize(
    "between",
    [
        *(functional.gelu, functional.silu, functional.hardswish, functional.relu6, torch.tanh, functional.mish),
        *(nn.SiLU(inplace=True), nn.Hardswish(inplace=True), lambda x: x * x.sigmoid(), lambda x: x.clone().add_(x)),
        *(nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), lambda x: functional.layer_norm(x, x.shape[1:]), nn.RMSNorm(10)),
        *(lambda x: x / x.norm(dim=1, keepdim=True), lambda x: x + x.tanh(), lambda x: x * x.sigmoid() + x),
        lambda x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-6).sqrt(),
        nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2, bias=False),
        lambda x: x.flatten(2).topk(40, dim=2).values.unflatten(2, (5, 8)),
        lambda x: x.flatten(2).sort(dim=2)[0].view_as(x),
        lambda x: x.take_along_dim(x.argsort(3), 3),
        lambda x: torch.addcmul(x, x, x.sigmoid(), value=0.5),
        lambda x: x.clone().addcmul_(x, x.tanh()),
        lambda x: functional.grid_sample(x, x[:, :2].movedim(1, -1).tanh() * 0.5, align_corners=False),
    ],
)
def test_relevance_is_kept_without_biases(between: Callable[[Tensor], Tensor]) -> None:
    network, x = without_biases(seeded(Plain(between))), images(2)
    for addition in ("ratio", "epsilon"):
        found = sums(lrp(network, x, addition=addition, epsilon=1e-9))
        close(found, network(x)[:, 1].detach(), 1e-4)


def test_choices_hand_relevance_to_what_is_chosen() -> None:
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values, places = x.flatten(1).topk(2, dim=1)
            beside = x.flatten(1).gather(1, (places + 1) % 6)
            return torch.stack([values @ x.new_tensor([2.0, -1.0]), (values * beside).sum(1)], 1)

    x = torch.tensor([[[[1.0, 5.0, 3.0], [-2.0, 4.0, 0.5]]]], dtype=torch.double)
    assert lrp(Largest(), x, 0).flatten().tolist() == pytest.approx([0, 10, 0, 0, -4, 0], abs=1e-5)
    halves = [0, 7.5, 7.5, 0, 1, 1]  # of 5 * 3 and 4 * 0.5
    assert lrp(Largest(), x, 1).flatten().tolist() == pytest.approx(halves, abs=1e-5)


def test_what_is_chosen_among_weights_is_a_constant() -> None:
    weights = nn.Parameter(torch.rand(8, 4, dtype=torch.double))
    scaled = (lambda t: t * weights.max(1).values[:, None, None], lambda t: t * weights.amax(1).detach()[:, None, None])
    of = [lrp(seeded(Plain(between)), images(1)) for between in scaled]
    close(of[0], of[1])


@pytest.mark.parametrize(("method", "options"), [("lrp", {"composite": "epsilon_plus"}), ("deep_lift", {})])
def test_norms_of_torch_itself_are_those_of_its_layers(method: str, options: dict[str, Any]) -> None:
    """They take their weights before their statistics."""
    weight, bias, mean, variance = (torch.rand(8).double() + 0.5 for _ in range(4))
    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
        (
            lambda t: torch.batch_norm(t, weight, bias, mean, variance, False, 0.1, 1e-5, False),
            lambda t: functional.batch_norm(t, mean, variance, weight, bias),
        ),
        (
            lambda t: torch.instance_norm(t, weight, bias, None, None, True, 0.1, 1e-5, False),
            lambda t: functional.instance_norm(t, None, None, weight, bias),
        ),
    ]
    for pair in pairs:
        found, expected = (
            konkyo.explain(seeded(Folded(norm)), images(1), method=method, target=1, **options).signed for norm in pair
        )
        close(found, expected)


class Folded(nn.Module):
    """A convolution, a norm that may be folded into it, and a linear layer."""

    def __init__(self, norm: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 3), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_a_sum_with_a_product_is_a_sum_and_a_product() -> None:
    x = images(2)
    for options in ({}, {"addition": "epsilon"}, {"product": "gate"}):
        found = lrp(seeded(Plain(lambda t: torch.addcmul(t, t, t.sigmoid(), value=-0.5))), x, **options)
        close(found, lrp(seeded(Plain(lambda t: t + t * t.sigmoid() * -0.5)), x, **options))


def test_points_at_which_a_grid_is_sampled_are_constants() -> None:
    def sampled(constant: bool) -> Tensor:
        def between(t: Tensor) -> Tensor:
            points = t[:, :2].movedim(1, -1).tanh()
            return functional.grid_sample(t, points.detach() if constant else points, align_corners=False)

        return lrp(seeded(Plain(between)), images(2))

    close(sampled(False), sampled(True))
    table = torch.ones(2, 8, 8, 8, dtype=torch.double)  # what has no place in the image
    alone = Plain(lambda t: functional.grid_sample(table, t[:, :2].movedim(1, -1), align_corners=False))
    with pytest.raises(konkyo.NotApplicable, match="grid_sample"):
        lrp(seeded(alone), images(2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_averages_by_hand_in_all_numbers_of_dimensions(dims: int) -> None:
    """x_i of a cell has the share x_i / n / (a + epsilon) of what the average a > 0 of its n cells has."""
    x = torch.rand(2, 1, *[4] * dims).double()
    for pool in (getattr(nn, f"AvgPool{dims}d")(2), getattr(nn, f"AdaptiveAvgPool{dims}d")(2)):
        network = nn.Sequential(pool, nn.Flatten(), nn.Linear(2**dims, 3, bias=False)).double()
        averages, score = pool(x), network(x)[:, 1].detach()
        of_averages = averages * network[2].weight[1].detach().view(averages.shape[1:])
        of_averages *= (score / (score + 0.1 * score.sign())).view(-1, *[1] * (1 + dims))
        shares = of_averages / (averages + 0.1) / 2**dims
        for axis in range(2, 2 + dims):
            shares = shares.repeat_interleave(2, axis)
        close(lrp(network, x, epsilon=0.1), x * shares, 1e-6)


def test_functions_in_place_are_those_that_are_not() -> None:
    class Sum(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.conv, self.inplace = nn.Conv2d(8, 8, 1), inplace

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if self.inplace:
                y += x
                y.add_(x)
                return functional.silu(y, inplace=True)
            return functional.silu(y + x + x)

    x = images(2)
    for addition in ("ratio", "epsilon"):
        close(*(lrp(seeded(Plain(Sum(i))), x, addition=addition) for i in (True, False)))


# --- attention --------------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """One attention of one head over a token per column, with a residual sum; a token's mean is scored."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.qkv, self.out = how, nn.Linear(3, 9, bias=False), nn.Linear(3, 3, bias=False)
        self.head = nn.Linear(3, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.mean(2).mT  # (N, L, 3)
        if self.how == "module":
            y = functional.multi_head_attention_forward(
                *(tokens.transpose(0, 1),) * 3,
                *(3, 1, self.qkv.weight, None, None, None, False, 0.0, self.out.weight, None),
                training=False,
                need_weights=False,
            )[0].transpose(0, 1)
        else:
            q, k, v = self.qkv(tokens).chunk(3, -1)
            if self.how == "fused":
                y = functional.scaled_dot_product_attention(q, k, v)
            else:
                y = ((q * 3**-0.5) @ k.mT).softmax(-1) @ v
            y = self.out(y)
        return self.head((tokens + y).mean(1))


def epsilon_rule(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    """R_i = sum_j x_i w_ji / z_j R_j for x (L, I), w (J, I), r (L, J)."""
    z = x @ w.T
    return torch.einsum("li,ji,lj->li", x, w, r / z)


@pytest.mark.parametrize("attention", ["cp", "attnlrp"])
@pytest.mark.parametrize("how", ["hand", "fused", "module"])
def test_attention_by_hand(how: str, attention: str) -> None:
    network, x = seeded(Head(how)), images(1)
    with torch.no_grad():
        t = x[0].mean(1).T
        wq, wk, wv = network.qkv.weight.chunk(3)
        q, k, v = (t @ w.T for w in (wq, wk, wv))
        s = q @ k.T / 3**0.5
        p = s.softmax(-1)
        o = p @ v
        y = o @ network.out.weight.T
        pooled = (t + y).mean(0)
        r = pooled * network.head.weight[1]
        r = (t + y) / len(t) / pooled * r  # the mean
        r_t, r_y = r * t.abs() / (t.abs() + y.abs()), r * y.abs() / (t.abs() + y.abs())
        r_o = epsilon_rule(o, network.out.weight, r_y)
        r_v = torch.einsum("ij,jc,ic->jc", p, v, r_o / o)
        if attention == "attnlrp":
            r_p = torch.einsum("ij,jc,ic->ij", p, v, r_o / o) / 2
            r_v = r_v / 2
            r_s = s * (r_p - p * r_p.sum(1, keepdim=True))
            r_q = torch.einsum("ic,jc,ij->ic", q, k, r_s / s) / 3**0.5 / 2
            r_k = torch.einsum("ic,jc,ij->jc", q, k, r_s / s) / 3**0.5 / 2
            r_t = r_t + epsilon_rule(t, wq, r_q) + epsilon_rule(t, wk, r_k)
        r_t = r_t + epsilon_rule(t, wv, r_v)
        expected = x[0] / x.shape[2] / t.T[:, None] * r_t.T[:, None]  # the mean over rows
    found = lrp(network, x, attention=attention, epsilon=0.0)[0]
    close(found, expected, 1e-6)
    kept = float(found.sum() / network(x)[0, 1].detach())
    assert (abs(kept - 1) < 1e-6) == (attention == "cp")


def small_vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 48}
    return seeded(tv.VisionTransformer(**sizes, num_classes=5))


def small_swin() -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return seeded(tv.SwinTransformer(**sizes, num_classes=5))


@pytest.mark.parametrize("build", [small_vit, small_swin])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_gamma_box", "epsilon_plus_flat"])
def test_transformers_without_biases_keep_relevance(build: Callable[[], nn.Module], composite: str) -> None:
    network, x = without_biases(build()), images(2)[..., :32]
    close(sums(lrp(network, x, composite=composite, epsilon=1e-12)), network(x)[:, 1].detach(), 1e-3)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_residual_networks_do_not_explode(composite: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
        x = torch.randn(1, 3, 32, 32)
    found = konkyo.explain(network, x, method="lrp", composite=composite, target=1)
    share = float(found.signed.sum() / network(x)[0, 1].detach())
    assert 0.5 < share < 1.5


# --- starts, targets, errors ------------------------------------------------------------------------------------------


def test_starts() -> None:
    network, x = without_biases(seeded(Plain())), images(2)
    options = {"composite": "epsilon", "epsilon": 0.0}
    logit, one = (lrp(network, x, start=start, **options) for start in ("logit", "one"))
    close(logit, one * network(x)[:, 1].detach().view(-1, 1, 1, 1))
    network = seeded(SmallResNet())
    where = konkyo.Model(network).layer("stage3", (3, 32, 40))
    probe = Probe(Pass(konkyo.Model(network), x, [where]), [konkyo.ClassTarget(3)] * 2, where)
    rules = {"conv": "z_plus", "linear": "z_plus"}
    options = {"rules": rules, "bias": "leave_out", "addition": "epsilon", "epsilon": 0.0}
    close(probe.propagate(composed("epsilon", start="contrastive", **options)), probe.relevance)


def test_every_row_has_its_own_relevance() -> None:
    network, x = seeded(SmallResNet()), images(2)
    both = konkyo.explain(network, x, method="lrp", target=[1, 4])
    for i, label in enumerate((1, 4)):
        close(both.signed[i], konkyo.explain(network, x[i : i + 1], method="lrp", target=label).signed[0])
    several = konkyo.explain(network, x[:1], method="lrp", target=konkyo.Each(1, 4))
    close(several.signed[0], both.signed[0])


def test_the_usual_backward_is_back_afterwards() -> None:
    network, x = seeded(SmallResNet()), images(1)
    before = konkyo.explain(network, x, method="saliency", target=1).signed
    konkyo.explain(network, x, method="lrp", target=1)
    assert torch.equal(konkyo.explain(network, x, method="saliency", target=1).signed, before)
    assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"composite": "epsilon_minus"}, "composite of lrp is one of 'epsilon', 'epsilon_plus'"),
        ({"rules": {"conv": "gama"}}, "relevance rule 'gama'.*gamma"),
        ({"rules": {"conv": "gamma(1, 2)"}}, "takes 1 numbers"),
        ({"rules": {"conv": "gamma(-1)"}}, "of 0 or more"),
        ({"rules": {"conv": "gamma(one)"}}, "takes 1 numbers"),
        ({"rules": {"conv": "alpha_beta(2, 2)"}}, "alpha - beta is 1"),
        ({"rules": {"conv": "flat"}}, "its place is at the image"),
        ({"rules": {"convolution": "flat"}}, "kind of linear map 'convolution'"),
        ({"epsilon": -1.0}, "epsilon is 0 or more"),
        ({"start": "two"}, "start of lrp is one of"),
    ],
)
def test_what_there_is_not(options: dict[str, object], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(seeded(Plain()), images(1), method="lrp", target=1, **options)


@pytest.mark.parametrize(
    "end",
    [
        *(torch.sin, lambda x: x.softmax(1), lambda x: 1 / (x + 9), lambda x: functional.linear(x, x.mT @ x)),
        pytest.param(
            lambda x: torch.addcmul(x, 0.5, x, x),  # an old order of its arguments
            marks=pytest.mark.filterwarnings("ignore:This overload of addcmul is deprecated"),
        ),
    ],
)
def test_functions_without_a_rule_are_named(end: Callable[[Tensor], Tensor]) -> None:
    class Ended(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return end(super().forward(x))

    with pytest.raises(konkyo.NotApplicable, match=r"no relevance rule for.*products and attention have one$"):
        konkyo.explain(Ended(seeded(Plain())), images(1), method="lrp", target=1)
    with pytest.raises(konkyo.NotApplicable, match=r"no relevance rule for.*ReLUs and pooling have one \(lrp has more"):
        konkyo.explain(Ended(seeded(Plain())), images(1), method="relevance_cam", layer="0.c", target=1)


@pytest.mark.parametrize(
    "pooled",
    [
        lambda h: torch.cat([h.mean((2, 3)), h.std((2, 3))], 1)[:, 4:12],
        lambda h: h.mean((2, 3)) + h.norm(dim=(2, 3)),
        lambda h: h.mean((2, 3)) + (h.mean((2, 3)) + 0.1).sqrt().clamp_max(5.0),
    ],
    ids=["statistics", "norm", "root"],
)
def test_spreads_that_are_no_divisors_have_no_rule(pooled: Callable[[Tensor], Tensor]) -> None:
    """As constants they would take their part of the score away in silence."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(pooled(self.a(x).relu()))

    with pytest.raises(konkyo.NotApplicable, match=r"no relevance rule for Pooled's \w+ that is no divisor"):
        konkyo.explain(seeded(Pooled()), images(1), method="lrp", target=1)


def test_normalize_is_a_division_by_a_constant() -> None:
    by_hand = without_biases(seeded(Plain(lambda t: t / t.norm(dim=1, keepdim=True))))
    network, x = Plain(functional.normalize).double().eval(), images(2)
    network.load_state_dict(by_hand.state_dict())
    close(lrp(network, x), lrp(by_hand, x))
    close(sums(lrp(network, x)), network(x)[:, 1].detach(), 1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_weights_is_a_linear_layer(bias: bool) -> None:
    class Product(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = functional.max_pool2d(self.b(self.a(x).relu()).relu(), 2).mean((2, 3)) @ self.hidden.weight.mT
            return (x + self.hidden.bias if bias else x).relu() @ self.head.weight.mT

    class Layers(Product):
        def forward(self, x: Tensor) -> Tensor:
            x = functional.max_pool2d(self.b(self.a(x).relu()).relu(), 2).mean((2, 3))
            x = functional.linear(x, self.hidden.weight, self.hidden.bias if bias else None)
            return functional.linear(x.relu(), self.head.weight)

    product, layers, x = seeded(Product()), seeded(Layers()), images(2)
    for rule in ("z_plus", "gamma(0.5)", "alpha_beta(2, 1)", "epsilon"):
        close(lrp(product, x, rules={"linear": rule}), lrp(layers, x, rules={"linear": rule}))
    found = konkyo.explain(product, x, method="excitation_backprop", layer="a", target=1)
    assert (found.signed >= 0).all()
    close(sums(found.signed), torch.ones(2))


# --- excitation backprop ----------------------------------------------------------------------------------------------


def test_excitation_is_a_distribution() -> None:
    network, x = seeded(Plain()), images(2).abs()
    found = konkyo.explain(network, x, method="excitation_backprop", layer="c", target=1)
    assert (found.maps >= 0).all()
    close(sums(found.maps), torch.ones(2))
    model = konkyo.Model(network)
    rules = {"conv": "z_plus", "linear": "z_plus"}
    by_lrp = konkyo.explain(model, x, method="lrp", layer="c", target=1, rules=rules, bias="leave_out", start="one")
    close(found.maps, by_lrp.maps)


def test_excitation_is_a_distribution_where_branches_cancel() -> None:
    """A branch takes nearly all of a residual sum away."""
    network, x = seeded(Plain(lambda t: t + t * -0.97)), images(2).abs()
    found = konkyo.explain(network, x, method="excitation_backprop", layer="a", target=1)
    assert (found.signed >= 0).all()
    close(sums(found.maps), torch.ones(2))


@pytest.mark.parametrize(
    "function",
    [
        lambda t: t.clamp(min=100),
        lambda t: t.clamp(-2, -1),
        lambda t: t.clamp_max(-1.0),
        lambda t: t**0,
        lambda t: t**-1,
    ],
    ids=["clamp", "negative", "clamp_max", "constant", "reciprocal"],
)
def test_what_puts_out_something_where_nothing_is_has_no_rule(function: Callable[[Tensor], Tensor]) -> None:
    """Else a constant score would have a map."""
    with pytest.raises(konkyo.NotApplicable, match="no relevance rule"):
        lrp(seeded(Plain(function)), images(1))


@pytest.mark.parametrize(
    "function", [lambda t: t.clamp(-1, 1), lambda t: t.clamp_max(2.0), lambda t: t.clamp_min(-0.5), lambda t: t**2]
)
def test_clips_around_zero_and_powers_hand_relevance_on(function: Callable[[Tensor], Tensor]) -> None:
    network, x = without_biases(seeded(Plain(function))), images(2)
    close(sums(lrp(network, x)), network(x)[:, 1].detach(), 2e-2)


@pytest.mark.parametrize("contrast", [False, True])
def test_excitation_by_hand(contrast: bool) -> None:
    network, x = seeded(Plain()), images(1)
    found = konkyo.explain(network, x, method="excitation_backprop", layer="c", target=2, contrast=contrast).signed[0]

    def excited(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
        z = w.clamp(min=0) @ x
        return x * (w.clamp(min=0).T @ torch.where(z == 0, 0, r / z))

    with torch.no_grad():
        before = functional.max_pool2d(network.b(network.a(x).relu()).relu(), 2)
        grid = network.c(before).relu()[0]
        pooled = grid.mean((1, 2))
        hidden = network.hidden(pooled).relu()
        maps = []
        for sign in (1, -1) if contrast else (1,):
            r = excited(hidden, sign * network.head.weight[2:3], torch.ones(1, dtype=torch.double))
            r = excited(pooled, network.hidden.weight, r)
            maps.append((grid / pooled.clamp(min=1e-30)[:, None, None] / grid[0].numel() * r[:, None, None]).sum(0))
        expected = maps[0] - maps[1] if contrast else maps[0]
    close(found, expected)


def test_contrast_needs_a_last_linear_layer() -> None:
    network = nn.Sequential(seeded(Plain()), nn.ReLU())
    with pytest.raises(konkyo.NotApplicable, match="last linear map"):
        konkyo.explain(network, images(1), method="excitation_backprop", layer="0.c", target=1, contrast=True)


@pytest.mark.parametrize(("options", "kind"), [({}, "unstable"), ({"bias": "absorb"}, "ok"), ({"epsilon": 10.0}, "ok")])
def test_relevance_that_was_divided_by_nearly_nothing_is_told(options: dict[str, Any], kind: str) -> None:
    """z = x_0 - x_1 + 1 with x_0 - x_1 = 1e-5: of the score come (x_0 + x_1) / (1e-5 + 1e-6) times as much."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).double()
    x = torch.full((1, 3, 4, 4), 0.5, dtype=torch.double)
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.fill_(1)
        network[1].weight[:, 0], network[1].weight[:, 1] = 1, -1
    x[0, 0, 0, 0] += 1e-5
    settings = {"composite": "epsilon", "rules": {"first": "epsilon"}, "bias": "leave_out", **options}
    found = konkyo.explain(network, x, method="lrp", target=1, layer="input", **settings)
    assert found.diagnosis[0].kind == kind
    if kind == "unstable":
        assert "9.1e+04 times" in found.diagnosis[0].message


def test_a_logit_near_0_is_a_sum_of_parts_and_no_division() -> None:
    """Its parts, and so the map, do not depend on the bias that makes the logit 1e-5 or 1."""
    network, x, results = seeded(Plain()), images(1), []
    for logit in (1e-5, 1.0):
        with torch.no_grad():
            network.head.bias[1] += logit - network(x)[0, 1]
        results.append(konkyo.explain(network, x, method="lrp", target=1, epsilon=0.0))
    close(results[0].signed, results[1].signed, 1e-6)
    assert [result.diagnosis[0].kind for result in results] == ["ok", "ok"]

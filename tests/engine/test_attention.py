"""Attention made explicit, and its methods against literal transcriptions with matrices, in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import konkyo
from helpers.closeness import close
from helpers.networks import Attention, SmallResNet, seeded
from konkyo.engine.attention import Attentions, explicit_attention
from konkyo.engine.forward import Pass
from konkyo.engine.probe import Probe
from konkyo.models import as_model

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
METHODS = ["attention_rollout", "transformer_attribution", "le_grad"]


def images(count: int = 2, *, double: bool = True, seed: int = 1) -> Tensor:
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return noise.double() if double else noise


def probe(network: nn.Module, x: Tensor, target: int = 1) -> Probe:
    model = as_model(network)
    layer = model.layer(None, tuple(x.shape[1:]))
    return Probe(Pass(model, x, [layer]), [konkyo.ClassTarget(target)] * len(x), layer)


# --- networks --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention by hand, an MLP, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.form = "softmax"

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, 2, 6).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        if self.form == "fused":
            mixed = functional.scaled_dot_product_attention(q, k, v)
        elif self.form == "flat":  # (N * heads, L, L)
            a = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).mul(6**-0.5).softmax(2)
            mixed = torch.bmm(a, v.flatten(0, 1)).view_as(v)
        else:
            mixed = (q @ k.mT / 6**0.5).softmax(dim=-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A vision transformer with three blocks; `read`: "class", "both" (of two tokens), "patches" or "pool".

    `inplace`: it writes on what the last block put out.
    """

    def __init__(self, read: str = "class", prefix: int = 1, *, inplace: bool = False) -> None:
        super().__init__()
        self.read, self.count, self.inplace = read, prefix, inplace
        self.patch = nn.Conv2d(3, 12, 8, 8)
        if prefix:
            self.prefix = nn.Parameter(torch.randn(1, prefix, 12))
        self.position = nn.Parameter(torch.randn(1, prefix + 16, 12))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)
        if read == "pool":
            self.seed = nn.Parameter(torch.randn(1, 1, 12))
            self.pool = nn.MultiheadAttention(12, 2, batch_first=True)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        if self.count:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        return x + self.position

    def decide(self, x: Tensor) -> Tensor:
        if self.inplace:
            x += self.position
        x = self.norm(x)
        if self.read == "pool":
            seed = self.seed.expand(len(x), -1, -1)
            return self.head(self.pool(seed, x, x)[0][:, 0])
        return self.head({"class": x[:, 0], "both": x[:, :2].mean(1), "patches": x[:, self.count :].mean(1)}[self.read])

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self.blocks(self.embed(x)))


class Literal:
    """A forward of `Vit` written out, with every A_l kept, and the methods with matrices, one image at a time."""

    def __init__(self, network: Vit, image: Tensor, label: int, bump: tuple[int, int, int, int, float] | None = None):
        self.network, self.label = network, label
        self.A, self.Z = [], []
        with torch.enable_grad():
            x = network.embed(image[None]).detach()
            for number, block in enumerate(network.blocks):
                q, k, v = block.heads(x)
                a = ((q @ k.mT) / 6**0.5).exp()
                a = a / a.sum(3, keepdim=True)
                if bump is not None and bump[0] == number:
                    extra = torch.zeros_like(a)
                    extra[0, bump[1], bump[2], bump[3]] = bump[4]
                    a = a + extra
                self.A.append(a)
                x = x + block.out((a @ v).transpose(1, 2).flatten(2))
                x = x + block.mlp(block.norm2(x))
                self.Z.append(x)
            self.score = network.decide(x.clone())[0, label]

    @property
    def row(self) -> Tensor:
        """Of the tokens that are read, the mean."""
        read, prefix = self.network.read, self.network.count
        row = torch.zeros(prefix + 16, dtype=torch.double)
        row[{"class": slice(0, 1), "both": slice(0, 2), "patches": slice(prefix, None)}[read]] = 1
        return row / row.sum()

    def grid(self, tokens: Tensor) -> Tensor:
        return tokens[self.network.count :].view(4, 4).detach()

    def attention_rollout(self, heads: str = "mean") -> Tensor:
        total = torch.eye(len(self.row), dtype=torch.double)
        for a in self.A:
            fused = {"mean": a[0].mean(0), "max": a[0].max(0).values, "min": a[0].min(0).values}[heads]
            matrix = fused + torch.eye(len(fused))
            total = (matrix / matrix.sum(1, keepdim=True)) @ total
        return self.grid(self.row @ total)

    def transformer_attribution(self) -> Tensor:
        total = torch.eye(len(self.row), dtype=torch.double)
        for a, g in zip(self.A, torch.autograd.grad(self.score, self.A, retain_graph=True), strict=True):
            total = total + (g * a)[0].clamp(min=0).mean(0) @ total
        return self.grid(self.row @ (total - torch.eye(len(total))))

    def le_grad(self, tokens: str = "mean") -> Tensor:
        total = torch.zeros_like(self.row)
        for a, z in zip(self.A, self.Z, strict=True):
            with torch.enable_grad():
                if tokens == "head":
                    score = self.network.decide(z.clone())[0, self.label]
                else:
                    score = self.network.head(self.network.norm(z.mean(1)))[0, self.label]
            (g,) = torch.autograd.grad(score, a, retain_graph=True)
            for head in g[0]:
                for query in head:
                    total += query.clamp(min=0) / (len(self.A) * g.shape[1] * g.shape[2])
        return self.grid(total)


READS = [("class", 1), ("class", 5), ("both", 2), ("patches", 0), ("patches", 4)]


def tv(**settings: object) -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=5, **settings
    )


def from_timm(name: str, fused: bool = True, **settings: object) -> nn.Module:
    network = timm.create_model(
        name, img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5, **settings
    )
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            assert module.fused_attn in (True, False)
            module.fused_attn = fused
    return network


def from_hf(kind: str, attention: str) -> nn.Module:
    config, build, extra = {
        "vit": (ViTConfig, ViTForImageClassification, {}),
        "beit": (BeitConfig, BeitForImageClassification, {"use_relative_position_bias": True}),
        "registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification, {}),
    }[kind]
    return build(
        config(
            image_size=32,
            patch_size=8,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            num_labels=5,
            attn_implementation=attention,
            **extra,
        )
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, slice | None]] = {
    # how it is built, tokens before the grid, tokens that are read (None: by an attention of the head's)
    "own": (Attention, 1, slice(0, 1)),
    "torchvision": (tv, 1, slice(0, 1)),
    "timm": (lambda: from_timm("vit_tiny_patch16_224"), 1, slice(0, 1)),
    "timm, not fused": (lambda: from_timm("vit_tiny_patch16_224", False), 1, slice(0, 1)),
    "timm, mean": (lambda: from_timm("vit_tiny_patch16_224", global_pool="avg", class_token=False), 0, slice(0, None)),
    "timm, registers": (lambda: from_timm("vit_small_patch14_reg4_dinov2"), 5, slice(0, 1)),
    "timm, registers, mean": (lambda: from_timm("vit_betwixt_patch16_reg4_gap_256"), 4, slice(4, None)),
    "timm, distilled": (lambda: from_timm("deit_tiny_distilled_patch16_224"), 2, slice(0, 2)),
    "timm, beit": (lambda: from_timm("beit_base_patch16_224"), 1, slice(1, None)),
    "timm, beit, not fused": (lambda: from_timm("beit_base_patch16_224", False), 1, slice(1, None)),
    "timm, siglip": (lambda: from_timm("vit_base_patch16_siglip_224"), 0, None),
    "timm, siglip, not fused": (lambda: from_timm("vit_base_patch16_siglip_224", False), 0, None),
    "hf, sdpa": (lambda: from_hf("vit", "sdpa"), 1, slice(0, 1)),
    "hf, eager": (lambda: from_hf("vit", "eager"), 1, slice(0, 1)),
    "hf, beit, sdpa": (lambda: from_hf("beit", "sdpa"), 1, slice(1, None)),
    "hf, beit, eager": (lambda: from_hf("beit", "eager"), 1, slice(1, None)),
}


def built(name: str, *, double: bool = True) -> nn.Module:
    return seeded(NETWORKS[name][0](), double=double)


def logits(network: nn.Module, x: Tensor) -> Tensor:
    output = network(x)
    return output if isinstance(output, Tensor) else output.logits


# --- attention made explicit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_stays_what_it_is(name: str) -> None:
    network, x = built(name, double=False), images(double=False)
    with torch.no_grad():
        plain = logits(network, x)
        with explicit_attention(network) as found:
            again = logits(network, x)
        assert not torch.is_grad_enabled()
    close(again.detach(), plain)
    assert again.requires_grad
    for probabilities in found.among_tokens(2):
        close(probabilities.sum(-1), torch.ones(()).expand(probabilities.shape[:-1]))
    assert found.probabilities[0].is_leaf


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_that_are_read(name: str) -> None:
    _, prefix, read = NETWORKS[name]
    network, x = built(name), images()
    seen = probe(network, x)
    expected = torch.zeros(2, prefix + 16, dtype=torch.double)
    if read is None:
        with explicit_attention(network) as found:
            network(x)
        expected = found.probabilities[-1].detach().mean((1, 2))
        assert len(found.probabilities) == 4
        assert expected.std() > 0
    else:
        expected[:, read] = 1
    close(seen.readout, expected / expected.sum(1, keepdim=True))
    assert seen.on_grid(seen.readout).shape == (2, 4, 4)
    assert len(seen.attentions) == (1 if name == "own" else 3)


def inputs_of(network: nn.Module, modules: list[nn.Module], x: Tensor) -> list[Tensor]:
    """What the modules are called with in a plain forward."""
    found: list[Tensor] = []
    handles = [m.register_forward_pre_hook(lambda _m, args: found.append(args[0])) for m in modules]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return found


def test_probabilities_of_torchvision() -> None:
    network, x = built("torchvision"), images()
    modules = [layer.self_attention for layer in network.encoder.layers]
    for a, module, tokens in zip(probe(network, x).attentions, modules, inputs_of(network, modules, x), strict=True):
        with torch.no_grad():
            close(a, module(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)[1])


@pytest.mark.parametrize("name", ["timm", "timm, not fused", "timm, distilled"])
def test_probabilities_of_timm(name: str) -> None:
    network, x = built(name), images()
    modules = [block.attn for block in network.blocks]
    for a, module, tokens in zip(probe(network, x).attentions, modules, inputs_of(network, modules, x), strict=True):
        q, k, _ = module.qkv(tokens).view(2, -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
        close(a, (q @ k.mT / 12**0.5).softmax(-1).detach())


@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_probabilities_of_hf(kind: str) -> None:
    """Eager attention hands its probabilities out; the fused one must give the same."""
    eager, fused, x = seeded(from_hf(kind, "eager")), from_hf(kind, "sdpa").double().eval(), images()
    fused.load_state_dict(eager.state_dict())
    with torch.no_grad():
        expected = eager(x, output_attentions=True).attentions
    for network in (eager, fused):
        for a, b in zip(probe(network, x).attentions, expected, strict=True):
            close(a, b)


def test_beit_fused_or_not() -> None:
    on, off, x = built("timm, beit"), built("timm, beit, not fused"), images()
    off.load_state_dict(on.state_dict())
    for a, b in zip(probe(on, x).attentions, probe(off, x).attentions, strict=True):
        close(a, b)
        assert a.std() > 0


@pytest.mark.parametrize("form", ["softmax", "fused", "flat"])
def test_probabilities_by_hand(form: str) -> None:
    network, x = seeded(Vit()), images()
    for block in network.blocks:
        block.form = form
    seen = probe(network, x, 3)
    for i in range(2):
        literal = Literal(network, x[i], 3)
        gradients = torch.autograd.grad(literal.score, literal.A)
        for a, b, c, d in zip(seen.attentions, literal.A, seen.attention_gradients, gradients, strict=True):
            close(a[i], b[0].detach())
            close(c[i], d[0])


def test_attention_gradients_by_finite_differences() -> None:
    network, x = seeded(Vit()), images()
    seen, step = probe(network, x, 4).attention_gradients, 1e-5
    for where in [(0, 1, 3, 7), (1, 0, 0, 5), (2, 1, 0, 16)]:
        up = Literal(network, x[1], 4, (*where, step)).score
        down = Literal(network, x[1], 4, (*where, -step)).score
        close(seen[where[0]][1][where[1:]], ((up - down) / (2 * step)).detach(), 1e-6)
    assert not seen[2][:, :, 1:].any()  # only the class token's row reaches the head


def mha(**settings: object) -> nn.MultiheadAttention:
    return seeded(nn.MultiheadAttention(12, 3, **settings))


@pytest.mark.parametrize("weights", ["no", "mean", "each"])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "per head", "padding", "both"])
@pytest.mark.parametrize("settings", [{"batch_first": True}, {}, {"kdim": 12, "vdim": 12, "bias": False}, {"kdim": 8}])
def test_multi_head_attention_step_by_step(settings: dict[str, object], mask: str, weights: str) -> None:
    module, generator = mha(**settings), torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=generator).double()
    tokens, keys = rand(5, 4, 12), rand(5, 4, settings.get("kdim", 12))
    values = rand(5, 4, 12)
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, 3] = True
    if settings.get("batch_first"):
        tokens, keys, values = tokens.mT.transpose(1, 2).transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1)
    options = {
        "none": {},
        "bool": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
        "float": {"attn_mask": rand(5, 5)},
        "per head": {"attn_mask": rand(12, 5, 5)},
        "padding": {"key_padding_mask": padding},
        "both": {"key_padding_mask": padding, "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
    }[mask]
    options |= {"need_weights": weights != "no", "average_attn_weights": weights == "mean"}
    with torch.no_grad():
        expected = module(tokens, keys, values, **options)
        with explicit_attention(module):
            found = module(tokens, keys, values, **options)
    close(found[0].detach(), expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if found[1] is not None:
        close(found[1].detach(), expected[1])


@pytest.mark.parametrize("options", ["none", "bool", "float", "causal", "scale", "groups"])
def test_fused_attention_step_by_step(options: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 6, generator=generator)
    given: dict[str, object] = {
        "none": {},
        "bool": {"attn_mask": torch.rand(5, 5, generator=generator) < 0.7},
        "float": {"attn_mask": torch.randn(2, 1, 5, 5, generator=generator)},
        "causal": {"is_causal": True},
        "scale": {"scale": 0.3},
        "groups": {"enable_gqa": True},
    }[options]
    if options == "bool":
        given["attn_mask"] |= torch.eye(5, dtype=torch.bool)
    if options == "groups":
        k, v = k[:, :2], v[:, :2]
    expected = functional.scaled_dot_product_attention(q, k, v, **given)
    with torch.no_grad(), explicit_attention(nn.Identity()):
        close(functional.scaled_dot_product_attention(q, k, v, **given).detach(), expected)


def test_attention_with_keys_of_its_own() -> None:
    for settings in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        module = mha(batch_first=True, **settings)
        with explicit_attention(module), pytest.raises(konkyo.NotApplicable, match="keys of its own"):
            module(*[torch.randn(2, 5, 12).double()] * 3)


def test_other_softmaxes_are_no_attention() -> None:
    with torch.no_grad(), explicit_attention(nn.Identity()) as found:
        torch.randn(4, 4).softmax(-1)  # classes
        torch.randn(2, 4, 6, 6).softmax(1)  # channels
        torch.randn(2, 5, 3).softmax(-1)  # experts
        functional.softmax(torch.randn(2, 4, 6, 6), dim=2)
    assert not found.probabilities


def test_nothing_stays_behind() -> None:
    for kind in (tv, Vit):
        network, x = seeded(kind(), double=False), images(double=False)
        network.train()
        before = copy.deepcopy(network.state_dict())
        with pytest.raises((RuntimeError, AssertionError)), explicit_attention(network):
            network(x[:, :, :, :20])
        konkyo.compare(network, x, METHODS, target=1)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert not any("forward" in vars(m) for m in network.modules())
        assert all(m.training for m in network.modules())
        assert all(p.grad is None and p.requires_grad for p in network.parameters())
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert torch.is_grad_enabled()


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("read", "prefix"), READS)
@pytest.mark.parametrize("method", METHODS)
def test_method_equals_its_formula(method: str, read: str, prefix: int) -> None:
    network, x = seeded(Vit(read, prefix)), images(3)
    found = konkyo.explain(network, x, method=method, target=[1, 4, 0])
    for i, label in enumerate([1, 4, 0]):
        close(found.maps[i], getattr(Literal(network, x[i], label), method)())
    assert found.maps.flatten(1).std(1).min() > 0


@pytest.mark.parametrize("heads", ["max", "min"])
def test_rollout_of_heads(heads: str) -> None:
    network, x = seeded(Vit()), images()
    found = konkyo.explain(network, x, method="attention_rollout", heads=heads)
    for i in range(2):
        close(found.maps[i], Literal(network, x[i], 0).attention_rollout(heads))
    with pytest.raises(konkyo.KonkyoError, match="one of 'mean', 'max', 'min'"):
        konkyo.explain(network, x, method="attention_rollout", heads="sum")


@pytest.mark.parametrize(("read", "prefix"), READS)
def test_le_grad_as_the_head_reads(read: str, prefix: int) -> None:
    network, x = seeded(Vit(read, prefix)), images()
    found = konkyo.explain(network, x, method="le_grad", target=2, tokens="head")
    for i in range(2):
        close(found.maps[i], Literal(network, x[i], 2).le_grad("head"))
    seen = probe(network, x, 2)
    close(seen.block_gradients("head")[-1], seen.attention_gradients[-1])  # the last block's score is the score


@pytest.mark.parametrize("name", NETWORKS)
def test_rollout_shares_out_what_is_read(name: str) -> None:
    seen = probe(built(name), images())
    rollout = konkyo.methods()["attention_rollout"].function
    for heads in ("mean", "max", "min"):
        shares = rollout(seen.attentions, seen.readout, lambda tokens: tokens, heads=heads)
        close(shares.sum(1), torch.ones(2))
        assert shares.min() >= 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attribution_of_hf_by_its_own_attentions(attention: str) -> None:
    """The authors' loop, with the probabilities that the library hands out."""
    eager, network, x = seeded(from_hf("vit", "eager")), from_hf("vit", attention).double().eval(), images()
    network.load_state_dict(eager.state_dict())
    found = konkyo.explain(network, x, method="transformer_attribution", target=3)
    output = eager(x, output_attentions=True)
    gradients = torch.autograd.grad(output.logits[:, 3].sum(), output.attentions)
    R = torch.eye(17, dtype=torch.double).expand(2, -1, -1)
    for a, g in zip(output.attentions, gradients, strict=True):
        R = R + (g * a).clamp(min=0).mean(1) @ R
    close(found.maps, R[:, 0, 1:].view(2, 4, 4).detach())


def test_le_grad_equals_torchcam() -> None:
    from torchcam.methods import LeGrad

    network, x = built("torchvision", double=False), images(double=False)
    found = konkyo.explain(network, x, method="le_grad", target=2)
    with LeGrad(network, list(network.encoder.layers)) as extractor:
        (expected,) = extractor(2, network(x), normalized=False)
    close(found.maps, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_batch_equals_loop(name: str, method: str) -> None:
    if (name, method) == ("own", "le_grad"):
        return
    network, x = built(name), images(3)
    found = konkyo.explain(network, x, method=method, target=[0, 2, 4])
    assert found.maps.shape == (3, 4, 4)
    for i, label in enumerate([0, 2, 4]):
        close(found.maps[i], konkyo.explain(network, x[i : i + 1], method=method, target=label).maps[0])
    assert not torch.equal(found.maps[0], found.maps[1])


@pytest.mark.parametrize("name", ["torchvision", "timm", "hf, sdpa"])
def test_several_targets_share_the_forward(name: str) -> None:
    network, x = built(name), images()
    konkyo.explain(network, x, method="attention_rollout")  # traces the network
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    found = konkyo.compare(network, x, METHODS[:2], target=konkyo.Each(0, 3, 4))
    assert len(calls) == 2
    found |= konkyo.compare(network, x, METHODS[2:], target=konkyo.Each(0, 3, 4))
    handle.remove()
    for method in METHODS:
        for column, label in enumerate([0, 3, 4]):
            alone = konkyo.explain(network, x, method=method, target=label)
            close(found[method].maps[column::3], alone.maps)
    assert torch.equal(found["attention_rollout"].maps[0], found["attention_rollout"].maps[1])
    assert not torch.allclose(found["le_grad"].maps[0], found["le_grad"].maps[1])


@pytest.mark.parametrize("name", ["torchvision", "timm", "hf, eager"])
def test_frozen_weights(name: str) -> None:
    network, x = built(name), images()
    expected = konkyo.compare(network, x, METHODS, target=1)
    for inference in (False, True):
        with torch.inference_mode(inference), torch.no_grad():
            found = konkyo.compare(network.requires_grad_(False), x, METHODS, target=1)
        for method in METHODS:
            close(found[method].maps, expected[method].maps)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("name", ["torchvision", "timm", "timm, not fused", "timm, beit", "hf, sdpa", "hf, eager"])
@pytest.mark.parametrize("how", ["autocast", "precision", "bfloat16", "float16"])
def test_half_precision(name: str, how: str) -> None:
    network, x = built(name, double=False), images(double=False)
    expected = konkyo.compare(network, x, METHODS, target=1)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = konkyo.compare(network, x, METHODS, target=1)
    elif how == "precision":
        found = konkyo.compare(network, x, METHODS, target=1, precision="bf16")
    else:
        kind = getattr(torch, how)
        found = konkyo.compare(network.to(kind), x.to(kind), METHODS, target=1)
    for method in METHODS:
        a, b = found[method].maps.flatten(1), expected[method].maps.flatten(1)
        assert a.dtype == torch.float32
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.98
        assert ((a - b).norm() / b.norm()) < 0.1


def test_half_precision_keeps_the_probabilities_whole() -> None:
    for name in ("timm", "timm, not fused", "torchvision", "hf, eager"):
        network, x = built(name, double=False).bfloat16(), images(double=False).bfloat16()
        with torch.no_grad(), explicit_attention(network) as found:
            assert logits(network, x).dtype == torch.bfloat16
        assert {p.dtype for p in found.probabilities} == {torch.float32}


# --- networks of other makes -----------------------------------------------------------------------------------------


def test_network_that_writes_in_place() -> None:
    network, x = seeded(Vit(inplace=True)), images()
    for method, options in [
        ("attention_rollout", {}),
        ("transformer_attribution", {}),
        ("le_grad", {"tokens": "head"}),
    ]:
        found = konkyo.explain(network, x, method=method, target=1, **options)
        close(found.maps[1], getattr(Literal(network, x[1], 1), method)(*options.values()))


@pytest.mark.parametrize("method", METHODS)
def test_one_block_called_three_times(method: str) -> None:
    network, x = seeded(Vit()), images()
    network.blocks = nn.Sequential(network.blocks[0], network.blocks[0], network.blocks[0])
    found = konkyo.explain(network, x, method=method, target=1, layer="patch")
    close(found.maps[1], getattr(Literal(network, x[1], 1), method)())


def test_head_that_attends() -> None:
    """Read by an attention of its own: its probabilities start the rollout."""
    network, x = seeded(Vit("pool")), images()
    seen = probe(network, x)
    tokens = network.norm(network.blocks(network.embed(x)))
    weights = network.pool(network.seed.expand(2, -1, -1), tokens, tokens)[1][:, 0]
    close(seen.readout, weights.detach())
    found = konkyo.explain(network, x, method="attention_rollout")
    literal = Literal(network, x[1], 0)
    total = torch.eye(17, dtype=torch.double)
    for a in literal.A:
        total = (a[0].mean(0) + torch.eye(17)) / 2 @ total
    close(found.maps[1], (weights[1] @ total)[1:].view(4, 4).detach())
    assert konkyo.explain(network, x, method="le_grad", tokens="head").maps.std() > 0


class Inline(nn.Module):
    """Blocks that are no modules: only their attentions are."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head, self.norm = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 5), nn.LayerNorm(12)
        self.attentions = nn.ModuleList(nn.MultiheadAttention(12, 2, batch_first=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        for attention in self.attentions:
            y = self.norm(x)
            x = x + attention(y, y, y)[0]
        return self.head(x.mean(1))


def test_le_grad_needs_blocks() -> None:
    x = images()
    for network in (seeded(Inline()), seeded(Attention())):
        found = konkyo.explanations(network, x, METHODS)
        assert isinstance(found["le_grad"], konkyo.NotApplicable)
        assert "blocks that are modules" in str(found["le_grad"])
        for method in METHODS[:2]:
            assert found[method].maps.std() > 0


class Encoder(nn.Module):
    """PyTorch's own encoder, which has a native fast path; tokens first or images first."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.patch, self.head, self.batch_first = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 5), batch_first
        layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = self.encoder(x if self.batch_first else x.transpose(0, 1))
        return self.head(x.mean(1 if self.batch_first else 0))


def test_native_fast_path() -> None:
    network, x = seeded(Encoder(True), double=False).requires_grad_(False), images(double=False)
    with torch.no_grad():
        plain = network(x)
        with explicit_attention(network) as found:
            close(network(x).detach(), plain)
    assert len(found.among_tokens(2)) == 2
    for method in METHODS:
        assert konkyo.explain(network, x, method=method).maps.std() > 0


@pytest.mark.parametrize("count", [2, 16])  # as many images as tokens: nothing in the shapes tells them apart
def test_tokens_before_images(count: int) -> None:
    network, other, x = seeded(Encoder(False)), seeded(Encoder(True)), images(count)
    for method in METHODS[:2]:
        found = konkyo.explain(network, x, method=method, target=1, layer="patch")
        close(found.maps, konkyo.explain(other, x, method=method, target=1, layer="patch").maps)
    with pytest.raises(konkyo.NotApplicable, match="blocks that are modules"):
        konkyo.explain(network, x, method="le_grad", layer="patch")


def test_not_applicable_without_attention() -> None:
    for method in METHODS:
        with pytest.raises(konkyo.NotApplicable, match=f"{method}: reads attention between tokens"):
            konkyo.explain(seeded(SmallResNet()), images(), method=method)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("count", [1, 2])
def test_not_applicable_to_windows(library: str, count: int) -> None:
    if library == "timm":
        network = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(2, 2)
        )
    else:
        network = torchvision.models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5)
    x = torch.randn(count, 3, 64, 64)
    for method in METHODS:
        with pytest.raises(konkyo.NotApplicable, match="within windows"):
            konkyo.explain(network.eval(), x, method=method, layer="input")


def test_not_applicable_where_tokens_are_merged() -> None:
    found = Attentions()
    found.probabilities = [torch.ones(2, 2, 16, 16), torch.ones(2, 2, 4, 4)]
    with pytest.raises(konkyo.NotApplicable, match=r"merged.*keys: 4, 16"):
        found.among_tokens(2)
    found.probabilities = [torch.ones(2, 2, 16, 4), torch.ones(2, 2, 16, 16)]
    with pytest.raises(konkyo.NotApplicable, match="between different ones"):
        found.among_tokens(2)


def test_the_grid_is_the_tokens() -> None:
    network, x = seeded(Vit()), images()
    close(
        konkyo.explain(network, x, method="attention_rollout", layer="patch").maps,
        konkyo.explain(network, x, method="attention_rollout").maps,
    )
    with pytest.raises(konkyo.NotApplicable, match=r"17 tokens do not lie on the grid \(32, 32\) of layer 'input'"):
        konkyo.explain(network, x, method="attention_rollout", layer="input")


def test_pictures_that_are_not_square() -> None:
    network = seeded(Attention())
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)).double()
    assert konkyo.explain(network, x, method="attention_rollout").maps.shape == (2, 4, 6)


def test_wrapped_in_augmentation() -> None:
    network, x = built("timm"), images()
    assert konkyo.explain(network, x, method="augmented(transformer_attribution)", target=1).maps.shape == (2, 4, 4)

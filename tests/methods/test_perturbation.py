"""Methods that perturb: masks, groups, places and windows, each against a slow transcription of its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.detectors import dense
from helpers.formulas import Literal, LiteralAt, Slow, minmax, references, swin, up
from helpers.networks import SmallResNet, images, seeded

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights some maps are all negative

LABELS = [3, 0]
KINDS = ["resnet", "vit", "swin"]


def case(kind: str, x: Tensor, label: int) -> tuple[nn.Module, str, Slow]:
    """(the network, one of its layers, the formulas there)"""
    if kind == "resnet":
        network = seeded(SmallResNet(deep_head=True))
        return network, "stage3", Slow(Literal(network, x, label))
    network, layer, literal = references(kind, x, label)
    return network, layer, Slow(literal)


def at(kind: str, layer: str, method: str) -> dict[str, str]:
    """The vision transformer's layer, which is not the automatic one, for methods that need one."""
    return {"layer": layer} if kind == "vit" and konkyo.methods()[method].needs_layer() else {}


def held_to(kind: str, method: str, expected: Callable[[Slow], Tensor], **options: Any) -> konkyo.Explanation:
    """The signed maps of two images at once equal the formula's, and so does their ReLU where the method has one."""
    x = images(2)
    network, layer, _ = case(kind, x[:1], 0)
    found = konkyo.explain(network, x, method=method, target=LABELS, seed=5, **at(kind, layer, method), **options)
    assert found.layer in (layer, "input")
    for i, label in enumerate(LABELS):
        close(found.signed[i], expected(case(kind, x[i : i + 1], label)[2]))
    assert torch.equal(found.maps, found.signed.relu() if found.rectified else found.signed)
    return found


# --- against the formulas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_score_cam(kind: str) -> None:
    assert held_to(kind, "score_cam", Slow.score_cam).rectified


@pytest.mark.parametrize("noise", ["mask", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_ss_cam(kind: str, noise: str) -> None:
    planes = 1 if noise == "mask" else 3
    fields = 0.7 * torch.randn(4, planes, 32, 40, generator=torch.Generator().manual_seed(5)).double()
    expected = lambda slow: slow.ss_cam(fields, noise)
    assert held_to(kind, "ss_cam", expected, noise=noise, samples=4, std=0.7).rectified


@pytest.mark.parametrize("scale", ["cumulative", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_is_cam(kind: str, scale: str) -> None:
    assert held_to(kind, "is_cam", lambda slow: slow.is_cam(5, scale), steps=5, scale=scale).rectified


def test_without_noise_or_steps_they_are_score_cam() -> None:
    network, x = seeded(SmallResNet()), images(2)
    plain = konkyo.explain(network, x, method="score_cam", target=1).signed
    close(konkyo.explain(network, x, method="ss_cam", target=1, samples=2, std=0.0).signed, plain)
    close(konkyo.explain(network, x, method="is_cam", target=1, steps=1).signed, plain)
    assert not torch.allclose(konkyo.explain(network, x, method="is_cam", target=1, steps=2).signed, plain)


def test_constant_channels_have_no_mask_and_no_weight() -> None:
    """Those of value 1, not 0: with a weight they would lift the whole map."""
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    with torch.no_grad():
        network.stage3.bn2.weight[:9] = 0
        network.stage3.shortcut.weight[:9] = 0
        network.stage3.bn2.bias[:9], network.stage3.shortcut.bias[:9] = 0.0, 1.0
    slow = Slow(Literal(network, x, 3))
    assert (slow.A[:9] == 1).all()
    run = lambda method, **o: konkyo.explain(network, x, method=method, target=3, **o).signed[0]
    close(run("score_cam"), slow.score_cam())
    close(run("is_cam", steps=2), slow.is_cam(2, "cumulative"))
    fields = 2 * torch.randn(2, 1, 32, 40, generator=torch.Generator().manual_seed(0)).double()
    close(run("ss_cam", samples=2), slow.ss_cam(fields, "mask"))
    close(run("poly_cam", layer="stage3"), slow.poly_layer("±"))


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("kind", KINDS)
def test_group_cam(kind: str, variant: str) -> None:
    """Groups of 5 channels, the last one smaller. The map comes at the layer's grid; what is enlarged is the same."""
    x, labels = images(2), LABELS if kind == "resnet" else [2, 1]
    network, layer, _ = case(kind, x[:1], 0)
    options = {"groups": 5, "variant": variant, **at(kind, layer, "group_cam")}
    found = konkyo.explain(network, x, method="group_cam", target=labels, **options)
    for i, label in enumerate(labels):
        enlarged = up(found.maps[i].double(), (32, 40))
        close(enlarged, case(kind, x[i : i + 1], label)[2].group_cam(5, variant))


def test_group_cam_of_other_targets() -> None:
    """A score that is no class is differentiated, and measured, itself; a class's logit is differentiated always."""
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    run = lambda target: konkyo.explain(network, x, method="group_cam", target=target, groups=4).maps
    close(run(konkyo.ClassTarget(1, "probability")), run(1))
    by_hand = run(lambda output: output.softmax(1)[:, 1])
    assert not torch.allclose(by_hand / by_hand.max(), run(1) / run(1).max(), rtol=1e-3)
    assert not torch.allclose(run(konkyo.ClassTarget(1)) / run(konkyo.ClassTarget(1)).max(), run(1) / run(1).max())


def test_group_cam_of_constant_groups_is_finite() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with torch.no_grad():
        for part in (network.stage3.bn2.bias, network.stage3.shortcut.bias):
            part[:8] = -1e3  # the first two groups see nothing
    found = konkyo.explain(network, x, method="group_cam", target=1, groups=6)
    assert found.maps.isfinite().all()
    close(up(found.maps[0].double(), (32, 40)), Slow(Literal(network, x, 1)).group_cam(6, "paper"))
    with torch.no_grad():
        for part in (network.stage3.bn2.bias, network.stage3.shortcut.bias):
            part[:] = -1e3
    assert torch.equal(konkyo.explain(network, x, method="group_cam", target=1).maps, torch.zeros(1, 4, 5))


@pytest.mark.parametrize("mask", ["cell", "gaussian"])
@pytest.mark.parametrize("kind", KINDS)
def test_recipro_cam(kind: str, mask: str) -> None:
    held_to(kind, "recipro_cam", lambda slow: slow.recipro_cam(mask), mask=mask)


def test_recipro_cam_of_a_linear_head_is_cam_in_disguise() -> None:
    """What is left of a place's share of the mean is the class's logit there."""
    network, x = seeded(SmallResNet()), images(2)
    maps = konkyo.compare(network, x, ["cam", "recipro_cam"], target=konkyo.ClassTarget(3))
    close(maps["recipro_cam"].maps, maps["cam"].signed / 20 + network.head.bias[3].detach().float())


@pytest.mark.parametrize("objective", ["maximise", "keep"])
@pytest.mark.parametrize("kind", KINDS)
def test_opti_cam(kind: str, objective: str) -> None:
    expected = lambda slow: slow.opti_cam(6, 0.2, objective)
    held_to(kind, "opti_cam", expected, steps=6, rate=0.2, objective=objective)


def test_opti_cam_raises_the_score_of_the_masked_image() -> None:
    network, x = seeded(SmallResNet()), images(3)

    def masked(steps: int, objective: str) -> Tensor:
        found = konkyo.explain(
            network, x, method="opti_cam", target=1, layer="stage2", steps=steps, rate=1e-9 if steps == 1 else 0.1,
            objective=objective,
        )  # fmt: skip
        seen = [x[i : i + 1] * minmax(up(found.maps[i].double(), (32, 40))) for i in range(3)]
        return network(torch.cat(seen))[:, 1].detach()

    start, whole = masked(1, "maximise"), network(x)[:, 1].detach()
    assert (masked(60, "maximise") > start + 0.01).all()
    assert ((masked(60, "keep") - whole).abs() < (start - whole).abs()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_occlusion(kind: str) -> None:
    """Windows that overlap, are cut at the border, and have another baseline than 0."""
    expected = lambda slow: slow.occlusion(9, 5, 0.3)
    held_to(kind, "occlusion", expected, window=9, stride=5, baseline=0.3)


FEW: dict[str, dict[str, Any]] = {
    "rise": {"masks": 9},
    "poly_cam": {"layer": "stage3"},
    "lime": {"samples": 60},
    "sobol": {"grid": 4, "designs": 4},
    "hsic": {"grid": 4, "designs": 20},
}
CHOOSING = [name for name, m in konkyo.methods().items() if m.score == "probability"]


@pytest.mark.parametrize("method", [*CHOOSING, "augmented(occlusion)"])
@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights some maps are blank
def test_the_logit_in_the_place_of_the_probability(method: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    options: dict[str, Any] = FEW.get(method, {})
    chosen = konkyo.explain(network, x, method=method, target=0, score="logit", **options)
    close(chosen.signed, konkyo.explain(network, x, method=method, target=konkyo.ClassTarget(0), **options).signed)
    close(chosen.scores.double(), network(x)[:, 0].detach())
    assert chosen.targets == (konkyo.ClassTarget(0, "logit"),) * 2
    assert chosen.options["score"] == "logit"
    usual = konkyo.explain(network, x, method=method, target=0, **options)
    close(usual.signed, konkyo.explain(network, x, method=method, target=0, score="probability", **options).signed)
    close(usual.scores.double(), network(x).softmax(1)[:, 0].detach())
    assert "score" not in usual.options
    assert not torch.allclose(usual.signed, chosen.signed)


def test_occlusion_of_a_linear_logit_is_what_each_window_adds() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 40, 5, bias=False)).double()
    x = images(1)
    found = konkyo.explain(network, x, method="occlusion", target=1, score="logit", window=8, stride=8)
    adds = (
        (network[1].weight[1].view(3, 32, 40) * x[0])
        .sum(0)
        .detach()
        .unflatten(0, (4, 8))
        .unflatten(2, (5, 8))
        .sum((1, 3))
    )
    close(found.signed[0].double(), adds.repeat_interleave(8, 0).repeat_interleave(8, 1))


def test_scores_that_are_not_to_choose() -> None:
    network, x = seeded(SmallResNet()), images(1)
    for wrong in ("sigmoid", "Logit", 1, None):
        with pytest.raises(konkyo.KonkyoError, match="score of occlusion is one of 'probability', 'logit'"):
            konkyo.explain(network, x, method="occlusion", target=1, score=wrong)
    with pytest.raises(konkyo.KonkyoError, match="unknown option of score_cam 'score'"):
        konkyo.explain(network, x, method="score_cam", target=1, score="logit")
    both = konkyo.compare(network, x, ["occlusion", "grad_cam"], target=1, options={"score": "logit"})
    assert [result.options.get("score") for result in both.values()] == ["logit", None]
    with pytest.raises(konkyo.KonkyoError, match=r"Detections\(quantity='logit'\)"):
        konkyo.explain(dense(), torch.rand(1, 3, 24, 32), method="odam", score="logit")


def test_occlusion_by_windows_as_high_as_the_image() -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="occlusion", target=1, window=36, stride=4)
    expected = Slow(Literal(network, x, 1)).occlusion(36, 4, 0.0)  # 32 x 40 pixels: two windows
    close(found.maps[0], expected)
    assert (found.maps[0] == found.maps[0, :1]).all()


def literal_stages(kind: str, x: Tensor, label: int) -> tuple[nn.Module, list[Slow]]:
    """(the network, its layers of every grid size, shallow to deep)"""
    if kind == "resnet":
        network = seeded(SmallResNet())
        names = ["stem", "stage1", "stage2", "stage3"]
        return network, [Slow(Literal(network, x, label, name)) for name in names]
    if kind == "vit":
        network, _, literal = references("vit", x, label)
        return network, [Slow(literal)]
    network = swin()
    with torch.no_grad():  # so that more is positive than negative, as after a ReLU
        network.features[1][1].mlp[3].bias += 8
        network.norm.bias += 1
    last = lambda raw: raw.movedim(-1, 1)
    return network, [
        Slow(LiteralAt(network, x, label, network.features[1], last)),
        Slow(LiteralAt(network, x, label, network.permute, lambda raw: raw)),
    ]


@pytest.mark.parametrize("variant", ["±", "+", "-"])
@pytest.mark.parametrize("kind", KINDS)
def test_poly_cam(kind: str, variant: str) -> None:
    x, labels = images(2), [1, 1] if kind == "swin" else LABELS
    network, layers = literal_stages(kind, x[:1], 0)
    where = {"layer": "norm"} if kind == "vit" else {}
    found = konkyo.explain(network, x, method="poly_cam", target=labels, variant=variant, **where)
    assert len(found.layer.split("+")) == len(layers)
    for i, label in enumerate(labels):
        maps = [slow.poly_layer(variant) for slow in literal_stages(kind, x[i : i + 1], label)[1]]
        expected = maps.pop()
        while maps:
            one = maps.pop()
            coarse = up(up(one, tuple(expected.shape)), tuple(one.shape))
            sharpened = torch.where(coarse > 0, one / coarse, 0.0)
            expected = sharpened * up(expected, tuple(one.shape))
        close(found.maps[i], expected)


def test_poly_cam_at_one_layer_and_fused_otherwise() -> None:
    network, x = seeded(SmallResNet()), images(1)
    one = konkyo.explain(network, x, method="poly_cam", target=3, layer="stage3")
    close(one.maps[0], Slow(Literal(network, x, 3)).poly_layer("±"))
    layers = ["stage2", "stage3"]
    slow = [Slow(Literal(network, x, 3, name)).poly_layer("±") for name in layers]
    product = konkyo.explain(network, x, method="poly_cam", target=3, layer=layers, fuse="product")
    close(product.maps[0], slow[0] / slow[0].max() * up(slow[1] / slow[1].max(), tuple(slow[0].shape)))


# --- against peers ---------------------------------------------------------------------------------------------------


def test_ss_cam_and_is_cam_of_torchcam() -> None:
    """At a layer of the image's size, where enlarging before or after normalising is the same."""
    import torchcam.methods as torchcam

    x, fields = images(2), 0.5 * torch.randn(3, 1, 32, 40, generator=torch.Generator().manual_seed(5)).double()

    class Fields:
        def __init__(self) -> None:
            self.left = list(fields)

        def sample(self, size: torch.Size) -> Tensor:
            return self.left.pop(0).expand(size)

    network = seeded(SmallResNet())
    with torchcam.SSCAM(network, "stem", num_samples=3, std=0.5) as extractor:
        extractor._distrib = Fields()
        theirs = extractor(LABELS, network(x), normalized=False)[0]
    run = lambda method, **o: konkyo.explain(network, x, method=method, target=LABELS, layer="stem", **o).maps
    close(run("ss_cam", samples=3, std=0.5, seed=5), theirs.detach())
    with torchcam.ISCAM(network, "stem", num_samples=4) as extractor:
        theirs = extractor(LABELS, network(x), normalized=False)[0]
    close(run("is_cam", steps=4), theirs.detach())


@pytest.mark.parametrize(("window", "stride", "baseline"), [(8, 4, 0.0), (9, 5, 0.5), (7, 7, -1.0)])
def test_occlusion_of_captum(window: int, stride: int, baseline: float) -> None:
    from captum.attr import Occlusion

    network, x = seeded(SmallResNet()), images(2)
    theirs = Occlusion(network).attribute(
        x, (3, window, window), strides=(3, stride, stride), baselines=baseline, target=LABELS
    )[:, 0]
    targets = [konkyo.ClassTarget(label) for label in LABELS]
    found = konkyo.explain(
        network, x, method="occlusion", target=targets, window=window, stride=stride, baseline=baseline
    )
    close(found.maps, theirs)


# --- batches, budgets, pruning ---------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, Any]] = {
    "score_cam": {},
    "ablation_cam": {},
    "ss_cam": {"samples": 2},
    "is_cam": {"steps": 2},
    "group_cam": {"groups": 6},
    "recipro_cam": {},
    "poly_cam": {"layer": ["stage2", "stage3"]},
    "opti_cam": {"steps": 3},
    "occlusion": {},
    "rise": {"masks": 30},
}


@pytest.mark.parametrize("method", SMALL)
def test_batch_equals_loop(method: str) -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(3)
    labels = [3, 0, 4]
    batch = konkyo.explain(network, x, method=method, target=labels, **SMALL[method]).signed
    for i, label in enumerate(labels):
        close(batch[i], konkyo.explain(network, x[i : i + 1], method=method, target=label, **SMALL[method]).signed[0])
    assert not torch.allclose(batch[0], batch[1])


@pytest.mark.parametrize("method", [m for m in SMALL if m != "opti_cam"])
def test_classes_share_forwards_and_maps_stay_their_own(method: str) -> None:
    """Maps of three classes at once equal those of each alone, whether or not their variants are shared."""
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    found = konkyo.explain(network, x, method=method, target=konkyo.TopK(3), **SMALL[method])
    for row, target in zip(found.signed, found.targets, strict=True):
        close(row, konkyo.explain(network, x, method=method, target=target, **SMALL[method]).signed[0])


@pytest.mark.parametrize("method", [m for m in SMALL if m != "opti_cam"])
def test_a_budget_beyond_all_forwards_changes_nothing_and_one_of_1_gives_a_map(method: str) -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(2)
    run = lambda budget: konkyo.explain(network, x, method=method, target=0, budget=budget, **SMALL[method])
    assert torch.equal(run(10**6).signed, run(None).signed)
    assert run(1).signed.isfinite().all()
    alone = konkyo.explain(network, x[1:], method=method, target=0, budget=12, **SMALL[method])
    close(run(12).signed[1], alone.signed[0])


def strongest(slow: Slow, count: int) -> list[int]:
    return slow.A.flatten(1).abs().amax(1).topk(count).indices.tolist()


def without_the_others(slow: Slow, kept: list[int]) -> Slow:
    """Channels that are constant: no mask and, at 0, no place in the sum."""
    slow.A = torch.stack([a if k in kept else torch.zeros_like(a) for k, a in enumerate(slow.A)])
    return slow


def test_a_budget_of_ss_cam_and_is_cam_goes_to_the_strongest_channels() -> None:
    network, x = seeded(SmallResNet()), images(1)
    kept = strongest(Slow(Literal(network, x, 1)), 6)
    slow = without_the_others(Slow(Literal(network, x, 1)), kept)
    fields = 2 * torch.randn(3, 1, 32, 40, generator=torch.Generator().manual_seed(0)).double()
    found = konkyo.explain(network, x, method="ss_cam", target=1, samples=3, budget=18)
    close(found.signed[0], slow.ss_cam(fields, "mask"))
    found = konkyo.explain(network, x, method="is_cam", target=1, steps=3, budget=18)
    close(found.signed[0], slow.is_cam(3, "cumulative"))


def test_a_budget_that_ends_within_a_channel_averages_what_ran() -> None:
    """One sample of the strongest channel is all the weight there is."""
    network, x = seeded(SmallResNet()), images(1)
    literal = Literal(network, x, 1)
    best = strongest(Slow(literal), 1)[0]
    found = konkyo.explain(network, x, method="ss_cam", target=1, budget=1)
    close(found.signed[0], literal.A[best])
    two = strongest(Slow(literal), 2)
    slow = Slow(literal)
    fields = 2 * torch.randn(2, 1, 32, 40, generator=torch.Generator().manual_seed(0)).double()
    scores = [
        torch.stack([slow.logit(x * (slow.mask(k) + field)) for field in fields[:count]]).mean()
        for k, count in zip(two, (2, 1), strict=True)
    ]
    weights = torch.stack(scores).softmax(0)
    found = konkyo.explain(network, x, method="ss_cam", target=1, samples=2, budget=3)
    close(found.signed[0], weights[0] * literal.A[two[0]] + weights[1] * literal.A[two[1]])


@pytest.mark.parametrize("variant", ["±", "+", "-"])
def test_a_budget_of_poly_cam_goes_to_the_strongest_channels(variant: str) -> None:
    """The image itself is one of the forwards, but for "+"; a channel half of which ran has no weight."""
    network, x = seeded(SmallResNet()), images(1)
    kept = strongest(Slow(Literal(network, x, 0)), 4)
    slow = without_the_others(Slow(Literal(network, x, 0)), kept)
    budget = {"±": 1 + 8, "+": 4, "-": 1 + 4}[variant]
    run = lambda budget: konkyo.explain(
        network, x, method="poly_cam", target=0, layer="stage3", variant=variant, budget=budget
    )
    close(run(budget).maps[0], slow.poly_layer(variant))
    assert torch.equal(run(budget + 1).maps, run(budget).maps) == (variant == "±")


def test_a_budget_of_group_cam_goes_to_the_strongest_groups() -> None:
    network, x = seeded(SmallResNet()), images(1)
    slow = Slow(Literal(network, x, 0))
    weighted = slow.G.mean((1, 2))[:, None, None] * slow.A
    peaks = torch.stack([weighted[k : k + 4].sum(0).relu().max() for k in range(0, 24, 4)])
    kept = peaks.topk(3).indices.tolist()
    slow = without_the_others(slow, [k for k in range(24) if k // 4 in kept])
    found = konkyo.explain(network, x, method="group_cam", target=0, groups=6, budget=1 + 3)
    close(up(found.maps[0].double(), (32, 40)), slow.group_cam(6, "paper"))


def test_a_budget_of_recipro_cam_goes_to_the_strongest_places() -> None:
    network, x = seeded(SmallResNet()), images(1)
    slow = Slow(Literal(network, x, 1))
    full = slow.recipro_cam("cell").flatten()
    ran = slow.A.abs().amax(0).flatten().topk(7).indices
    expected = torch.full_like(full, full[ran].min().item())
    expected[ran] = full[ran]
    found = konkyo.explain(network, x, method="recipro_cam", target=1, budget=7)
    close(found.maps[0].flatten(), expected)


def test_a_budget_of_rise_is_the_mean_of_the_masks_that_ran() -> None:
    """Masks of all ones: any number of them gives the score itself."""
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="rise", target=1, masks=30, keep=1.0, budget=4)
    close(found.maps[0], network(x).softmax(1)[0, 1].detach().expand(32, 40))


def test_rise_of_segments_is_of_each_images_own_and_keeps_its_budget() -> None:
    """Masks of all ones give the score itself, whatever ran."""
    network, x = seeded(SmallResNet()), images(2)
    options: dict[str, Any] = {"method": "rise", "target": [3, 0], "segments": "grid", "levels": (4, 9), "masks": 30}
    found = konkyo.explain(network, x, keep=1.0, budget=20, **options)
    p = network(x).softmax(1).detach()
    close(found.maps, torch.stack([p[0, 3].expand(32, 40), p[1, 0].expand(32, 40)]))
    both = konkyo.explain(network, x, seed=3, **options).maps
    alone = konkyo.explain(network, x[1:], seed=3, **options | {"target": 0}).maps
    close(both[1], alone[0])


def test_a_budget_of_occlusion_is_spread_over_the_image() -> None:
    network, x = seeded(SmallResNet()), images(1)
    run = lambda **o: konkyo.explain(network, x, method="occlusion", target=1, window=4, stride=4, **o).maps[0]
    full, some = run(), run(budget=1 + 20)
    reached = some != 0
    assert reached.sum() == 20 * 16
    assert torch.equal(some[reached], full[reached])
    assert all(part.any() for half in reached.chunk(2, 0) for part in half.chunk(2, 1))
    assert torch.equal(run(budget=1), torch.zeros(32, 40))  # the image itself


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prune", [0.3, 0.6, 1.0])
def test_pruning_score_cam_moves_no_pixel_further_than_stated(kind: str, prune: float) -> None:
    x = images(1)
    network, layer, slow = case(kind, x, 1)
    where = at(kind, layer, "score_cam")
    run = lambda part: konkyo.explain(network, x, method="score_cam", target=1, prune=part, **where)
    full, pruned = run(0.0), run(prune)
    strength = slow.A.flatten(1).abs().amax(1)
    kept = [k for k in range(len(strength)) if strength[k] >= prune * strength.max() and slow.mask(k) is not None]
    dropped = [k for k in range(len(strength)) if k not in kept]
    assert dropped or prune == 0.3
    close(pruned.signed[0], without_the_others(case(kind, x, 1)[2], kept).score_cam())
    scores = {k: slow.logit(x * mask) for k in range(len(strength)) if (mask := slow.mask(k)) is not None}
    masses = dict(zip(scores, torch.stack(list(scores.values())).softmax(0), strict=True))
    mass = sum(masses[k] for k in kept)
    tau = max((strength[k] for k in dropped), default=torch.zeros(()))
    bound = (1 - mass) * tau
    for a, b in ((full.signed, pruned.signed), (full.maps, pruned.maps)):
        moved = (a.double() - mass * b.double()).abs().max()
        assert moved <= bound + 1e-5 * full.signed.abs().max()
        assert bound <= tau


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prune", [0.3, 0.6, 1.0])
def test_pruning_ablation_cam_moves_no_pixel_further_than_stated(kind: str, prune: float) -> None:
    x = images(1)
    network, layer, slow = case(kind, x, 1)
    where = at(kind, layer, "ablation_cam")
    run = lambda part: konkyo.explain(network, x, method="ablation_cam", target=1, prune=part, **where)
    full, pruned = run(0.0), run(prune)
    strength = slow.A.flatten(1).abs().amax(1)
    y, weights = slow.tail(slow.A)[1].detach(), []
    for k in range(len(slow.A)):
        ablated = slow.A.clone()
        ablated[k] = 0
        weights.append((y - slow.tail(ablated)[1].detach()) / y.abs())
    kept = strength >= prune * strength.max()
    close(full.signed[0], sum(w * a for w, a in zip(weights, slow.A, strict=True)))
    if kind == "swin":  # mean and linear: the drops are known without a forward, and nothing is left out
        assert torch.equal(full.signed, pruned.signed)
        return
    close(pruned.signed[0], sum(w * a for w, a, keep in zip(weights, slow.A, kept, strict=True) if keep))
    bound = strength[~kept].max() * torch.stack(weights)[~kept].abs().sum() if (~kept).any() else 0
    for a, b in ((full.signed, pruned.signed), (full.maps, pruned.maps)):
        assert (a.double() - b.double()).abs().max() <= bound + 1e-5 * full.signed.abs().max()


def test_pruning_looks_at_every_image_alone() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(2)
    x[1] *= 5  # its activations are larger
    for method in ("score_cam", "ablation_cam"):
        run = lambda images, method=method: konkyo.explain(network, images, method=method, target=1, prune=0.5).signed
        for i in range(2):
            close(run(x)[i], run(x[i : i + 1])[0])


def test_pruning_saves_forwards() -> None:
    network, x = seeded(SmallResNet(deep_head=True)), images(1)
    strength = Literal(network, x, 1).A.flatten(1).abs().amax(1)
    konkyo.explain(network, x)  # traces the network
    for method in ("score_cam", "ablation_cam"):
        told: list[tuple[int, int]] = []
        konkyo.explain(network, x, method=method, target=1, prune=0.6, progress=lambda *at, told=told: told.append(at))
        assert told[-1][1] == (strength >= 0.6 * strength.max()).sum() < (strength > 0).sum()


# --- other shapes, bad options ---------------------------------------------------------------------------------------


class Solid(nn.Module):
    """A classifier of volumes, of signals, or (0 dimensions) of images one pixel high, with the weights of signals'."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions]
        size, step, around = ((1, 3), (1, 2), (0, 1)) if dimensions == 0 else (3, 2, 1)
        first, second = convolution(2, 4, size, step, around), convolution(4, 6, size, 1, around)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("dimensions", [1, 3])
def test_signals_and_volumes(dimensions: int, method: str) -> None:
    """A signal has the map of an image one pixel high, and a volume turned on its side has its map turned."""
    network = seeded(Solid(dimensions))
    x = torch.randn(2, 2, *[12, 14, 10][:dimensions], generator=torch.Generator().manual_seed(1)).double()
    options: dict[str, Any] = {"opti_cam": {"steps": 2}, "occlusion": {"window": 4, "stride": 3}}.get(method, {})
    options |= {"masks": 8} if method == "rise" else {"samples": 2} if method == "ss_cam" else {}
    options |= {} if method in ("occlusion", "rise") else {"layer": "body"}
    found = konkyo.explain(network, x, method=method, target=[1, 2], **options).signed
    assert found.shape[1:] in (x.shape[2:], tuple(-(-s // 2) for s in x.shape[2:]))
    assert found.isfinite().all()
    if dimensions == 3 and method not in ("rise", "ss_cam"):  # those draw random numbers in the order of the axes
        turned = seeded(Solid(3))
        with torch.no_grad():
            for layer in (turned.body[0], turned.body[2]):
                layer.weight.copy_(layer.weight.movedim(2, 4).clone())
        side = konkyo.explain(turned, x.movedim(2, 4), method=method, target=[1, 2], **options).signed
        close(side, found.movedim(1, 3))
    elif dimensions == 1:
        assert not torch.allclose(found[0], found[1])
        if method != "rise":  # its coarse masks have as many rows as columns
            flat = konkyo.explain(seeded(Solid(0)), x[:, :, None], method=method, target=[1, 2], **options).signed
            close(flat[:, 0], found)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("score_cam", {"prune": -0.1}, "prune"),
        ("ablation_cam", {"prune": 1.5}, "prune"),
        ("score_cam", {"prune": float("nan")}, "prune"),
        ("ss_cam", {"samples": 0}, "samples"),
        ("ss_cam", {"std": -1.0}, "std"),
        ("ss_cam", {"noise": "both"}, "'mask', 'input'"),
        ("is_cam", {"steps": 0}, "steps"),
        ("is_cam", {"scale": "log"}, "'cumulative', 'linear'"),
        ("group_cam", {"groups": 0}, "groups"),
        ("group_cam", {"variant": "new"}, "'paper', 'released'"),
        ("recipro_cam", {"mask": "box"}, "'cell', 'gaussian'"),
        ("poly_cam", {"variant": "*"}, "'±', '\\+', '-'"),
        ("opti_cam", {"steps": 0}, "steps"),
        ("opti_cam", {"rate": 0.0}, "rate"),
        ("opti_cam", {"objective": "lower"}, "'maximise', 'keep'"),
        ("occlusion", {"window": 4, "stride": 5}, "stride <= window"),
        ("occlusion", {"stride": 0}, "1 <= stride"),
        ("rise", {"masks": 0}, "masks"),
    ],
)
def test_bad_options_are_told(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(seeded(SmallResNet()), images(1), method=method, target=1, **options)

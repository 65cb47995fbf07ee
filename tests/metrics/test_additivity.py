"""Metrics that compare sums of attributions with changes of the score: against Captum, closed forms and plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import konkyo
from helpers.metric_inputs import PIXELS, images_of, linear, maps_of, network
from konkyo.errors import KonkyoError
from konkyo.metrics.additivity import (
    completeness_error,
    faithfulness_correlation,
    infidelity,
    monotonicity,
    sensitivity_n,
)
from konkyo.metrics.variants import seeded, spearman


def squares(side: int, sample: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """The square of a sample, drawn as the metric draws it."""
    generator, square = seeded(seed, sample), torch.zeros(size)
    top = int(torch.randint(size[0] - side + 1, (), generator=generator))
    left = int(torch.randint(size[1] - side + 1, (), generator=generator))
    square[top : top + side, left : left + side] = 1
    return square


@pytest.mark.parametrize("scaling", ["none", "optimal"])
@pytest.mark.parametrize("kind", ["gaussian", "square"])
def test_infidelity_is_captum_s_with_the_same_perturbations(kind: str, scaling: str) -> None:
    captum = pytest.importorskip("captum.metrics")
    images, maps = images_of().double(), maps_of().double() - 0.3
    seen: list[Tensor] = []

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        seen.append(variants)
        return network(variants, rows)

    options = {"kind": kind, "holds_input": False, "side": 3, "samples": 12, "scaling": scaling}
    found = infidelity(maps, images=images, score=score, batch=1000, **options)
    perturbed = seen[1].view(12, 3, *images.shape[1:]).transpose(0, 1)  # what was asked about, after the images

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        assert torch.equal(inputs, images.repeat_interleave(12, 0))
        return inputs - perturbed.flatten(0, 1), perturbed.flatten(0, 1)

    expected = captum.infidelity(
        lambda inputs: network(inputs, torch.arange(3).repeat_interleave(len(inputs) // 3)),
        perturb,
        images,
        maps[:, None].expand_as(images).contiguous(),
        n_perturb_samples=12,
        normalize=scaling == "optimal",
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_the_perturbations_of_infidelity_are_what_they_are_called() -> None:
    images, seen = images_of(2, 3, (20, 30)), []

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        seen.append(images[rows] - variants)
        return variants.sum((1, 2, 3))

    infidelity(maps_of(2, (20, 30)), images=images, score=score, std=0.5, samples=20, batch=40)
    noise = seen[1].view(20, 2, -1)
    torch.testing.assert_close(noise[:, 0], noise[:, 1], atol=1e-5, rtol=0)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(noise[0, 0] @ noise[1, 0]) / 1800) < 0.02
    infidelity(maps_of(2, (20, 30)), images=images, score=score, kind="square", side=4, samples=20, batch=40)
    for sample, pair in enumerate(seen[3].view(20, 2, 3, 20, 30)):
        expected = images * squares(4, sample, (20, 30))
        torch.testing.assert_close(pair, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "square"])
def test_infidelity_of_a_linear_scorer(kind: str) -> None:
    images = images_of()
    weights = maps_of()[:, None].expand_as(images)
    given: dict[str, Any] = {"images": images, "score": linear(weights), "kind": kind, "samples": 40, "side": 3}
    given["holds_input"] = False
    perfect = infidelity(maps_of(), **given)
    torch.testing.assert_close(perfect, torch.zeros(3), atol=1e-8, rtol=0)
    nothing, inverted = infidelity(maps_of() * 0, **given), infidelity(-maps_of(), **given)
    torch.testing.assert_close(inverted, 4 * nothing, rtol=1e-4, atol=0)
    assert (nothing > 0.01).all()
    scaled = infidelity(7 * maps_of(), **given, scaling="optimal")
    torch.testing.assert_close(scaled, torch.zeros(3), atol=1e-8, rtol=0)
    if kind == "gaussian":  # E (I . w)^2 = std^2 |w|^2
        many = infidelity(maps_of() * 0, images=images, score=linear(weights), samples=2000, batch=500)
        torch.testing.assert_close(many, 0.04 * (weights**2).sum((1, 2, 3)), rtol=0.15, atol=0)
    chunked = infidelity(maps_of() * 0, **given, batch=7)
    torch.testing.assert_close(chunked, nothing)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("square", {}), ("square", {"holds_input": True}), ("gaussian", {"holds_input": True})],
)
@pytest.mark.parametrize("baseline", [0.0, -1.5])
def test_infidelity_of_maps_that_hold_the_input(kind: str, options: dict[str, Any], baseline: float) -> None:
    """Weight times (input - baseline), exact also where channels differ: 0. Slopes are for the other kind."""
    images = images_of()
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(7))
    given: dict[str, Any] = {"images": images, "score": linear(weights), "kind": kind, "samples": 30, "side": 3}
    given |= {"baseline": baseline, **options}
    exact = (weights * (images - baseline)).sum(1)
    torch.testing.assert_close(infidelity(exact, **given), torch.zeros(3), atol=1e-8, rtol=0)
    nothing, inverted = infidelity(0 * exact, **given), infidelity(-exact, **given)
    torch.testing.assert_close(inverted, 4 * nothing, rtol=1e-4, atol=0)
    assert (nothing > 0.01).all()
    assert (infidelity(weights.sum(1), **given) > 0.01).all()
    scaled = infidelity(-7 * exact, **given, scaling="optimal")
    torch.testing.assert_close(scaled, torch.zeros(3), atol=1e-8, rtol=0)
    if kind == "gaussian":  # E (sum rho a)^2 = std^2 |a|^2
        many = infidelity(0 * exact, **given | {"samples": 2000, "batch": 500, "std": 0.3})
        torch.testing.assert_close(many, 0.09 * (exact**2).sum((1, 2)), rtol=0.2, atol=0)
    if not baseline:
        smaller = infidelity(exact[:, ::2, ::3], **given)
        assert smaller.isfinite().all()


def test_infidelity_of_exact_attributions_of_a_network() -> None:
    """Integrated gradients, input x gradient and occlusion by the pixel say what a linear net's pixels add."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 3, bias=False)).eval()
    x = torch.rand(2, 1, 16, 16) * 3
    given: dict[str, Any] = {"images": x, "score": lambda v, rows: net(v)[:, 0], "side": 4, "samples": 100}
    target = lambda out: out[:, 0]
    for method in ("integrated_gradients", "input_x_gradient", "occlusion"):
        options = {"window": 1, "stride": 1} if method == "occlusion" else {}
        found = konkyo.explain(net, x, method=method, target=target, **options)
        for chosen in ({"kind": "square"}, {"kind": "gaussian", "holds_input": True}):
            ours, zeros = (infidelity(m, **given, **chosen).mean().item() for m in (found.signed, 0 * found.signed))
            assert ours < 1e-4 < zeros
    slope = konkyo.explain(net, x, method="gradient", target=target).signed
    torch.testing.assert_close(slope, net[1].weight[0].detach().view(1, 16, 16).expand(2, -1, -1))
    for chosen in ({"kind": "square", "holds_input": False}, {"kind": "gaussian"}):
        ours, zeros = (infidelity(m, **given, **chosen).mean().item() for m in (slope, 0 * slope))
        assert ours < 1e-4 < zeros


def test_relative_perturbations_are_shares_of_the_pixels() -> None:
    images, seen = images_of(2, 3, (20, 30)), []

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        seen.append((images[rows] - variants) / (images[rows] - 0.25))
        return variants.sum((1, 2, 3))

    options: dict[str, Any] = {"holds_input": True, "baseline": 0.25, "std": 0.5, "samples": 10, "batch": 20}
    infidelity(maps_of(2, (20, 30)), images=images, score=score, **options)
    shares = seen[1].view(10, 2, 3, -1)
    torch.testing.assert_close(shares, shares[:, :1, :1].expand_as(shares), atol=1e-2, rtol=1e-2)
    assert float(shares.std()) == pytest.approx(0.5, rel=0.05)


def test_where_infidelity_is_not_defined() -> None:
    images, maps = images_of(), maps_of()
    maps[1] = math.nan
    given: dict[str, Any] = {"images": images, "score": network, "samples": 3}
    assert infidelity(maps, **given).isnan().tolist() == [False, True, False]
    assert infidelity(maps_of(3, (2, 3)), **given).isfinite().all()
    assert infidelity(maps * 0, **given, scaling="optimal").isfinite().tolist() == [True, False, True]
    assert infidelity(maps[:0], images=images[:0], score=network).shape == (0,)
    for wrong in ({"std": 0}, {"std": math.inf}, {"baseline": math.nan}, {"samples": 0}):
        with pytest.raises(KonkyoError, match="std > 0"):
            infidelity(maps, **given | wrong)
    with pytest.raises(KonkyoError, match="holds_input"):
        infidelity(maps, **given, holds_input="yes")


@pytest.mark.parametrize("metric", [sensitivity_n, faithfulness_correlation])
def test_sums_of_random_pixels_by_hand(metric: Any) -> None:
    images, maps = images_of(), maps_of() - 0.4
    options: dict[str, Any] = {"share": 0.2} if metric is sensitivity_n else {"subset": 11, "substrate": "black"}
    fill = torch.zeros(3, 1, 1) if metric is sensitivity_n else PIXELS[0].view(3, 1, 1)
    given = {"images": images, "score": network} | ({} if metric is sensitivity_n else {"pixels": PIXELS})
    found = metric(maps, **given, **options, samples=15, batch=4)
    for row in range(3):
        sums, falls = [], []
        for sample in range(15):
            chosen = torch.randperm(54, generator=seeded(0, sample))[:11].tolist()
            hidden = images[row].clone()
            for place in chosen:
                hidden[:, place // 9, place % 9] = fill[:, 0, 0]
            sums.append(sum(float(maps[row, place // 9, place % 9]) for place in chosen))
            whole, rest = (float(network(i[None], torch.tensor([row]))) for i in (images[row], hidden))
            falls.append(whole - rest)
        expected = float(torch.corrcoef(torch.tensor([sums, falls], dtype=torch.float64))[0, 1])
        assert found[row].item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("metric", [sensitivity_n, faithfulness_correlation])
def test_attributions_of_a_linear_scorer_foretell_it(metric: Any) -> None:
    images = images_of()
    weights = maps_of()[:, None].expand_as(images)
    attributions = (images * weights).sum(1)
    given: dict[str, Any] = {"images": images, "score": linear(weights), "samples": 30}
    given |= {"share": 0.3} if metric is sensitivity_n else {"subset": 9}
    torch.testing.assert_close(metric(attributions, **given), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(metric(-attributions, **given), -torch.ones(3), atol=1e-4, rtol=0)
    middle = metric(maps_of(), **given)
    assert (middle.abs() < 0.95).all()
    broken = attributions.clone()
    broken[0], broken[1] = 0, math.nan
    assert metric(broken, **given).isnan().tolist() == [True, True, False]
    assert metric(broken[:0], images=images[:0], score=network).shape == (0,)


def test_options_of_random_sets() -> None:
    given: dict[str, Any] = {"images": images_of(), "score": network}
    with pytest.raises(KonkyoError, match="between 0 and 1"):
        sensitivity_n(maps_of(), **given, share=1.0)
    with pytest.raises(KonkyoError, match="2 samples"):
        faithfulness_correlation(maps_of(), **given, samples=1)
    everything = faithfulness_correlation(maps_of(), **given, subset=1000)  # the same sum every time
    assert everything.isnan().all() or (everything.abs() <= 1).all()


def test_monotonicity_of_a_linear_scorer_and_by_hand() -> None:
    """Groups whose weights grow move the score further, the larger the further."""
    images = images_of(2, 1, (10, 10))
    weights = 2.0 ** (torch.arange(100.0).view(1, 1, 10, 10) / 5).expand_as(images)
    given: dict[str, Any] = {"images": images, "score": linear(weights), "pixels": torch.tensor([[-2.0], [2.0]])}
    perfect = monotonicity(weights[:, 0], **given, groups=10, samples=10)
    assert (perfect > 0.9).all()
    assert torch.equal(monotonicity(-weights[:, 0], **given, groups=10, samples=10), perfect)  # no sign
    assert (monotonicity(1 / weights[:, 0], **given, groups=10, samples=10) < -0.9).all()
    assert monotonicity(weights[:, 0] * torch.tensor([math.nan, 1]).view(2, 1, 1), **given, groups=10).isnan()[0]
    assert monotonicity(weights[:0, 0], images=images[:0], score=network, pixels=PIXELS).shape == (0,)
    only = {"images": images, "score": lambda v, r: r.float(), "pixels": given["pixels"]}
    assert monotonicity(weights[:, 0], **only, groups=4).isnan().all()
    with pytest.raises(KonkyoError, match="2 to 100 groups"):
        monotonicity(weights[:, 0], **given, groups=101)
    with pytest.raises(KonkyoError, match="needs pixels"):
        monotonicity(weights[:, 0], images=images, score=network)


def test_monotonicity_takes_groups_one_at_a_time() -> None:
    images, maps, seen = images_of(1, 1, (4, 6)), maps_of(1, (4, 6)), []

    def score(variants: Tensor, rows: Tensor) -> Tensor:
        seen.append((variants != images).view(len(variants), -1))
        return variants.sum((1, 2, 3))

    monotonicity(maps, images=images, score=score, pixels=torch.tensor([[-9.0], [9.0]]), groups=5, samples=2)
    order = maps.flatten().argsort(descending=True).tolist()
    sizes = [sum(1 for p in range(24) if p * 5 // 24 == g) for g in range(5)]
    for changed in seen[1:]:
        place = 0
        for group, size in enumerate(sizes):
            assert changed[group].nonzero().flatten().tolist() == sorted(order[place : place + size])
            place += size


def test_spearman_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    one = torch.randint(6, (5, 20), generator=torch.Generator().manual_seed(0)).double()
    other = torch.randint(4, (5, 20), generator=torch.Generator().manual_seed(1)).double()
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one.numpy(), other.numpy(), strict=True)]
    assert spearman(one, other).tolist() == pytest.approx(expected, abs=1e-6)


def test_completeness_of_a_linear_scorer() -> None:
    images = images_of()
    weights = maps_of()[:, None].expand_as(images)
    score, raw = linear(weights), (images * weights).sum(1)
    given: dict[str, Any] = {"images": images, "score": score}
    torch.testing.assert_close(completeness_error(raw, **given), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(completeness_error(1.25 * raw, **given), torch.full((3,), 0.25))
    torch.testing.assert_close(completeness_error(-raw, **given), torch.full((3,), 2.0))
    total = raw.sum((1, 2))
    torch.testing.assert_close(completeness_error(raw * 0, **given, relative=False), total.abs())
    black = PIXELS[0].view(3, 1, 1)
    from_black = ((images - black) * weights).sum(1)
    given |= {"pixels": PIXELS, "baseline": "black"}
    torch.testing.assert_close(completeness_error(from_black, **given), torch.zeros(3), atol=1e-5, rtol=0)


def test_where_completeness_is_not_defined() -> None:
    images, raw = images_of(), torch.ones(3, 2, 2)
    raw[1] = math.nan
    flat = completeness_error(raw, images=images, score=lambda v, r: r.float())
    assert flat.isnan().all()
    bound = completeness_error(raw, images=images, score=lambda v, r: r.float(), relative=False)
    assert bound[0] == 4  # of the layer's grid, not of the image's
    assert bound[1].isnan()
    with pytest.raises(KonkyoError, match="black pixels need `pixels`"):
        completeness_error(raw, images=images, score=network, baseline="black")
    assert completeness_error(raw[:0], images=images[:0], score=network).shape == (0,)

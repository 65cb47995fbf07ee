"""What a call may ask for besides a method: targets, fusing, a budget, wrappers, attributions of Captum's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import konkyo
from helpers.closeness import close
from helpers.networks import Attention, SmallResNet, images, seeded
from konkyo.utils.tensors import first_component, fuse

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


# --- targets ---------------------------------------------------------------------------------------------------------


def test_one_logit_has_two_sides() -> None:
    network, x = seeded(SmallResNet(classes=1)), images(4)
    with torch.no_grad():
        network.head.bias -= network(x).mean()
    z = network(x)[:, 0].detach()
    assert (z > 0).any()
    assert (z < 0).any()
    decided = konkyo.explain(network, x, method="hires_cam")
    assert decided.labels == tuple("positive" if v > 0 else "negative" for v in z)
    close(decided.scores, z.abs())
    both = konkyo.explain(network, x, method="hires_cam", target=konkyo.Each("positive", "negative"))
    close(both.signed[0::2], -both.signed[1::2])
    close(both.scores[0::2], z)
    for name, index in (("negative", 0), ("positive", 1)):
        by_index = konkyo.explain(network, x, method="hires_cam", target=index)
        assert torch.equal(by_index.signed, konkyo.explain(network, x, method="hires_cam", target=name).signed)
    probabilities = konkyo.explain(network, x, target=konkyo.ClassTarget(1, "probability")).scores
    close(probabilities, z.sigmoid())
    close(konkyo.explain(network, x, target=konkyo.ClassTarget(0, "probability")).scores, 1 - z.sigmoid())


def test_one_logit_with_names() -> None:
    model, x = konkyo.Model(seeded(SmallResNet(classes=1)), classes=("benign", "malignant")), images(2)
    found = konkyo.explain(model, x, target=konkyo.TopK(2), method="hires_cam")
    assert set(found.labels[:2]) == {"benign", "malignant"}
    malignant = konkyo.explain(model, x, target="malignant", method="hires_cam")
    close(malignant.scores, model(x)[:, 0].detach())
    with pytest.raises(konkyo.KonkyoError, match="2 classes"):
        konkyo.explain(model, x, target=2)
    with pytest.raises(konkyo.KonkyoError, match="a single logit stands for two"):
        konkyo.explain(konkyo.Model(model.module, classes=("malignant",)), x)


def test_classes_that_do_not_exclude_each_other() -> None:
    network, x = seeded(SmallResNet()), images(2)
    model = konkyo.Model(network, multilabel=True)
    found = konkyo.explain(model, x, method="rise", target=3, masks=8)
    close(found.scores, network(x)[:, 3].sigmoid().detach())
    close(konkyo.explain(network, x, method="rise", target=3, masks=8).scores, network(x).softmax(1)[:, 3].detach())


def test_against_and_contrast() -> None:
    model, x = konkyo.Model(seeded(SmallResNet()), classes=("a", "b", "c", "d", "e")), images(2)
    maps = {c: konkyo.explain(model, x, method="hires_cam", target=c) for c in ("a", "c")}
    against = konkyo.explain(model, x, method="hires_cam", target=konkyo.Against("a"))
    close(against.signed, -maps["a"].signed)
    assert against.labels == ("against a",) * 2
    contrast = konkyo.explain(model, x, method="hires_cam", target=konkyo.ContrastTarget("a", 2))
    close(contrast.signed, maps["a"].signed - maps["c"].signed)
    close(contrast.scores, maps["a"].scores - maps["c"].scores)
    assert contrast.labels == ("a, not c",) * 2
    with pytest.raises(konkyo.KonkyoError, match="unknown class 'f'"):
        konkyo.explain(model, x, target=konkyo.ContrastTarget("a", "f"))


# --- several layers --------------------------------------------------------------------------------------------------

LAYERS = ["stage1", "stage2", "stage3"]


@pytest.mark.parametrize("how", ["max", "mean", "sum", "product"])
def test_several_layers_in_one_pass(how: str) -> None:
    network, x = seeded(SmallResNet()), images(2)
    calls: list[int] = []
    konkyo.explain(network, x)
    handle = network.stem.register_forward_hook(lambda *_: calls.append(1))
    found = konkyo.explain(network, x, method="layer_cam", layer=LAYERS, fuse=how, target=1)
    handle.remove()
    assert len(calls) == 1
    single = [konkyo.explain(network, x, method="layer_cam", layer=layer, target=1).maps for layer in LAYERS]
    large = [
        functional.interpolate((m / m.amax((1, 2), keepdim=True))[:, None], (16, 20), mode="bilinear")[:, 0]
        for m in single
    ]
    stack = torch.stack(large)
    expected = {"max": stack.amax(0), "mean": stack.mean(0), "sum": stack.sum(0), "product": stack.prod(0)}[how]
    close(found.maps, expected)
    assert found.options["fuse"] == how
    assert found.layer == "stage1+stage2+stage3"


def test_stages_are_the_last_layers_of_every_grid_size() -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="grad_cam", layer="stages")
    assert found.layer == "stem+stage1+stage2+stage3"
    vit = konkyo.explain(seeded(Attention()), x, method="grad_cam", layer="stages")
    assert vit.layer == konkyo.explain(seeded(Attention()), x).layer


def test_a_way_to_fuse_of_ones_own_and_an_unknown_one() -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, layer=LAYERS, target=1, fuse=lambda maps: maps[0] * 2)
    close(found.maps, konkyo.explain(network, x, layer="stage1", target=1).maps * 2)
    with pytest.raises(konkyo.KonkyoError, match="did you mean 'mean'"):
        konkyo.explain(network, x, fuse="meann")
    with pytest.raises(konkyo.KonkyoError, match="did you mean 'max'"):
        fuse([torch.ones(1, 2, 2)] * 2, "maxx")


# --- budget and progress ---------------------------------------------------------------------------------------------


def counted(network: nn.Module, **settings: Any) -> tuple[konkyo.Explanation, int]:
    """(the explanation, how many images went through the network for it)"""
    seen: list[int] = []
    handle = network.stem.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    found = konkyo.explain(network, **settings)
    handle.remove()
    return found, sum(seen)


def test_a_budget_goes_to_the_strongest_channels() -> None:
    network, x = seeded(SmallResNet()), images(2)
    konkyo.explain(network, x)
    full, all_forwards = counted(network, images=x, method="score_cam", target=1)
    some, forwards = counted(network, images=x, method="score_cam", target=1, budget=10)
    assert forwards == 2 + 2 * 10
    assert all_forwards > forwards
    assert some.options["budget"] == 10
    assert "budget" not in full.options
    features = network.stage3(network.stage2(network.stage1(network.stem(x)))).detach()
    for i in range(2):
        best = features[i].flatten(1).abs().amax(1).topk(10).indices
        scores = []
        for k in best:
            mask = functional.interpolate(features[i, k][None, None], (32, 40), mode="bilinear")
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(network(x[i : i + 1] * mask)[0, 1].detach())
        weights = torch.stack(scores).softmax(0)
        close(some.signed[i], sum(w * features[i, k] for w, k in zip(weights, best, strict=True)))
    generous = konkyo.explain(network, x, method="score_cam", target=1, budget=1000)
    close(generous.signed, full.signed)


def test_progress_is_told_and_can_end_the_run() -> None:
    network, x = seeded(SmallResNet()), images(1)
    told: list[tuple[int, int]] = []
    full = konkyo.explain(network, x, method="rise", masks=40, target=1, progress=lambda *at: told.append(at))
    assert told[-1] == (40, 40)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    first = konkyo.explain(network, x, method="rise", masks=40, target=1, progress=lambda _done, _all: True)
    only = konkyo.explain(network, x, method="rise", masks=40, target=1, budget=told[0][0])
    close(first.maps, only.maps)
    assert not torch.allclose(first.maps, full.maps)


def test_a_budget_is_shared_by_all_classes_of_an_image() -> None:
    network, x = seeded(SmallResNet()), images(1)
    konkyo.explain(network, x, method="score_cam", budget=2)  # which also looks whether images depend on each other
    found, forwards = counted(network, images=x, method="score_cam", target=konkyo.TopK(3), budget=6)
    assert forwards == 1 + 6
    for row, target in enumerate(found.targets):
        close(found.signed[row], konkyo.explain(network, x, method="score_cam", target=target, budget=6).signed[0])


@pytest.mark.parametrize("budget", [0, -3, 1.5, True])
def test_a_budget_is_a_positive_number(budget: Any) -> None:
    with pytest.raises(konkyo.KonkyoError, match="budget is a number of forwards"):
        konkyo.explain(seeded(SmallResNet()), images(1), budget=budget)


# --- wrappers --------------------------------------------------------------------------------------------------------


def test_augmented_is_the_mean_over_the_views() -> None:
    network, x = seeded(SmallResNet()), images(2)
    decided = network(x).argmax(1).tolist()
    found = konkyo.explain(network, x, method="augmented(grad_cam)")
    expected = torch.zeros(2, 4, 5)
    for scale in (0.9, 1.0, 1.1):
        for mirrored in (False, True):
            view = x * scale
            maps = konkyo.explain(network, view.flip(-1) if mirrored else view, target=decided).maps
            expected += (maps.flip(-1) if mirrored else maps) / 6
    close(found.maps, expected)
    assert found.method == "augmented(grad_cam)"
    alone = konkyo.explain(network, x, method=konkyo.augmented("grad_cam", scales=(1.0,), flip=False), target=decided)
    close(alone.maps, konkyo.explain(network, x, target=decided).maps)


@pytest.mark.parametrize("method", ["eigen_cam", "saliency", "ablation_cam", "layer_cam"])
def test_augmented_of_any_method_runs_its_views_in_one_batch(method: str) -> None:
    network, x = seeded(SmallResNet()), images(1)
    seen: list[int] = []
    konkyo.explain(network, x)
    handle = network.stem.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    found = konkyo.explain(network, x, method=f"augmented({method})", target=konkyo.TopK(3))
    handle.remove()
    assert seen == [1, 6]  # all three classes
    views = [x * s for s in (0.9, 1.0, 1.1)]
    label = found.targets[1]
    maps = [konkyo.explain(network, v, method=method, target=label).maps for v in views]
    maps += [konkyo.explain(network, v.flip(-1), method=method, target=label).maps.flip(-1) for v in views]
    close(found.maps[1], torch.cat(maps).mean(0))


def test_first_component_of_hires_cam_is_eigen_grad_cam() -> None:
    network, x = seeded(SmallResNet()), images(3)
    found = konkyo.explain(network, x, method="first_component(hires_cam)", target=1)
    close(found.signed, konkyo.explain(network, x, method="eigen_grad_cam", target=1).signed)
    nested = konkyo.explain(network, x, method="augmented(first_component(hires_cam))", target=1)
    assert nested.method == "augmented(first_component(hires_cam))"
    assert nested.maps.abs().sum() > 0


def test_first_component_by_hand() -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="first_component(grad_cam)", target=1)
    features = network.stage3(network.stage2(network.stage1(network.stem(x)))).detach()
    weights = network.head.weight[1].detach() / 20
    evidence = (features * weights.view(1, -1, 1, 1))[0].flatten(1).T
    _, _, vt = torch.linalg.svd(evidence, full_matrices=False)
    component = evidence @ vt[0]
    component = component * (component @ evidence.sum(1)).sign()
    close(found.signed[0], component.view(4, 5))


def test_wrappers_refuse_what_they_cannot_wrap() -> None:
    network, x = seeded(SmallResNet()), images(1)
    with pytest.raises(konkyo.NotApplicable, match="no sum over channels"):
        konkyo.explain(network, x, method="first_component(eigen_cam)")
    with pytest.raises(konkyo.KonkyoError, match="did you mean 'grad_cam'"):
        konkyo.explain(network, x, method="augmented(gradcam)")
    with pytest.raises(konkyo.KonkyoError, match=r"augmented\(METHOD\)"):
        konkyo.explain(network, x, method="augment(grad_cam)")
    with pytest.raises(konkyo.KonkyoError, match="unknown option"):
        konkyo.explain(network, x, method="augmented(grad_cam)", steps=3)


def test_augmented_of_the_gradients_of_biases() -> None:
    network, x = seeded(SmallResNet()), images(1)
    found = konkyo.explain(network, x, method="augmented(full_grad)", target=1)
    views = [x * s for s in (0.9, 1.0, 1.1)]
    maps = [konkyo.explain(network, v, method="full_grad", target=1).maps for v in views]
    maps += [konkyo.explain(network, v.flip(-1), method="full_grad", target=1).maps.flip(-1) for v in views]
    close(found.maps[0], torch.cat(maps).mean(0))
    with pytest.raises(konkyo.NotApplicable, match="no sum over channels"):
        konkyo.explain(network, x, method="first_component(full_grad)")


@pytest.mark.parametrize("size", [1e-25, 1e-3, 1e25])
def test_the_first_component_of_any_size_of_numbers(size: float) -> None:
    values = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(1))
    found, expected = first_component(values * size), first_component(values)
    sign = (found * expected).flatten(1).sum(1).sign().view(-1, 1, 1)
    close(found / size * sign, expected, 1e-4)


@pytest.mark.parametrize("method", ["first_component(score_cam)", "augmented(first_component(score_cam))"])
def test_the_first_component_under_a_budget(method: str) -> None:
    network, x = seeded(SmallResNet(), double=False), images(2, double=False)
    for budget in (1, 3):
        assert konkyo.explain(network, x, method=method, target=1, budget=budget).signed.isfinite().all()


@pytest.mark.parametrize("name", ["augmentd(grad_cam)", "augmented(grad_cam", "(grad_cam)"])
def test_a_misspelt_wrapper_is_told_the_wrappers(name: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=r"On offer: augmented\(METHOD\), .*first_component\(METHOD\)"):
        konkyo.explain(seeded(SmallResNet()), images(1), method=name)
    spaced = konkyo.explain(seeded(SmallResNet()), images(1), method="augmented( grad_cam )")
    assert spaced.method == "augmented(grad_cam)"


def test_what_is_no_number_function_or_list_is_refused() -> None:
    network, x = seeded(SmallResNet()), images(1)
    for wrong in (2.5, True, "2"):
        with pytest.raises(konkyo.KonkyoError, match="whole number"):
            konkyo.TopK(wrong)
    with pytest.raises(konkyo.KonkyoError, match="progress is a function"):
        konkyo.explain(network, x, progress=5)
    with pytest.raises(konkyo.KonkyoError, match="at least one"):
        konkyo.augmented("grad_cam", scales=())
    with pytest.raises(konkyo.KonkyoError, match="as in Each"):
        konkyo.Each(["cat", "dog"])
    mixed = konkyo.explain(network, x, layer=["stem", "stages"], target=1)
    assert mixed.layer == "stem+stem+stage1+stage2+stage3"


def test_a_wrapper_takes_its_methods_options() -> None:
    network, x = seeded(SmallResNet()), images(1)
    one = konkyo.augmented("eigen_cam", scales=(1.0,), flip=False)
    found = konkyo.explain(network, x, method=one, centred=True)
    close(found.signed, konkyo.explain(network, x, method="eigen_cam", centred=True).signed)


def test_first_component_of_noise_and_signal() -> None:
    """One channel pattern in all places, plus little noise: the component is the pattern's strength."""
    strength = torch.rand(1, 1, 6, 7) + 1
    values = strength * torch.randn(1, 9, 1, 1, generator=torch.Generator().manual_seed(0))
    found = first_component(values)
    ratio = found / strength[:, 0]
    close(ratio, ratio[:, :1, :1].expand_as(ratio), 1e-4)


# --- Captum ----------------------------------------------------------------------------------------------------------


def test_an_attribution_of_captums_is_a_method() -> None:
    from captum.attr import IntegratedGradients, LayerGradCam, NoiseTunnel, Saliency

    network, x = seeded(SmallResNet()), images(2)
    found = konkyo.explain(network, x, method=IntegratedGradients(network), target=[3, 1], n_steps=20)
    expected = IntegratedGradients(network).attribute(x, target=[3, 1], n_steps=20).sum(1)
    close(found.maps, expected)
    assert (found.method, found.options["n_steps"]) == ("IntegratedGradients", 20)
    layer = konkyo.explain(network, x, method=LayerGradCam(network, network.stage3), target=konkyo.TopK(2))
    close(layer.signed, konkyo.explain(network, x, method="grad_cam", target=konkyo.TopK(2)).signed)
    assert layer.labels == konkyo.explain(network, x, target=konkyo.TopK(2)).labels
    noisy = {}
    for seed in (0, 0, 1):
        state = torch.random.get_rng_state()
        result = konkyo.explain(network, x, method=NoiseTunnel(Saliency(network)), target=1, nt_samples=3, seed=seed)
        assert torch.equal(state, torch.random.get_rng_state())
        if seed in noisy:
            assert torch.equal(noisy[seed], result.maps)
        noisy[seed] = result.maps
    assert not torch.equal(noisy[0], noisy[1])


def test_an_attribution_made_around_something_else_is_refused() -> None:
    from captum.attr import InputXGradient, Saliency

    network, other, x = seeded(SmallResNet()), seeded(SmallResNet(), 5), images(2)
    with pytest.raises(konkyo.KonkyoError, match="puts out something else than the model"):
        konkyo.explain(network, x, method=InputXGradient(other), target=1)
    turned = konkyo.Model(network, select=lambda output: -output)
    with pytest.raises(konkyo.KonkyoError, match=r"as in InputXGradient\(model\)"):
        konkyo.explain(turned, x, method=InputXGradient(network), target=1)
    found = konkyo.explain(turned, x, method=InputXGradient(turned), target=1)
    close(found.maps, konkyo.explain(turned, x, method="input_x_gradient", target=1).maps)
    with pytest.raises(konkyo.KonkyoError, match="unknown method"):
        konkyo.explain(network, x, method=Saliency)


def test_an_attribution_of_one_logit() -> None:
    from captum.attr import InputXGradient

    network, x = seeded(SmallResNet(classes=1)), images(2)
    found = konkyo.explain(network, x, method=InputXGradient(network), target="positive")
    close(found.maps, konkyo.explain(network, x, method="input_x_gradient", target="positive").maps)
    with pytest.raises(konkyo.KonkyoError, match="the class 'positive'"):
        konkyo.explain(network, x, method=InputXGradient(network), target="negative")


def test_attributions_beside_methods_of_ours() -> None:
    from captum.attr import InputXGradient

    network, x = seeded(SmallResNet()), images(2)
    maps = konkyo.compare(network, x, ["input_x_gradient", InputXGradient(network)], target=1)
    close(maps["InputXGradient"].maps, maps["input_x_gradient"].maps)
    with pytest.raises(konkyo.KonkyoError, match="a class was expected"):
        konkyo.explain(network, x, method=InputXGradient(network), target=lambda out: out.sum(1))
    with pytest.raises(konkyo.KonkyoError, match="unknown option of InputXGradient 'steps'"):
        konkyo.explain(network, x, method=InputXGradient(network), steps=3)
    with pytest.raises(konkyo.KonkyoError, match="unknown method"):
        konkyo.explain(network, x, method=3)

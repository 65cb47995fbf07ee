"""Sanity: what a map should depend on (weights, the class) and what not (noise, mirrors), against plain loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import konkyo
from helpers.detectors import dense, noise
from helpers.networks import SmallResNet, images, seeded
from helpers.unregistered import made
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError
from konkyo.evaluation.sanity import ALIKE, random_class, randomisation, rank_correlation, stability
from konkyo.targets.classes import ClassTarget, Target


@made
def edges(inputs: Tensor) -> Tensor:
    return inputs.abs().sum(1)


@made
def constant(inputs: Tensor) -> Tensor:
    return inputs.sum(1) * 0 + 1


@pytest.fixture(scope="module")
def trained() -> konkyo.Model:
    return konkyo.load("konkyo/scenes-classifier")


@pytest.fixture(scope="module")
def pair(trained: konkyo.Model) -> Tensor:
    """Three unseen scenes with objects of several classes."""
    assert trained.preprocess is not None
    scenes = [s for s in Scenes(20, seed=901, size=128, objects=2) if len(set(s.labels.tolist())) == 2][:3]
    return torch.stack([trained.preprocess(s.image) for s in scenes])


def small(**options: Any) -> nn.Module:
    return seeded(SmallResNet(**options), double=False)


# --- rank correlation -------------------------------------------------------------------------------------------------


def test_the_rank_correlation_is_scipys_of_absolute_values() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(4, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    other[1] = -one[1]
    other[2] = one[2].round()  # ties
    found = rank_correlation(one, other)
    for row in range(4):
        expected = spearmanr(one[row].abs().flatten().numpy(), other[row].abs().flatten().numpy()).statistic
        assert float(found[row]) == pytest.approx(expected)
    assert float(found[1]) == pytest.approx(1)
    assert rank_correlation(one, torch.ones_like(one)).isnan().all()


# --- parameter randomisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_a_map_that_ignores_weights_stays_and_fails(order: str) -> None:
    found = randomisation(small(), images(2, double=False), edges, order=order, steps=4)
    assert found.test == order
    assert found.similarity.shape == (4, 2)
    assert len(found.steps) == 4
    torch.testing.assert_close(found.similarity, torch.ones_like(found.similarity))
    assert not found.passed
    assert "1.00" in found.verdict
    assert "hardly depends" in found.verdict


def test_gradients_of_a_trained_network_pass(trained: konkyo.Model, pair: Tensor) -> None:
    found = randomisation(trained, pair, "grad_cam", steps=2)
    assert found.passed
    assert found.similarity.shape == (2, 3)
    last = float(found.similarity[-1].nanmean())
    assert last <= ALIKE
    assert f"{last:.2f}" in found.verdict


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_which_weights_are_random_at_which_step(order: str) -> None:
    network = small()
    parts = [n for n, m in network.named_modules() if list(m.parameters(recurse=False))][::-1]
    before = {n: p.clone() for n, p in network.named_parameters()}
    seen: list[set[str]] = []
    drawn: list[dict[str, Tensor]] = []

    def look(module: nn.Module, _: Any) -> None:
        if module is not network:
            now = dict(module.named_parameters())
            changed = {n.rpartition(".")[0] for n in now if not torch.equal(now[n], before[n])}
            if not seen or seen[-1] != changed or order == "independent":
                seen.append(changed)
                drawn.append({n: p.detach().clone() for n, p in now.items()})

    handle = network.register_forward_pre_hook(look)  # copied with the network
    try:
        steps = len(parts)
        found = randomisation(network, images(1, double=False), edges, order=order, steps=steps)
    finally:
        handle.remove()
    assert list(found.steps) == parts
    unique = [s for i, s in enumerate(seen) if i == 0 or s != seen[i - 1]]
    assert len(unique) == steps
    for k, changed in enumerate(unique):
        assert changed == (set(parts[: k + 1]) if order == "cascading" else {parts[k]})
    if order == "cascading":  # what is drawn once stays
        for n in ("head.weight", "head.bias"):
            assert all(torch.equal(drawn[0][n], later[n]) for later in drawn)


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_parts_are_drawn_in_as_many_steps_as_asked_for(steps: int) -> None:
    network = small()
    parts = [n for n, m in network.named_modules() if list(m.parameters(recurse=False))][::-1]
    found = randomisation(network, images(1, double=False), "grad_cam", steps=steps)
    assert len(found.steps) == min(steps, len(parts)) == len(found.similarity)
    assert found.steps[0].startswith(parts[0])
    assert found.steps[-1].endswith(parts[-1])


def test_weights_of_modules_without_a_start_of_their_own_are_drawn_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 1, 1)
            self.scale = nn.Parameter(torch.linspace(1, 2, 4))
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv(x).relu() * self.scale[:, None, None]).mean((2, 3)))

    network = Scaled().eval()
    before = network.scale.clone()
    found = randomisation(network, images(1, double=False), "grad_cam", steps=3)
    assert len(found.steps) == 3
    assert torch.equal(network.scale, before)


def test_the_network_comes_back_as_it_was() -> None:
    network = small().train()
    before = {n: t.clone() for n, t in network.state_dict().items()}
    network.head.weight.grad = torch.ones_like(network.head.weight)
    network.stage1.eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for run in (randomisation, stability):
        run(network, images(2, double=False), "grad_cam")
    random_class(konkyo.Model(network, classes="abcde"), images(2, double=False), "grad_cam")
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert not network.stage1.training
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    assert float(network.head.weight.grad.mean()) == 1
    assert network.stem[0].weight.grad is None
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_random_numbers_go_on_as_they_would_also_after_an_error() -> None:
    calls = []

    def breaking(inputs: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("broken")
        return inputs.sum(1)

    torch.manual_seed(3)
    state = torch.get_rng_state()
    error: Exception | None = None
    try:
        randomisation(small_of_seed(), images(1, double=False), made(breaking), steps=4)
    except RuntimeError as caught:
        error = caught  # as a debugger, or `pytest.raises`, keeps it
    assert error is not None
    assert torch.equal(torch.get_rng_state(), state)


def small_of_seed() -> nn.Module:
    with torch.random.fork_rng():
        return small()


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    network, batch = small(), images(2, double=False)
    one = randomisation(network, batch, "grad_cam", steps=3, seed=1)
    torch.rand(5)
    assert torch.equal(randomisation(network, batch, "grad_cam", steps=3, seed=1).similarity, one.similarity)
    assert not torch.equal(randomisation(network, batch, "grad_cam", steps=3, seed=2).similarity, one.similarity)


def test_what_is_explained_stays_what_the_network_as_it_is_decided() -> None:
    network, batch, asked = small(), images(2, double=False), []

    def noting(inputs: Tensor, targets: list[Target]) -> Tensor:
        asked.append([t.index for t in targets if isinstance(t, ClassTarget)])
        return inputs.sum(1)

    decided = network(batch).argmax(1).tolist()
    randomisation(network, batch, made(noting), steps=3)
    assert asked == [decided] * 4
    asked.clear()
    randomisation(network, batch, made(noting), steps=2, target=[1, 3])
    assert asked == [[1, 3]] * 3
    asked.clear()
    stability(network, batch, made(noting), samples=2)
    assert asked == [decided] * 3


def test_several_targets_of_one_image() -> None:
    found = randomisation(small(), images(1, double=False), "grad_cam", steps=2, target=konkyo.Each(0, 1, 2))
    assert found.similarity.shape == (2, 3)
    with pytest.raises(KonkyoError, match="one by one"):
        randomisation(small(), images(2, double=False), "grad_cam", target=konkyo.TopK(2))


@pytest.mark.parametrize("layer", ["stage2", "module"])
def test_settings_of_explain_are_passed_on(layer: str) -> None:
    network = small()
    where = network.stage2 if layer == "module" else layer
    found = randomisation(network, images(1, double=False), "grad_cam", steps=2, layer=where)
    assert found.similarity.shape == (2, 1)


def test_a_detector_explains_its_detections_again() -> None:
    found = randomisation(dense(), noise(), "odam", steps=2, target=konkyo.Detections(threshold=0.3, top=3))
    assert found.similarity.shape == (2, 3)


def test_images_in_which_a_detector_finds_nothing_have_no_rows() -> None:
    model = dense()
    two = noise(2)
    best = model(two)[..., 4:].amax((1, 2))
    between = float(best.detach().mean())
    with_detections = int((best > between).nonzero())
    target = konkyo.Detections(threshold=between, top=1)
    try:
        both = randomisation(model, two, "odam", steps=2, target=target)
    except KonkyoError:  # says that they are to be given one by one
        return
    alone = randomisation(model, two[with_detections][None], "odam", steps=2, target=target)
    assert both.similarity.shape == alone.similarity.shape == (2, 1)
    torch.testing.assert_close(both.similarity, alone.similarity, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_a_blank_map_is_no_proof_of_anything() -> None:
    """A method that gives the same constant map for any network does not depend on what the network has learnt."""
    try:
        found = randomisation(small(), images(2, double=False), constant, steps=2)
    except KonkyoError:
        return
    assert found.similarity.isnan().all()
    assert not found.passed, found.verdict


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"order": "random"}, "cascading"), ({"steps": 0}, "steps >= 1"), ({"method": "grad_cma"}, "grad_cam")],
)
def test_what_cannot_be_tested_is_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KonkyoError, match=said):
        randomisation(small(), images(1, double=False), **changes)


def test_networks_without_weights_or_decisions_are_refused() -> None:
    class Still(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(KonkyoError, match="without weights"):
        randomisation(Still(), images(1, double=False), edges)
    with pytest.raises(KonkyoError, match="decides on nothing"):
        randomisation(dense(), noise(), "odam", target=konkyo.Detections(threshold=0.999))


# --- random classes ---------------------------------------------------------------------------------------------------


def test_maps_of_the_class_pass_and_maps_of_none_fail(trained: konkyo.Model, pair: Tensor) -> None:
    found = {m: random_class(trained, pair, m) for m in ("grad_cam", "eigen_cam")}
    assert found["grad_cam"].passed, found["grad_cam"].verdict
    assert not found["eigen_cam"].passed
    assert found["eigen_cam"].similarity.shape == (5, 3)
    torch.testing.assert_close(found["eigen_cam"].similarity, torch.ones_like(found["eigen_cam"].similarity))
    assert "any class" in found["eigen_cam"].verdict
    assert len(found["grad_cam"].steps) == 5


def test_similarities_of_classes_are_those_of_maps_by_hand() -> None:
    model = konkyo.Model(small(), classes="abcde")
    batch, asked = images(2, double=False), []

    def noting(activations: Tensor, gradients: Tensor, targets: list[Target]) -> Tensor:
        asked.append([t.index for t in targets if isinstance(t, ClassTarget)])
        return (activations * gradients).sum(1)

    method = made(noting, layer=None)
    found = random_class(model, batch, method, others=3)
    decided, *others = list(asked)
    assert decided == model(batch).argmax(1).tolist()
    assert len(others) == 3
    usual = konkyo.explain(model, batch, method=method, target=decided).maps
    for k, classes in enumerate(others):
        assert all(a != b for a, b in zip(classes, decided, strict=True))
        maps = konkyo.explain(model, batch, method=method, target=classes).maps
        torch.testing.assert_close(found.similarity[k], rank_correlation(usual, maps))


def test_all_other_classes_are_asked_for_once_where_there_are_no_more() -> None:
    asked = []

    def noting(inputs: Tensor, targets: list[Target]) -> Tensor:
        asked.append([t.index for t in targets if isinstance(t, ClassTarget)])
        return inputs.sum(1)

    model = konkyo.Model(small(), classes="abcde")
    found = random_class(model, images(2, double=False), made(noting), others=20)
    assert len(found.steps) == 4
    for image in range(2):
        assert sorted(classes[image] for classes in asked) == [0, 1, 2, 3, 4]


def test_what_has_no_other_class_is_told() -> None:
    batch = images(2, double=False)
    with pytest.raises(KonkyoError, match="no class names"):
        random_class(small(), batch)
    with pytest.raises(KonkyoError, match="one class per image"):
        random_class(konkyo.Model(small(), classes="abcde"), batch[:1], target=konkyo.TopK(2))
    with pytest.raises(KonkyoError):
        random_class(dense(), noise(), "odam")
    with pytest.raises(KonkyoError):
        random_class(konkyo.Model(small(), classes="abcde"), batch, others=0)
    with pytest.raises(KonkyoError):
        random_class(konkyo.Model(small(classes=1), classes="a"), batch)


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_a_blank_map_does_not_depend_on_the_class() -> None:
    try:
        found = random_class(konkyo.Model(small(), classes="abcde"), images(2, double=False), constant)
    except KonkyoError:
        return
    assert not found.passed, found.verdict


# --- stability --------------------------------------------------------------------------------------------------------


def test_maps_that_do_not_change_have_no_band() -> None:
    """Grad-CAM draws nothing: with other seeds it is the same."""
    network, batch = small(), images(2, double=False)
    found = stability(network, batch, "grad_cam", over="seed", samples=3)
    usual = konkyo.explain(network, batch).unit()
    torch.testing.assert_close(found.mean, usual)
    assert float(found.deviation.abs().max()) < 1e-6
    assert found.similarity.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found.over == "seed"


def test_mean_band_and_likeness_by_hand() -> None:
    network, batch = small(), images(2, double=False)
    target = network(batch).argmax(1).tolist()
    found = stability(network, batch, "rise", over="seed", samples=3, seed=5, masks=10)
    maps = [konkyo.explain(network, batch, method="rise", target=target, seed=5 + k, masks=10).maps for k in range(3)]
    scaled = np.stack([[(m - m.min()) / (m.max() - m.min()) for m in part.numpy()] for part in maps])
    np.testing.assert_allclose(found.mean.numpy(), scaled.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.deviation.numpy(), scaled.std(0), atol=1e-5)
    for row in range(2):
        flat = scaled[:, row].reshape(3, -1)
        pairs = [np.corrcoef(flat[i], flat[j])[0, 1] for i in range(3) for j in range(i + 1, 3)]
        assert float(found.similarity[row]) == pytest.approx(np.mean(pairs), abs=1e-5)
    assert float(found.similarity.max()) < 1


def test_noise_is_of_the_images_range_and_of_the_seed() -> None:
    network, batch, came = small(), images(2, double=False), []

    def noting(inputs: Tensor) -> Tensor:
        came.append(inputs.clone())
        return inputs.sum(1)

    stability(network, batch, made(noting), samples=6, radius=0.1, seed=4)
    first, *noisy = came
    assert torch.equal(first, batch)
    assert len(noisy) == 6
    moved = torch.stack([n - batch for n in noisy])
    assert float(moved.std()) == pytest.approx(0.1 * float(batch.max() - batch.min()), rel=0.05)
    assert not torch.equal(noisy[0], noisy[1])
    came.clear()
    stability(network, batch, made(noting), samples=6, radius=0.1, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(came[1:], noisy, strict=True))


def test_a_mirror_image_has_the_mirrored_map() -> None:
    """A map that goes with the image goes with its mirror image: mirrored back it is the same."""
    network, batch = small(), images(2, double=False)
    found = stability(network, batch, edges, over="mirror")
    torch.testing.assert_close(found.similarity, torch.ones_like(found.similarity))
    assert float(found.deviation.max()) == pytest.approx(0, abs=1e-6)

    def ramp(inputs: Tensor) -> Tensor:
        return torch.arange(40.0).expand(len(inputs), 32, 40).clone()

    stays = stability(network, batch, made(ramp), over="mirror")
    assert stays.similarity.tolist() == pytest.approx([-1, -1], abs=1e-5)
    torch.testing.assert_close(stays.mean, torch.full_like(stays.mean, 0.5))


def test_layers_are_compared_on_the_finest_grid() -> None:
    network, batch = small(), images(1, double=False)
    found = stability(network, batch, "grad_cam", over="layer", layers=["stage1", "stage3"])
    grids = [konkyo.explain(network, batch, layer=name).unit() for name in ("stage1", "stage3")]
    large = torch.nn.functional.interpolate(grids[1][:, None], grids[0].shape[1:], mode="bilinear")[:, 0]
    assert found.mean.shape == grids[0].shape
    torch.testing.assert_close(found.mean, (grids[0] + large) / 2)


@pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")
def test_the_likeness_of_constant_maps_is_not_known() -> None:
    found = stability(small(), images(2, double=False), constant, samples=2)
    assert found.similarity.isnan().all()
    assert math.isfinite(float(found.deviation.max()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"over": "weather"}, "'weather'"),
        ({"over": "noise", "samples": 1}, "at least two"),
        ({"over": "seed", "samples": 0}, "at least two"),
        ({"over": "layer"}, "at least two"),
        ({"over": "layer", "layers": ["stage1"]}, "at least two"),
        ({"over": "layer", "layers": ["stage1", "stage9"]}, "stage"),
    ],
)
def test_what_cannot_be_compared_is_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(KonkyoError, match=said):
        stability(small(), images(1, double=False), **changes)


def test_noise_and_mirrors_are_of_prepared_images(trained: konkyo.Model) -> None:
    picture = Scenes(1, seed=901, size=128)[0].image
    for over in ("noise", "mirror"):
        with pytest.raises(KonkyoError, match="prepared tensor"):
            stability(trained, picture, over=over)  # type: ignore[arg-type]
    assert stability(trained, picture, over="seed", samples=2).similarity.shape == (1,)

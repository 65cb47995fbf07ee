"""Similarity to a reference: closed forms of the three kinds, and what `explain` makes of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

import konkyo
from helpers.closeness import close
from helpers.embedders import LINEAR, WithHead, dinov2, embedder, noise, vectors
from helpers.networks import seeded

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")  # of random weights some maps are all negative

KINDS = ("dot", "cosine", "distance")


def by_hand(kind: str, f: Tensor, g: Tensor, own: Tensor) -> Tensor:
    """The three formulas, for embeddings (N, D), a reference (D,) and the explained images' own embeddings."""
    if kind == "distance":
        return -(f - g).pow(2).sum(1).sqrt()
    length = own.pow(2).sum(1).sqrt() if kind == "dot" else f.pow(2).sum(1).sqrt()
    return f @ g / (length * g.pow(2).sum().sqrt())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LINEAR)
def test_maps_of_a_linear_embedding_have_a_closed_form(name: str, kind: str) -> None:
    """At the last ReLU f = mean A, so a map is dS/df . A / cells; it sums to S for the dot, to 0 for the cosine."""
    network, x, reference = embedder(name), noise(2, size=64), noise(1, size=64, seed=5)
    result = konkyo.explain(network, x, method="hires_cam", target=konkyo.Similarity(reference, kind))  # type: ignore[arg-type]
    f, g = vectors(network, x), vectors(network, reference)[0]
    leaf = f.clone().requires_grad_()
    score = by_hand(kind, leaf, g, f)
    (slope,) = torch.autograd.grad(score.sum(), leaf)
    close(result.scores, score.detach())
    torch.testing.assert_close(result.maps.sum((1, 2)).double(), (slope * f).sum(1), rtol=1e-5, atol=1e-7)
    expected = {"dot": score.detach(), "cosine": torch.zeros(2).double()}
    if kind in expected:
        torch.testing.assert_close(result.maps.sum((1, 2)).double(), expected[kind], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        grids = konkyo.Model(network)  # the network's own features, by a hook
        kept: list[Tensor] = []
        handle = dict(network.named_modules())[result.layer].register_forward_hook(lambda *a: kept.append(a[2]))
        grids(x)
        handle.remove()
    features = kept[0] if isinstance(kept[0], Tensor) else kept[0].last_hidden_state
    close(result.maps, (slope[:, :, None, None] * features / features[0, 0].numel()).sum(1))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_token_against_finite_differences(kind: str, registers: int) -> None:
    network, x, reference = seeded(dinov2(registers)), noise(1, size=56), noise(1, size=56, seed=5)
    target = konkyo.Similarity(reference, kind)  # type: ignore[arg-type]
    result = konkyo.explain(network, x, method="gradient", target=target)
    f, g = vectors(network, x), vectors(network, reference)[0]
    for row, column in ((10, 40), (31, 5)):
        moved = []
        for step in (1e-4, -1e-4):
            other = x.clone()
            other[0, :, row, column] += step
            moved.append(by_hand(kind, vectors(network, other), g, f))
        slope = float((moved[0] - moved[1]) / 2e-4)
        assert float(result.maps[0, row, column]) == pytest.approx(slope, rel=2e-3, abs=1e-7)
    close(result.scores.double(), by_hand(kind, f, g, f))


def test_a_map_does_not_depend_on_the_length_of_the_reference() -> None:
    network, x = embedder("torchvision"), noise(1, size=64)
    g = vectors(network, noise(1, size=64, seed=3))[0]
    one, other = (
        konkyo.explain(network, x, method="hires_cam", target=konkyo.Similarity(g * scale)) for scale in (1, 40)
    )
    close(one.maps, other.maps)
    assert float(one.maps.abs().sum()) > 0


def test_several_references_are_the_mean_of_their_directions() -> None:
    network, x = embedder("torchvision"), noise(1, size=64)
    references = noise(3, size=64, seed=7)
    g = normalize(vectors(network, references), dim=1).mean(0)
    result = konkyo.explain(network, x, method="hires_cam", target=konkyo.Similarity(list(references[:, None])))
    close(result.scores, by_hand("cosine", vectors(network, x), g, g[None]))
    close(result.scores, konkyo.explain(network, x, method="hires_cam", target=konkyo.Similarity(references)).scores)


def test_embeddings_are_tensors_arrays_or_lists() -> None:
    f, g = torch.randn(3, 5).double(), torch.randn(2, 5).double()
    for several in (g, g.numpy(), g.tolist(), list(g), list(g.numpy())):
        close(konkyo.Similarity(several, "cosine")(f), by_hand("cosine", f, normalize(g, dim=1).mean(0), f))
    for one in (g[0], g[0].numpy(), g[0].tolist()):
        close(konkyo.Similarity(one, "distance")(f), by_hand("distance", f, g[0], f))
    assert torch.equal(konkyo.Similarity(g)(f[..., None, None]), konkyo.Similarity(g)(f))  # grids of one cell


def test_a_triplet_is_the_difference_of_its_maps() -> None:
    network, x = embedder("torchvision"), noise(1, size=64)
    near, far = (konkyo.Similarity(noise(1, size=64, seed=seed)) for seed in (3, 4))
    parts = [konkyo.explain(network, x, method="hires_cam", target=target) for target in (near, far)]
    both = konkyo.explain(network, x, method="hires_cam", target=konkyo.ContrastTarget(near, far))
    close(both.maps, parts[0].maps - parts[1].maps)
    close(both.scores, parts[0].scores - parts[1].scores)


def test_a_threshold_makes_a_decision() -> None:
    from konkyo.explanation.words import score_in_words

    network, x = embedder("torchvision"), noise(1, size=64)
    cosine = float(konkyo.explain(network, x, target=konkyo.Similarity(noise(1, size=64, seed=3))).scores)
    for threshold, words in ((cosine - 0.01, "the same"), (cosine + 0.01, "another")):
        target = konkyo.Similarity(noise(1, size=64, seed=3), threshold=threshold)
        result = konkyo.explain(network, x, target=target)
        assert float(result.scores) == pytest.approx(cosine - threshold, abs=1e-5)
        assert f"{words} by the threshold" in score_in_words(result, 0)


def test_pictures_and_paths_are_prepared_as_the_model_wants(tmp_path: Path) -> None:
    picture = Image.effect_noise((40, 40), 60).convert("RGB")
    picture.save(tmp_path / "b.png")
    preprocess = konkyo.Preprocess(32, 32)
    model = konkyo.Model(seeded(WithHead()), preprocess, task=konkyo.EmbeddingTask())
    results = [
        konkyo.explain(model, noise(1, size=32), method="hires_cam", target=konkyo.Similarity(reference))
        for reference in (tmp_path / "b.png", str(tmp_path / "b.png"), picture, preprocess(picture)[None])
    ]
    assert results[0].labels == ("like b.png",)
    for other in results[1:]:
        close(other.maps, results[0].maps)


def test_targets_are_kept_in_files_and_pickles(tmp_path: Path) -> None:
    network, x = embedder("torchvision"), noise(2, size=64)
    result = konkyo.explain(network, x, target=konkyo.Similarity(noise(1, size=64, seed=3), name="b", threshold=0.5))
    loaded = konkyo.Explanation.load(result.save(tmp_path / "r.safetensors"))
    assert loaded.targets == result.targets
    assert loaded.labels == ("like b", "like b")
    (target, _) = result.targets
    assert pickle.loads(pickle.dumps(target)) == target
    assert hash(target) == hash(loaded.targets[0])
    close(target(konkyo.Model(network)(x[:1])), result.scores[:1])  # type: ignore[operator]


# --- prototypes: ArcFace, CosFace, galleries --------------------------------------------------------------------------


def gallery(names: tuple[str, ...] = ("Ada", "Grace", "Emmy")) -> tuple[nn.Module, Tensor, konkyo.Model]:
    network, weight = seeded(WithHead()), torch.randn(3, 5).double()
    return network, weight, konkyo.Model(network, classes=names, task=konkyo.EmbeddingTask(weight))


def test_a_prototype_is_the_cosine_without_margin_and_scale() -> None:
    network, weight, model = gallery()
    x = noise(4, size=32)
    cosines = normalize(vectors(network, x), dim=1) @ normalize(weight, dim=1).T
    decided = konkyo.explain(model, x, method="hires_cam")
    close(decided.scores, cosines.amax(1))
    assert decided.labels == tuple(f"like {model.classes[i]}" for i in cosines.argmax(1).tolist())
    for request in ("Grace", 1, konkyo.Similarity(weight[1])):
        close(konkyo.explain(model, x, method="hires_cam", target=request).scores, cosines[:, 1])
    contrast = konkyo.explain(model, x, method="hires_cam", target=konkyo.ContrastTarget("Ada", "Emmy"))
    close(contrast.scores, cosines[:, 0] - cosines[:, 2])


@pytest.mark.parametrize(
    ("request_", "message"),
    [("Marie", "Marie"), (3, r"prototype 3 of 3"), (1.5, "Similarity"), (konkyo.TopK(2), None)],
)
def test_prototypes_that_there_are_not(request_: object, message: str | None) -> None:
    _, _, model = gallery()
    if message is None:
        assert len(konkyo.explain(model, noise(1, size=32), target=request_)) == 2
        return
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.explain(model, noise(1, size=32), target=request_)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: konkyo.Similarity([1.0, 0.0], "near"), "kind of similarity"),  # type: ignore[arg-type]
        (lambda: konkyo.Similarity([0.0, 0.0]), "no direction"),
        (lambda: konkyo.Similarity([float("nan"), 0.0]), "not finite"),
        (lambda: konkyo.Similarity([1.0], threshold=float("inf")), "threshold"),
        (lambda: konkyo.Similarity([1.0, 0.0])(torch.ones(1, 3)), "embedding of 2 numbers"),
        (lambda: konkyo.Similarity([1.0, 0.0])(torch.ones(1, 3, 4, 4)), r"mean\(\(2, 3\)\)"),
        (lambda: konkyo.Similarity("b.jpg")(torch.ones(1, 3)), "not known yet"),
    ],
)
def test_what_is_no_similarity_is_refused(make: object, message: str) -> None:
    with pytest.raises(konkyo.KonkyoError, match=message):
        make()  # type: ignore[operator]

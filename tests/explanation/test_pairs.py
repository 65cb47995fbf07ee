"""Pairs: the matrix sums to the cosine, its sums are the maps, and what is not linear is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from helpers.closeness import close
from helpers.embedders import LINEAR, WithHead, dinov2, embedder, noise, vectors
from helpers.networks import seeded
from helpers.paths import DATA

pytestmark = pytest.mark.filterwarnings("ignore::konkyo.KonkyoWarning")


@pytest.mark.parametrize("name", [*LINEAR, "with a bias"])
def test_the_matrix_is_the_closed_form_and_sums_to_the_cosine(name: str) -> None:
    network = seeded(WithHead()) if name == "with a bias" else embedder(name)
    a, b = noise(1, size=64), noise(1, size=64, seed=4)
    result = konkyo.pair(network, a, b)
    assert result.matrix is not None
    f, g = vectors(network, a)[0].double(), vectors(network, b)[0].double()
    cosine = float(torch.cosine_similarity(f, g, dim=0))
    assert result.cosine == pytest.approx(cosine, abs=1e-6)
    assert float(result.matrix.double().sum()) == pytest.approx(cosine, abs=1e-5)
    assert result.missing < 1e-5
    kept: list[Tensor] = []
    handle = dict(network.named_modules())[result.matrix_layer].register_forward_hook(lambda *o: kept.append(o[2]))
    vectors(network, a), vectors(network, b)
    handle.remove()
    features = [o if isinstance(o, Tensor) else o.last_hidden_state for o in kept]
    u, v = (o[0].flatten(1).T.double() / o[0, 0].numel() for o in features)
    if name == "with a bias":
        assert isinstance(network, WithHead)
        weight, bias = network.project.weight.detach().double(), network.project.bias.detach().double()
        u, v = (part @ weight.T + bias / len(part) for part in (u, v))
    expected = u @ v.T / (f.norm() * g.norm())
    torch.testing.assert_close(result.matrix.flatten(2).flatten(0, 1).double(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", LINEAR)
def test_the_sums_of_the_matrix_are_the_maps(name: str) -> None:
    result = konkyo.pair(embedder(name), noise(1, size=64), noise(1, size=64, seed=4))
    assert result.matrix is not None
    close(result.matrix.sum((2, 3)), result.a.maps[0])
    close(result.matrix.sum((0, 1)), result.b.maps[0])


def test_an_image_with_itself_has_the_same_map_twice() -> None:
    x = noise(1, size=64)
    result = konkyo.pair(embedder("torchvision"), x, x)
    assert result.cosine == pytest.approx(1)
    assert torch.equal(result.a.maps, result.b.maps)
    assert result.matrix is not None
    torch.testing.assert_close(result.matrix, result.matrix.permute(2, 3, 0, 1))


def test_links_are_the_largest_entries_each_place_once() -> None:
    result = konkyo.pair(embedder("torchvision"), noise(1, size=128), noise(1, size=128, seed=4))
    assert result.matrix is not None
    links = result.links(5)
    assert links[0].value == pytest.approx(float(result.matrix.max()))
    assert len({link.a for link in links}) == len({link.b for link in links}) == 5
    assert [link.value for link in links] == sorted((link.value for link in links), reverse=True)
    first = links[0]
    row, column = int(first.a[1] / 32), int(first.a[0] / 32)
    close(result.counterpart(*first.a), result.matrix[row, column])
    assert float(result.counterpart(*first.a).max()) == pytest.approx(first.value)
    with pytest.raises(konkyo.KonkyoError, match="128 x 128"):
        result.counterpart(128, 0)


def test_a_class_token_has_maps_and_no_matrix() -> None:
    result = konkyo.pair(dinov2(), noise(1, size=56), noise(1, size=56, seed=4))
    assert result.matrix is None
    assert float(result.a.maps.abs().sum()) > 0
    with pytest.raises(konkyo.NotApplicable, match="linear from no layer"):
        result.links()


def test_the_mean_of_the_tokens_has_a_matrix() -> None:
    network = dinov2()
    model = konkyo.Model(network, select=lambda output: output.last_hidden_state[:, 1:].mean(1))
    result = konkyo.pair(model, noise(1, size=56), noise(1, size=56, seed=4), layer="layernorm")
    assert result.matrix is not None
    assert float(result.matrix.sum()) == pytest.approx(result.cosine, abs=1e-5)
    assert result.matrix.shape == (4, 4, 4, 4)


def test_pictures_of_pairs(tmp_path: Path) -> None:
    result = konkyo.pair(embedder("torchvision"), noise(1, size=64), noise(1, size=64, seed=4))
    lit = result.picture(tmp_path / "pair.png", links=2)
    with Image.open(tmp_path / "pair.png") as written:
        assert written.size == lit.size
    assert lit.tobytes() != result.picture().tobytes()
    assert result.counterpart_picture(3, 3).size[0] > 400


def test_more_than_two_images_are_no_pair() -> None:
    with pytest.raises(konkyo.KonkyoError, match="got 2 and 1"):
        konkyo.pair(embedder("torchvision"), noise(2, size=64), noise(1, size=64))


# --- siamese networks -------------------------------------------------------------------------------------------------


class Siamese(nn.Module):
    """The distance of two embeddings, weighted: one number for two images."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = WithHead(), nn.Linear(5, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        distance: Tensor = self.fc((self.body(first) - self.body(second)).pow(2))
        return distance[:, 0]


@pytest.mark.parametrize("explained", [0, 1, "first", "second"])
def test_one_image_of_two_is_explained_at_its_own_call(explained: int | str) -> None:
    network, x, other = seeded(Siamese()), noise(2, size=32), noise(1, size=32, seed=8)
    result = konkyo.explain(konkyo.siamese(network, other, explained=explained), x, method="hires_cam")
    first = explained in (0, "first")
    features = network.body.body(x).detach().requires_grad_()
    f = network.body.project(features.mean((2, 3)))
    g = network.body(other)
    score = network.fc((f - g).pow(2) if first else (g - f).pow(2))[:, 0]
    (slope,) = torch.autograd.grad(score.sum(), features)
    close(result.scores, score.detach())
    close(result.maps, (slope * features).sum(1).detach())
    assert result.layer == ("body.body#0" if first else "body.body")
    occluded = konkyo.explain(konkyo.siamese(network, other, explained=explained), x[:1], method="recipro_cam")
    grid = features[:1].detach()
    alone = torch.zeros_like(grid)
    alone[0, :, 2, 3] = grid[0, :, 2, 3]
    f = network.body.project(alone.mean((2, 3)))
    assert float(occluded.maps[0, 2, 3]) == pytest.approx(float(network.fc((f - g).pow(2))[0, 0].detach()), rel=1e-4)


def test_a_siamese_network_of_two_embeddings_and_of_classes() -> None:
    class Two(Siamese):
        def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return self.body(first), self.body(second)

    network, x, other = seeded(Two()), noise(2, size=32), noise(1, size=32, seed=8)
    model = konkyo.siamese(network, other, select=lambda pair: torch.cosine_similarity(*pair))
    cosines = torch.cosine_similarity(network.body(x), network.body(other))
    close(konkyo.explain(model, x, method="hires_cam").scores, cosines.detach())
    plain = konkyo.siamese(seeded(Siamese()), other, classes=("another", "same"), select=lambda o: o[:, None])
    assert konkyo.explain(plain, x, method="hires_cam", target="same").labels == ("same", "same")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"explained": "third"}, "first, second"),
        ({"explained": 2}, "0, 1"),
        ({"other": noise(2, size=32)}, "one prepared float tensor"),
        ({"other": Image.new("RGB", (32, 32))}, "preprocess="),
    ],
)
def test_what_is_no_siamese_network_is_refused(settings: dict[str, object], message: str) -> None:
    values = {"other": noise(1, size=32), **settings}
    with pytest.raises(konkyo.KonkyoError, match=message):
        konkyo.siamese(seeded(Siamese()), values.pop("other"), **values)  # type: ignore[arg-type]


# --- photographs ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="photographs and weights are not there")
def test_two_photographs_of_a_breed_are_alike_in_the_animals() -> None:
    """MobileNetV2 finds two cats more alike than a cat and a car, and a boxer and a bull mastiff alike in the dogs."""
    spec = importlib.util.spec_from_file_location("loader", DATA / "loaders" / "imagenet.py")
    assert spec is not None
    assert spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    network, *_ = loader.mobilenetv2()
    network.reset_classifier(0)
    model = konkyo.Model(network, konkyo.Preprocess(256, 224, (0.5,) * 3, (0.5,) * 3))
    files = {file.stem.partition("_")[2]: file for file in (DATA / "imagenet").glob("*.JPEG")}
    cats = konkyo.pair(model, files["tabby"], files["tiger_cat"])
    assert cats.cosine > 0.5 > konkyo.pair(model, files["tabby"], files["racer"]).cosine
    dogs = konkyo.pair(model, files["boxer"], files["bull_mastiff"])
    assert dogs.matrix is not None
    assert float(dogs.matrix.sum()) == pytest.approx(dogs.cosine, abs=1e-4)
    head = dogs.b.maps[0, 2:5, 2:5].sum() / dogs.b.maps[0].relu().sum()  # nine of 49 cells
    assert float(head) > 0.5


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["distance", "cosine"])
def test_sbsm_is_the_mean_fall_of_the_windows_that_cover_a_pixel(kind: Any) -> None:
    """Dong et al.: K_i = max(0, d(q, r without window i) - d(q, r)), averaged over the windows that cover the pixel."""
    network, x, query = seeded(WithHead()), noise(1, 32), noise(1, 32, seed=4)
    result = konkyo.explain(network, x, method="sbsm", target=konkyo.Similarity(query, kind), window=12, stride=10)
    g = vectors(network, query)[0]

    def near(image: Tensor) -> float:
        f = vectors(network, image)[0]
        return float(torch.cosine_similarity(f, g, dim=0) if kind == "cosine" else -(f - g).pow(2).sum().sqrt())

    total, count = torch.zeros(2, 32, 32, dtype=torch.double)
    for top in (0, 10, 20):
        for left in (0, 10, 20):
            hidden = x.clone()
            hidden[0, :, top : top + 12, left : left + 12] = 0
            total[top : top + 12, left : left + 12] += max(0.0, near(x) - near(hidden))
            count[top : top + 12, left : left + 12] += 1
    torch.testing.assert_close(result.maps[0].double(), total / count, rtol=1e-4, atol=1e-7)
    assert float(result.maps.amax()) > 0

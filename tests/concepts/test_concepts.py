"""factorise() and importance() on a network whose concepts are known: colours, of which the head ignores one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import konkyo
from konkyo import concepts
from konkyo.errors import KonkyoError

COLOURS = torch.tensor([[2.0, 1, 0, 0, 0, 0], [0, 0, 1, 3, 0, 0], [0, 0, 0, 0, 2, 2]])
"""What red, green and blue are to the layer."""


def network() -> nn.Sequential:
    """Red speaks for class 0, green for class 1, and blue for nothing."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    with torch.no_grad():
        net[0].weight.copy_(COLOURS.mT[:, :, None, None])
        net[4].weight.copy_(torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]))
        net[4].bias.zero_()
    return net.eval()


def model() -> konkyo.Model:
    return konkyo.Model(network(), classes=("stop", "go"))


def images(count: int = 6, side: int = 8) -> Tensor:
    """Every place has one colour of a strength of its own: red at the left, green in the middle, blue at the right."""
    strength = torch.rand(count, 1, side, side) + 0.1
    place = torch.arange(side) * 3 // side
    return strength * torch.nn.functional.one_hot(place, 3).mT[None, :, None, :]


def found(count: int = 6) -> tuple[concepts.Concepts, list[int]]:
    """The concepts, and which of them red, green and blue are."""
    result = concepts.factorise(model(), images(count), 3, layer="1")
    likeness = nn.functional.normalize(result.directions, dim=1) @ nn.functional.normalize(COLOURS, dim=1).mT
    return result, likeness.argmax(0).tolist()


def test_planted_concepts_are_found_with_their_places() -> None:
    result, order = found()
    assert sorted(order) == [0, 1, 2]
    assert result.error < 1e-3
    torch.testing.assert_close(result.decoded(), network()[:2](result.images), atol=5e-3, rtol=0)
    for colour, concept in enumerate(order):
        at = (torch.arange(8) * 3 // 8 == colour).float()
        inside = (result.maps[:, concept] * at).sum() / result.maps[:, concept].sum()
        assert float(inside) > 0.999
    assert result.maps.amax((0, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    assert result.energy.tolist() == sorted(result.energy.tolist(), reverse=True)
    assert float(result.energy.sum()) == pytest.approx(1)


def test_a_concept_is_called_what_the_head_makes_of_it() -> None:
    result, (red, green, _) = found()
    assert (result.labels[red], result.labels[green]) == ("stop", "go")


def test_a_concept_that_the_head_ignores_counts_nothing() -> None:
    result, (red, green, blue) = found()
    measured = result.importance("stop", designs=64)
    assert float(measured.values[red]) == pytest.approx(1, abs=0.1)
    assert float(measured.of_images[:, [green, blue]].abs().max()) < 1e-5
    assert measured.targets == ("stop",) * 6
    torch.testing.assert_close(measured.decoded, measured.scores, atol=0.01, rtol=0)


def test_importance_is_that_of_the_closed_form() -> None:
    """The score is a weighted sum of the amounts, so the shares are those of the weights' squares."""
    result, (red, green, _) = found(2)
    target = konkyo.ContrastTarget("stop", "go")
    measured = result.importance([target, target], designs=1024, seed=3)
    slopes = result.maps.flatten(2).mean(2) @ torch.diag(result.directions @ torch.tensor([1.0, 1, -1, -1, 0, 0]))
    expected = slopes.square() / slopes.square().sum(1, keepdim=True)
    torch.testing.assert_close(measured.of_images, expected, atol=0.05, rtol=0)
    assert float(measured.values[[red, green]].sum()) == pytest.approx(1, abs=0.1)


def test_every_image_is_asked_for_its_own_target_in_batches() -> None:
    result = concepts.factorise(model(), images(5), 3, layer="1", batch=2)
    names = ["stop", "go", "stop", "stop", "go"]
    measured = result.importance(names, designs=4)
    assert measured.targets == tuple(names)
    alone = [result.importance(name, designs=4).of_images[i] for i, name in enumerate(names)]
    torch.testing.assert_close(measured.of_images, torch.stack(alone))


def test_concepts_are_found_again_in_the_same_images_and_in_others() -> None:
    result, _ = found()
    again = result.of(result.images)
    torch.testing.assert_close(again.maps, result.maps, atol=5e-3, rtol=0)
    other = images(2, side=16)
    there = result.of(other)
    assert there.maps.shape == (2, 3, 16, 16)
    assert there.error < 1e-2
    torch.testing.assert_close(there.decoded(), network()[:2](other), atol=2e-2, rtol=0)


def test_taking_a_concept_out_takes_its_features() -> None:
    result, (red, _, _) = found()
    kept = torch.ones(3)
    kept[red] = 0
    features = result.decoded(kept)
    assert float(features[:, :2].abs().max()) < 1e-2
    torch.testing.assert_close(features[:, 2:], result.decoded()[:, 2:], atol=1e-2, rtol=0)


def test_signed_features_are_measured_from_their_least_value() -> None:
    net = network()
    shifted = nn.Sequential(net[0], nn.Identity(), Shift(), *net[2:])
    result = concepts.factorise(konkyo.Model(shifted), images(), 3, layer="2")
    torch.testing.assert_close(result.offset, torch.full((6,), -1.5))
    torch.testing.assert_close(result.decoded(), shifted[:3](result.images), atol=5e-3, rtol=0)


class Shift(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features - 1.5


def test_a_transformer_has_concepts_of_its_patches() -> None:
    result = concepts.factorise(konkyo.Model(Blocks().eval()), torch.rand(4, 3, 8, 8), 2, layer="blocks")
    assert result.maps.shape == (4, 2, 4, 4)
    assert len(result.importance(0, designs=4).values) == 2


class Blocks(nn.Module):
    """Tokens (N, 1 + 16, 6) with a class token, which is all that the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.blocks = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.last = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).mT
        tokens = self.blocks(torch.cat([self.token.expand(len(images), -1, -1), patches], 1))
        return self.head(self.last(tokens)[:, 0])


def test_concepts_can_be_looked_at(tmp_path: Path) -> None:
    result, _ = found()
    measured = result.importance("stop", designs=4)
    assert "3 with maps 8x8 in 6 images" in repr(result)
    assert "concept" in repr(measured)
    assert result.sheet(tmp_path / "sheet.png", images=[0, 3]).width > 300
    examples = result.examples(tmp_path / "examples.png", k=2, importance=measured, side=32)
    assert examples.size == (2 * 36 - 4, 3 * (32 + 24 + 4))
    assert (tmp_path / "examples.png").is_file()
    assert "<img" in result._repr_html_()
    strongest = result.strongest(0, 2)
    means = result.maps[:, 0].mean((1, 2))
    assert means[strongest].tolist() == sorted(means.tolist(), reverse=True)[:2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"components": 7}, "from 1 to 6"),
        ({"layer": ["0", "1"]}, "one layer"),
        ({"layer": "input"}, "colours"),
        ({"layer": "nope"}, "nope"),
    ],
)
def test_what_has_no_concepts_is_an_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(KonkyoError, match=message):
        concepts.factorise(model(), images(2), **{"components": 2, "layer": "1", **settings})  # type: ignore[arg-type]


def test_several_targets_of_an_image_are_an_error() -> None:
    result, _ = found(2)
    with pytest.raises(KonkyoError, match="one target per image"):
        result.importance(konkyo.TopK(2))

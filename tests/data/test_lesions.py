"""Drawn scans: what a lesion looks like is its class, where it lies is it or is not, and nothing else tells it."""

from __future__ import annotations

import math
import pickle
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from konkyo.data.samples import Sample, samples
from konkyo.data.sets import lesions as drawing
from konkyo.data.sets.lesions import CLASSES, Lesions
from konkyo.errors import KonkyoError


def grey(sample: Sample) -> Tensor:
    """(H, W), 0 to 1."""
    return torch.from_numpy(np.array(sample.image)[..., 0]).float() / 255


def middle(sample: Sample) -> tuple[float, float]:
    """The middle of the lesion; the unit is the picture's side."""
    x0, y0, x1, y1 = sample.annotations[0].box
    return (x0 + x1) / 2 / sample.image.width, (y0 + y1) / 2 / sample.image.height


def test_a_sample_is_grey_with_one_lesion_and_its_truth():
    for index, sample in enumerate(Lesions(30, seed=5, size=56)):
        assert (sample.image.mode, sample.image.size) == ("RGB", (56, 56))
        assert np.ptp(np.array(sample.image), axis=2).max() == 0
        (thing,) = sample.annotations
        assert sample.label == thing.label == CLASSES[index % 3]
        assert thing.mask is thing.evidence
        rows, columns = thing.mask.nonzero().T
        assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        radius = math.sqrt(float(thing.mask.sum()) / math.pi) / 56
        assert drawing._RADIUS[0] - 0.01 < radius < drawing._RADIUS[1] + 0.01


def test_seed_and_index_alone_decide_the_scan():
    first, longer = Lesions(6, seed=4), Lesions(60, seed=4)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for index in (3, 0, 5):
        assert first[index].image.tobytes() == longer[index].image.tobytes()
        assert torch.equal(first[index].annotations[0].mask, longer[index].annotations[0].mask)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert first[-1].name == first[5].name
    assert first[0].image.tobytes() != Lesions(6, seed=5)[0].image.tobytes()
    assert first[0].image.tobytes() != first[3].image.tobytes()
    assert pickle.loads(pickle.dumps(first))[2].image.tobytes() == first[2].image.tobytes()


@pytest.mark.parametrize("places", ["fixed", "random"])
def test_the_size_changes_the_resolution_and_nothing_else(places):
    for small, large in zip(Lesions(12, size=48, places=places), Lesions(12, size=96, places=places), strict=True):
        assert np.allclose(middle(small), middle(large), atol=1.1 / 48)
        halved = F.avg_pool2d(grey(large)[None], 2)[0]
        assert torch.corrcoef(torch.stack([grey(small).flatten(), halved.flatten()]))[0, 1] > 0.9


def test_fixed_and_random_places_differ_in_the_lesions_place_only():
    for one, other in zip(Lesions(24, seed=2), Lesions(24, seed=2, places="random"), strict=True):
        either = one.annotations[0].mask | other.annotations[0].mask
        elsewhere = ~F.max_pool2d(either[None].float(), 3, 1, 1)[0].bool()
        assert elsewhere.float().mean() > 0.5
        assert torch.equal(grey(one)[elsewhere], grey(other)[elsewhere])
        assert abs(int(one.annotations[0].mask.sum()) - int(other.annotations[0].mask.sum())) < 30


def test_a_fixed_place_is_the_class_and_a_random_one_is_not():
    for places in ("fixed", "random"):
        found = [(sample.label, *middle(sample)) for sample in Lesions(450, seed=1, places=places)]
        means = torch.tensor([[[x, y] for name, x, y in found if name == label] for label in CLASSES]).mean(1)
        nearest = torch.cdist(torch.tensor([[x, y] for _, x, y in found]), means).argmin(1)
        told = float((nearest == torch.tensor([CLASSES.index(name) for name, *_ in found])).float().mean())
        if places == "fixed":
            centres = {name: torch.tensor(at) + 0.5 for name, at in zip(CLASSES, drawing._CENTRES, strict=True)}
            away = torch.stack([torch.tensor([x, y]) - centres[name] for name, x, y in found]).abs().max()
            assert 3 / 48 < away < (4 + 1) / 48  # a pixel for the box's edges
            assert told > 0.95
        else:
            assert told < 0.43
            assert all(math.hypot(x - 0.5, y - 0.5) + drawing._RADIUS[0] < 0.55 for _, x, y in found)


def test_lesions_lie_in_the_body(monkeypatch):
    monkeypatch.setattr(drawing, "_NOISE", 0.0)
    for places in ("fixed", "random"):
        for sample in Lesions(60, seed=3, size=96, places=places):
            field, mask = grey(sample), sample.annotations[0].mask
            assert (field[mask] > 0.1).float().mean() > 0.99


@pytest.mark.parametrize("size", [48, 64])
def test_the_three_looks(size):
    """Against the definitions, pixel by pixel: a disc, a disc with a hole of 0.55, bars and gaps a fifth wide."""
    x, y, _ = drawing._grid(size)
    radius, exact = 0.16, 16
    fine = (np.arange(size * exact) + 0.5) / (size * exact) - 0.5
    distance = np.hypot(fine[None], fine[:, None])
    stripe = np.floor((np.broadcast_to(fine[None], distance.shape) + radius) / (2 * radius / 5)).astype(int) % 2 == 0
    looks = (distance <= radius, (distance <= radius) & (distance > 0.55 * radius), (distance <= radius) & stripe)
    for look, want in zip(drawing._LOOKS, looks, strict=True):
        averaged = want.reshape(size, exact, size, exact).mean((1, 3))
        found = np.broadcast_to(look(x, y, radius, size), (size, size))
        assert np.abs(found - averaged).max() < 0.3  # the ramp is not the area, at corners
        assert np.abs(found - averaged).mean() < 0.004
        assert found.sum() == pytest.approx(averaged.sum(), rel=0.02)


def test_neither_body_nor_distractors_tell_the_class(monkeypatch):
    """Without lesions, the means of the classes' pictures do not differ more than those of classes made up."""
    monkeypatch.setattr(drawing, "_LOOKS", (lambda u, v, _radius, _size: 0 * (u + v),) * 3)
    pictures = torch.stack([grey(sample).flatten() for sample in Lesions(300, seed=8)])
    means = pictures.view(100, 3, -1).mean(0)
    generator = torch.Generator().manual_seed(0)
    made_up = [pictures[torch.randperm(300, generator=generator)].view(100, 3, -1).mean(0) for _ in range(40)]
    assert means.var(0).sum() < max(float(each.var(0).sum()) for each in made_up)


def test_drawing_is_fast():
    data, times = Lesions(200), []
    for _ in range(3):
        start = time.process_time()
        for index in range(60):
            data[index]
        times.append((time.process_time() - start) / 60)
    assert min(times) < 0.004  # 0.9 ms on one core of 2026


def test_named_as_a_source():
    found = samples("lesions:7,places=random,size=64", seed=3)
    assert (len(found), found.classes, found.labels) == (7, CLASSES, ("disc", "ring", "stripes") * 2 + ("disc",))
    own = Lesions(7, seed=3, size=64, places="random")
    assert [sample.name for sample in own] == list(found.names)
    assert found[4].image.tobytes() == own[4].image.tobytes()
    assert len(samples("lesions")) == 600
    assert samples("lesions:5")[1].image.size == (48, 48)
    assert pickle.loads(pickle.dumps(found))[6].label == "disc"
    some = samples("lesions:50", limit=9)
    assert [sample.label for sample in some] == list(some.labels)


def test_mistakes_are_named():
    for source in ("lesions:many", "lesions:-1", "lesions:3,places=here", "lesions:3,size=big", "lesions:3,size="):
        with pytest.raises(KonkyoError, match="lesions:600,places=fixed,size=48"):
            samples(source)
    with pytest.raises(KonkyoError, match=r"'sizes'.*places, size"):
        samples("lesions:3,sizes=48")
    with pytest.raises(KonkyoError, match="32 to 1024"):
        samples("lesions:3,size=8")
    with pytest.raises(KonkyoError, match="fixed or random"):
        Lesions(3, places="here")
    with pytest.raises(KonkyoError, match="negative"):
        Lesions(3, seed=-1)
    with pytest.raises(IndexError):
        Lesions(3)[3]


# --- what a small network makes of them -------------------------------------------------------------------------------


class Small(nn.Module):
    """Four convolutions; class scores, and the features (N, 64, 6, 6) they are linear in."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer in ((1, 8), (8, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU(), nn.MaxPool2d(2)]
        self.features, self.head = nn.Sequential(*layers[:-1]), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.head(features.mean((2, 3))), features


def tensors(data: Lesions) -> tuple[Tensor, Tensor]:
    return torch.stack([2 * grey(s)[None] - 1 for s in data]), torch.tensor([CLASSES.index(s.label) for s in data])


@pytest.mark.parametrize("places", ["fixed", "random"])
def test_maps_have_a_place_per_class_where_lesions_have_one(places):
    """The share of the maps' variance that lies within classes: about 0.5 for fixed places, 0.95 for random ones."""
    (x, y), (unseen, truth) = tensors(Lesions(300, places=places)), tensors(Lesions(300, seed=1, places=places))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small()
        optimiser = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(12):
            for batch in torch.randperm(len(x)).split(32):
                optimiser.zero_grad()
                F.cross_entropy(net(x[batch])[0], y[batch]).backward()
                optimiser.step()
    with torch.no_grad():
        scores, features = net.eval()(unseen)
        maps = torch.einsum("nchw,nc->nhw", features, net.head.weight[truth]).relu()
    maps = (maps - maps.amin((1, 2), True)) / (maps.amax((1, 2), True) - maps.amin((1, 2), True) + 1e-8)
    right = scores.argmax(1) == truth
    assert right.float().mean() > (0.9 if places == "fixed" else 0.6)
    groups = [maps[right & (truth == label)].flatten(1) for label in range(3)]
    within = sum(len(group) * group.var(0).mean() for group in groups) / int(right.sum())
    share = float(within / torch.cat(groups).var(0).mean())
    assert share < 0.6 if places == "fixed" else share > 0.85

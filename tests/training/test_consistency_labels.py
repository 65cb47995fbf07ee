"""The loss of gaze consistency on every kind of labels, with single samples, and without gradients."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from konkyo import KonkyoError, KonkyoWarning
from konkyo.training import ClassBalancedSampler
from konkyo.training.losses.consistency import ConsistencyLoss
from konkyo.training.maps import Mode

SHAPE, K = (3, 20, 24), 3


class Net(nn.Module):
    """Two convolutions, a head of pooling and one linear layer, or one with a hidden layer; one logit may be flat."""

    def __init__(self, classes: int, *, deep: bool = False, flat: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.flat = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 8, 3, 2, 1), flat
        self.relu = nn.ReLU()
        self.head: nn.Module = nn.Linear(8, classes)
        if deep:
            self.head = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.relu(self.conv2(self.conv1(x).tanh())).mean((2, 3)))
        return logits[:, 0] if self.flat else logits


def network(classes: int = K, **options: bool) -> nn.Module:
    torch.manual_seed(5)
    net = Net(classes, **options)
    x = images()
    with torch.no_grad():  # so that every class is decided for now and then
        head = net.head[-1] if isinstance(net.head, nn.Sequential) else net.head
        logits = net(x).reshape(len(x), -1)
        head.weight.mul_(30)
        head.bias.copy_(-(logits - head.bias).mean(0) * 30)
    return net.double()


def images(seed: int = 0, count: int = 18) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def watching(net: nn.Module, **options: object) -> ConsistencyLoss:
    gaze = ConsistencyLoss(net, SHAPE, layer="relu", **options)  # type: ignore[arg-type]
    return gaze.double()


def gradients(value: Tensor, net: nn.Module) -> list[Tensor]:
    weights = list(net.parameters())
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


class Literal:
    """The loss sample by sample: which (image, class) are samples, which are correct, and the score of a class, are
    given as functions; the running maps as in the paper, but for a single sample that begins one."""

    def __init__(self, aim: str = "ema", least: int = 2) -> None:
        self.aim, self.least, self.running = aim, least, dict[int, Tensor]()
        self.used = self.skipped = 0

    def __call__(self, net: nn.Module, x: Tensor, samples: list[tuple[int, int]], score: object) -> Tensor:
        kept: list[Tensor] = []
        handle = net.get_submodule("relu").register_forward_hook(lambda _m, _a, output: kept.append(output))
        logits = net(x)
        handle.remove()
        grid = kept[0]
        self.used = self.skipped = 0
        total = torch.zeros((), dtype=x.dtype)
        for c in sorted({c for _, c in samples}):
            cams = []
            for i in (i for i, of in samples if of == c):
                (slope,) = torch.autograd.grad(score(logits[i], c), grid, create_graph=True)  # type: ignore[operator]
                cam = (slope[i].mean((1, 2))[:, None, None] * grid[i]).sum(0).relu()
                if cam.max() > cam.min():
                    cams.append((cam - cam.min()) / (cam.max() - cam.min()))
            if len(cams) < self.least:
                self.skipped += bool(cams)
                continue
            mean, before = torch.stack(cams).mean(0).detach(), self.running.get(c)
            self.running[c] = mean if before is None else 0.9 * before + 0.1 * mean
            if len(cams) == 1 and before is None:
                self.skipped += 1
                continue
            aim = self.running[c] if self.aim == "ema" else mean
            for cam in cams:
                total = total + ((cam - aim) ** 2).mean()
                self.used += 1
        return total / max(1, self.used)


def follow(
    net: nn.Module,
    gaze: ConsistencyLoss,
    literal: Literal,
    make: object,
    score: object,
    steps: int = 3,
    count: int = 18,
) -> list[int]:
    """Trains for a few steps and compares each; `make(logits, seed)` -> (labels, samples). -> how many were used."""
    counted = []
    for step in range(steps):
        x = images(step, count).double()
        labels, samples = make(net(x).detach(), step)  # type: ignore[operator]
        expected = literal(net, x, samples, score)
        theirs = gradients(expected, net) if expected.requires_grad else None
        logits = net(x)
        found = gaze(logits, labels)
        mine = gradients(found + 0 * logits.sum(), net)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        for one, other in zip(mine, theirs or [torch.zeros_like(p) for p in net.parameters()], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        assert (int(gaze.watched.used), int(gaze.watched.skipped)) == (literal.used, literal.skipped)
        assert gaze.seen.nonzero()[:, 0].tolist() == sorted(literal.running)
        counted.append(literal.used)
        with torch.no_grad():
            for weight, slope in zip(net.parameters(), mine, strict=True):
                weight -= 0.2 * slope
    return counted


def usual(logits: Tensor, c: int) -> Tensor:
    return logits[c]


def indices(logits: Tensor, seed: int) -> Tensor:
    labels = logits.argmax(1)
    labels[seed::5] = (labels[seed::5] + 1) % K
    return labels


def correct(logits: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    decided = logits.argmax(1).tolist()
    return [(i, c) for i, c in enumerate(labels.tolist()) if c == decided[i]]


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_images_that_are_ignored_are_left_out(deep: bool) -> None:
    def make(logits: Tensor, seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
        labels = indices(logits, seed)
        labels[1::4] = -100
        return labels, correct(logits, labels)

    net = network(deep=deep)
    assert min(follow(net, watching(net), Literal(), make, usual)) >= 5
    nothing = watching(net)
    assert float(nothing(net(images().double()), torch.full((18,), -100)).detach()) == 0


def test_of_soft_labels_the_largest_share_counts() -> None:
    def smooth(logits: Tensor, seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
        labels = indices(logits, seed)
        return nn.functional.one_hot(labels, K) * 0.9 + 0.1 / K, correct(logits, labels)

    def mixed(logits: Tensor, seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
        labels, others = indices(logits, seed), indices(logits, seed + 1).flip(0)
        soft = 0.7 * nn.functional.one_hot(labels, K) + 0.3 * nn.functional.one_hot(others, K)
        soft[2] = 0  # says nothing
        return soft, [(i, c) for i, c in correct(logits, labels) if i != 2]

    for make in (smooth, mixed):
        net = network()
        assert min(follow(net, watching(net), Literal(), make, usual)) >= 5


@pytest.mark.parametrize("mode", ["closed_form", "autograd"])
def test_multi_label(mode: Mode) -> None:
    def make(logits: Tensor, seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
        draw = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed))
        labels = (draw < 0.6).double()
        if seed == 1:
            labels[labels == 0] = -1  # as some data sets mark what is not known
        positive = [(i, c) for i in range(len(labels)) for c in range(K) if labels[i, c] == 1]
        return labels, [(i, c) for i, c in positive if 1 / (1 + float((-logits[i, c]).exp())) > 0.5]

    net = network(deep=mode == "autograd")
    assert min(follow(net, watching(net, mode=mode, multi_label=True), Literal(), make, usual)) >= 5
    gaze = watching(net, mode=mode, multi_label=True)
    loss = gaze(net(images().double()), torch.zeros(18, K))
    assert float(loss.detach()) == 0
    loss.backward()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["int", "float", "column"])
def test_one_logit(flat: bool, kind: str) -> None:
    def make(logits: Tensor, seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
        labels = (logits.reshape(-1) > 0).long()
        labels[seed::5] = 1 - labels[seed::5]
        samples = [(i, c) for i, c in enumerate(labels.tolist()) if c == int(logits.reshape(-1)[i] > 0) and i != 3]
        labels[3] = -100
        return {"int": labels, "float": labels.double(), "column": labels.double()[:, None]}[kind], samples

    def score(logit: Tensor, c: int) -> Tensor:
        return logit.sum() * (1 if c else -1)

    net = network(1, flat=flat)
    gaze = watching(net)
    assert gaze.means.shape[0] == 2
    assert min(follow(net, gaze, Literal(), make, score)) >= 5


def test_one_logit_as_multi_label_is_about_what_is_there() -> None:
    net = network(1)
    gaze = watching(net, multi_label=True)
    logits = net(images().double())
    gaze(logits, torch.ones(18, 1))
    assert int(gaze.watched.used) == int((logits > 0).sum()) > 2
    assert gaze.seen.tolist() == [False, True]


def test_other_labels_are_told_what_is_expected() -> None:
    net = network()
    gaze, several = watching(net), watching(net, multi_label=True)
    for loss, labels, words in (
        (gaze, torch.zeros(18, K, dtype=torch.int64), "multi_label=True"),
        (gaze, torch.zeros(18), r"got \(18,\) torch.float32"),
        (gaze, torch.zeros(18, 5), r"shares of the classes \(18, 3\); got \(18, 5\)"),
        (gaze, torch.zeros(4, dtype=torch.int64), "a label of each of 18 images"),
        (gaze, torch.full((18,), -1), "labels from 0 to 2 were expected, or -100; got -1 to -1"),
        (several, torch.zeros(18, dtype=torch.int64), "zeros and ones for every class"),
    ):
        with pytest.raises(KonkyoError, match=words):
            loss(net(images().double()), labels)


# --- single samples ---------------------------------------------------------------------------------------------------


def test_single_samples_have_the_running_map_as_aim() -> None:
    def make(logits: Tensor, _seed: int) -> tuple[Tensor, list[tuple[int, int]]]:
        labels = logits.argmax(1)
        return labels, correct(logits, labels)

    net = network()
    used = follow(net, watching(net, least=1), Literal(least=1), make, usual, steps=6, count=2)
    assert used[0] < 2  # a class's first single map is its running map
    assert sum(used) >= 6
    net = network()
    alone = follow(net, watching(net, least=1), Literal(least=1), make, usual, steps=8, count=1)
    assert alone[0] == 0
    assert 3 <= sum(alone) <= 7
    with pytest.raises(KonkyoError, match=r"least >= 2 \(1 needs aim 'ema'"):
        watching(net, least=1, aim="batch")
    with pytest.raises(KonkyoError, match=r"least >= 1 were expected; got 0\.9 and 0"):
        watching(net, least=0)


def test_a_loss_that_does_nothing_is_told_once() -> None:
    net = network()
    batches = [images(seed, 1).double() for seed in range(110)]

    def steps(gaze: ConsistencyLoss) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for x in batches * 2:
                logits = net(x)
                gaze(logits, logits.argmax(1))
        gaze.close()
        return [str(w.message) for w in caught if issubclass(w.category, KonkyoWarning)]

    (message,) = steps(watching(net))
    assert "0 of 100 correctly classified samples of the last 100 batches" in message
    assert "least=1, konkyo.training.ClassBalancedSampler, larger batches" in message
    assert steps(watching(net, least=1)) == []
    batches = [images(seed, 12).double() for seed in range(60)]
    assert steps(watching(net)) == []
    (message,) = steps(watching(net, least=12, aim="batch"))
    assert "least=1," not in message


# --- without gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients_it_is_the_number_of_evaluation(deep: bool, context: type, training: bool) -> None:
    net = network(deep=deep)
    gaze = watching(net)
    for seed in range(2):
        logits = net(images(seed).double())
        gaze(logits, logits.argmax(1))
    before = copy.deepcopy(gaze.state_dict())
    x = images(7).double()
    labels = indices(net(x).detach(), 0)
    expected = gaze.eval()(net(x), labels)
    assert expected.requires_grad
    assert float(expected.detach()) > 0.001
    gaze.train(training)  # a loop may forget that the loss is a module, too
    with context():
        found = gaze(net(x), labels)
    assert not found.requires_grad
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in gaze.state_dict().items())
    gaze.train()
    loss = gaze(net(x), labels)  # and training goes on
    assert loss.requires_grad
    assert not torch.equal(gaze.means, before["means"])


# --- batches with several images of each class ------------------------------------------------------------------------


def test_balanced_batches() -> None:
    labels = [0] * 40 + [1] * 7 + [2] * 3 + [5] * 14
    sampler = ClassBalancedSampler(labels, classes=2, images=4, seed=3)
    first, second = list(sampler), list(sampler)
    assert len(first) == len(sampler) == 8
    for batch in first + second:
        counts = Counter(labels[i] for i in batch)
        assert len(counts) == 2
        assert all(n == min(4, labels.count(c)) for c, n in counts.items())
        assert len(set(batch)) == len(batch)
    assert first != second
    classes = Counter(c for batch in first for c in {labels[i] for i in batch})
    assert set(classes.values()) == {4}  # 16 turns of four classes
    rare = [i for batch in first for i in batch if labels[i] == 1]
    for start in range(0, len(rare) - 6, 7):
        assert set(rare[start : start + 7]) == set(range(40, 47))  # all come before one comes again
    again = ClassBalancedSampler(torch.tensor(labels), classes=2, images=4, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(ClassBalancedSampler(labels, 2, 4, seed=4)) != first
    data = torch.utils.data.TensorDataset(torch.arange(64), torch.tensor(labels))
    loader = torch.utils.data.DataLoader(data, batch_sampler=ClassBalancedSampler(labels, 3, 2))
    assert [len(x) for x, _ in itertools.islice(loader, 3)] == [6, 6, 6]
    for options in ({"classes": 5, "images": 2}, {"classes": 0, "images": 2}, {"classes": 2, "images": 0}):
        with pytest.raises(KonkyoError, match="1 to 4 classes of a batch"):
            ClassBalancedSampler(labels, **options)
    with pytest.raises(KonkyoError, match="class indices"):
        ClassBalancedSampler(torch.zeros(4, 2), 1, 1)

"""The loss of gaze consistency: its equations word for word, and whatever a training loop may do with it."""

from __future__ import annotations

import copy
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel

from konkyo import KonkyoError
from konkyo.metrics.distances import Distance
from konkyo.training.losses.consistency import LOSSES, Aim, ConsistencyLoss, LambdaSchedule
from konkyo.training.maps import Mode

SHAPE, K = (3, 20, 24), 3


class Net(nn.Module):
    """Two convolutions with or without batch norm, dropout or not, and one of two heads."""

    def __init__(self, *, norm: bool = True, drop: float = 0.0, deep: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(drop)
        self.head: nn.Module = nn.Linear(8, K)
        if deep:
            self.head = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, K))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv2(self.conv1(x).tanh())))
        return self.head(self.drop(x.mean((2, 3))))


def network(*, double: bool = True, **options: bool | float) -> nn.Module:
    torch.manual_seed(5)
    net = Net(**options)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.startswith("head") and weight.ndim == 2:
                weight.mul_(6).sub_(weight.mean(0))  # so that each class is decided for now and then
            elif name.startswith("head"):
                weight.zero_()
    return net.double() if double else net


def batch(net: nn.Module, seed: int = 0, count: int = 18, *, double: bool = True) -> tuple[Tensor, Tensor]:
    """Images, and labels of which most are what the network says."""
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    x = x.double() if double else x
    with torch.no_grad():
        labels = copy.deepcopy(net)(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % K
    return x, labels


def watching(net: nn.Module, **options: object) -> ConsistencyLoss:
    gaze = ConsistencyLoss(net, SHAPE, **options)  # type: ignore[arg-type]
    return gaze.to(next(net.parameters()).dtype)


def gradients(value: Tensor, net: nn.Module) -> list[Tensor]:
    weights = list(net.parameters())
    found = torch.autograd.grad(value, weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


# --- Eq. 1, 2 and 12-17, word for word --------------------------------------------------------------------------------


def _centred(one: Tensor, other: Tensor) -> Tensor:
    return cosine(one - one.sum() / one.numel(), other - other.sum() / other.numel())


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return 1 - (one * other).sum() / ((one * one).sum().sqrt() * (other * other).sum().sqrt())


def jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    p, q = (one / one.sum()).flatten(), (other / other.sum()).flatten()
    total = torch.zeros((), dtype=p.dtype)
    for a, b in zip(p, q, strict=True):
        middle = (a + b) / 2
        for value in (a, b):
            if value > 0:
                total = total + value * torch.log2(value / middle) / 2
    return total


DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda one, other: ((one - other) ** 2).sum() / one.numel(),
    "l2_over_hw": lambda one, other: ((one - other) ** 2).sum().sqrt() / one.numel(),
    "pearson": _centred,
    "cosine": cosine,
    "js": jensen_shannon,
}


class Literal:
    """What the study's thesis says, class by class and image by image; a gradient per class, as in its code."""

    def __init__(self, distance: str, aim: str, *, ema: float = 0.9, least: int = 2, graph: bool = True) -> None:
        self.distance, self.aim, self.ema, self.least, self.graph = DISTANCE[distance], aim, ema, least, graph
        self.running: dict[int, Tensor] = {}
        self.skipped = self.used = self.blank = 0

    def __call__(self, net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            kept.append(output)
            return output

        handle = net.get_submodule("relu").register_forward_hook(keep)
        logits = net(x)
        handle.remove()
        (activations,) = kept
        height, width = activations.shape[2:]
        decided, total = logits.argmax(1), torch.zeros((), dtype=x.dtype)
        self.skipped = self.used = self.blank = 0
        for c in range(K):  # (12) B_c, (13) its correctly classified samples
            correct = [i for i in range(len(x)) if int(labels[i]) == c == int(decided[i])]
            if not correct:
                continue
            score = logits[correct, c].sum()
            (gradient,) = torch.autograd.grad(score, activations, create_graph=self.graph, retain_graph=True)
            cams = []
            for i in correct:
                cam = torch.zeros(height, width, dtype=x.dtype)
                for k in range(activations.shape[1]):  # (1)
                    cam = cam + gradient[i, k].sum() / (height * width) * activations[i, k]
                cam = cam.relu()
                if cam.max() == cam.min():
                    self.blank += 1
                    continue
                cams.append((cam - cam.min()) / (cam.max() - cam.min()))  # (2)
            if len(cams) < self.least:
                self.skipped += bool(cams)
                continue
            mean = sum(cam.detach() for cam in cams) / len(cams)  # (14)
            assert isinstance(mean, Tensor)
            # (17), the first observation as it is; updated first, then used
            before = self.running.get(c)
            self.running[c] = mean if before is None else self.ema * before + (1 - self.ema) * mean
            target = self.running[c] if self.aim == "ema" else mean
            for cam in cams:  # (15), (16)
                total = total + self.distance(cam, target)
                self.used += 1
        return total / self.used if self.used else total


def follow(
    net: nn.Module, gaze: ConsistencyLoss, literal: Literal, steps: int = 4, least_used: int = 8
) -> list[tuple[int, int]]:
    """Trains for a few steps and compares each; -> samples used and classes skipped of every step."""
    counted = []
    for step in range(steps):
        x, labels = batch(net, seed=step)
        if step == 2:
            labels[labels == 1] = 2  # class 1 has no correct sample here: its running map must stay
        state = copy.deepcopy(net.state_dict())
        expected = literal(net, x, labels)
        theirs = gradients(expected, net)
        net.load_state_dict(state)
        logits = net(x)
        found = gaze(logits, labels)
        mine = gradients(found + 0 * logits.sum(), net)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert max(float(g.abs().amax()) for g in mine) > 1e-6
        for gradient, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-9)
        watched = gaze.watched
        assert (int(watched.used), int(watched.skipped), int(watched.blank)) == (
            *(literal.used, literal.skipped, literal.blank),
        )
        counted.append((literal.used, literal.skipped))
        if gaze.aim == "ema":
            assert gaze.seen.nonzero()[:, 0].tolist() == sorted(literal.running)
            for c, running in literal.running.items():
                torch.testing.assert_close(gaze.means[c], running, rtol=1e-9, atol=1e-12)
        else:
            assert not gaze.seen.any()
        with torch.no_grad():
            for weight, gradient in zip(net.parameters(), mine, strict=True):
                weight -= 0.2 * gradient
    assert max(used for used, _ in counted) >= least_used
    return counted


@pytest.mark.parametrize("distance", LOSSES)
@pytest.mark.parametrize("aim", ["ema", "batch"])
def test_every_distance_and_aim_is_the_literal_one(distance: Distance, aim: Aim) -> None:
    net = network()
    follow(net, watching(net, distance=distance, aim=aim), Literal(distance, aim))


@pytest.mark.parametrize("mode", ["closed_form", "autograd", "detached"])
def test_every_mode_is_the_literal_one(mode: Mode) -> None:
    net = network()
    follow(net, watching(net, mode=mode), Literal("mse", "ema", graph=mode != "detached"))


@pytest.mark.parametrize("mode", ["auto", "detached"])
def test_a_deep_head_with_dropout_is_the_literal_one(mode: Mode) -> None:
    net = network(deep=True).eval()
    gaze = watching(net, mode=mode)
    assert gaze.maps.mode == ("autograd" if mode == "auto" else mode)
    follow(net, gaze, Literal("mse", "ema", graph=mode == "auto"))


def test_ema_and_least_are_the_literal_ones() -> None:
    net = network()
    counted = follow(net, watching(net, ema=0.5, least=5), Literal("mse", "ema", ema=0.5, least=5))
    assert any(skipped for _, skipped in counted)


def test_equal_maps_have_no_distance_and_no_broken_gradient() -> None:
    net = network(norm=False)
    x, _ = batch(net)
    x = x[:1].expand(4, -1, -1, -1)
    for distance in LOSSES:
        gaze = watching(net, distance=distance)
        logits = net(x)
        loss = gaze(logits, logits.argmax(1))
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        assert all(g.isfinite().all() for g in gradients(loss, net)), distance
        gaze.close()


# --- the running maps -------------------------------------------------------------------------------------------------


def test_running_maps_are_kept_as_buffers_and_go_on_where_they_were() -> None:
    net = network()
    gaze = watching(net)
    names = set(net.state_dict())
    assert list(gaze.parameters()) == []
    assert list(gaze.state_dict()) == ["means", "seen"]
    values, saved = [], dict[str, Tensor]()
    for step in range(4):
        if step == 2:
            saved = copy.deepcopy(gaze.state_dict())
        x, labels = batch(net, seed=step)
        values.append(gaze(net(x), labels).detach())
    assert set(net.state_dict()) == names
    fresh = watching(network())
    assert fresh.load_state_dict(saved)
    for step in (2, 3):
        x, labels = batch(net, seed=step)
        torch.testing.assert_close(fresh(fresh.maps.network(x), labels), values[step], rtol=1e-12, atol=0)
    for name, value in gaze.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=1e-12, atol=0)
    other = watching(network())
    assert (other(other.maps.network(x), labels) - values[3]).abs() > 1e-4  # those maps do matter


def test_evaluation_uses_running_maps_and_leaves_them() -> None:
    net = network()
    gaze = watching(net)
    x, labels = batch(net)
    gaze.eval()
    loss = gaze(net(x), labels)
    assert float(loss.detach()) == 0  # no class has a map yet
    assert int(gaze.watched.skipped) == len(labels[net(x).argmax(1) == labels].unique())
    assert not gaze.seen.any()
    gaze.train()
    gaze(net(x), labels)
    before = copy.deepcopy(gaze.state_dict())
    gaze.eval()
    other, others = batch(net, seed=1)
    loss = gaze(net(other), others)
    assert float(loss.detach()) > 0.01
    assert all(torch.equal(value, before[name]) for name, value in gaze.state_dict().items())
    torch.testing.assert_close(loss, gaze(net(other), others))
    gaze.train()
    assert (gaze(net(other), others) - loss).abs() > 1e-5  # here the batch is a tenth of the aim


def test_a_gradient_may_be_accumulated_over_batches() -> None:
    net = network(norm=False)
    gaze = watching(net)
    each: list[Tensor] = []
    losses = []
    for step in range(3):
        x, labels = batch(net, seed=step)
        losses.append(gaze(net(x), labels))
    together = gradients(torch.stack(losses).sum(), net)
    again = watching(net)
    for step in range(3):
        x, labels = batch(net, seed=step)
        found = gradients(again(net(x), labels), net)
        each = found if not each else [a + b for a, b in zip(each, found, strict=True)]
    for gradient, other in zip(together, each, strict=True):
        torch.testing.assert_close(gradient, other)


def test_images_of_another_size_are_put_on_the_first_grid() -> None:
    net = network(norm=False)
    gaze = watching(net)
    x, labels = batch(net)
    gaze(net(x), labels)
    larger = nn.functional.interpolate(x, (40, 48), mode="bilinear", align_corners=False)
    logits = net(larger)
    loss = gaze(logits, logits.argmax(1))
    assert int(gaze.watched.used) == len(x)
    assert 0 < float(loss.detach()) < 0.3


# --- what is left out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", LOSSES)
@pytest.mark.parametrize("mode", ["closed_form", "autograd"])
def test_blank_maps_are_counted_and_not_scored(distance: Distance, mode: Mode) -> None:
    net = network()
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(-head.weight.abs())
    gaze = watching(net, distance=distance, mode=mode)
    x, labels = batch(net, count=20)
    logits = net(x)
    loss = gaze(logits, labels)
    watched = gaze.watched
    assert (float(loss.detach()), int(watched.used), int(watched.blank)) == (0, 0, 16)
    assert not gaze.seen.any()
    assert all(not g.any() for g in gradients(loss, net))


def test_some_blank_maps_leave_the_others_as_they_are() -> None:
    net = network(norm=False)
    x, labels = batch(net, count=12)
    labels = net(x).argmax(1)
    black = torch.cat([x, torch.zeros_like(x[:2])])  # the same everywhere, but for the border
    with torch.no_grad():
        for conv in (net.get_submodule("conv1"), net.get_submodule("conv2")):
            conv.bias.zero_()  # type: ignore[union-attr,operator]
    labels = net(black).argmax(1)
    one, other = watching(net), watching(net)
    expected = one(net(black[:12]), labels[:12])
    one.close()
    logits = net(black)
    found = other(logits, labels)
    torch.testing.assert_close(found, expected)
    assert int(other.watched.blank) == 2
    for mine, theirs in zip(gradients(found, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_numbers_that_are_none_do_not_reach_the_running_maps() -> None:
    """As a step in half precision may make them, which the gradient scaler then leaves out."""
    net = network(norm=False)
    gaze = watching(net)
    x, labels = batch(net)
    gaze(net(x), labels)
    x[0, 0, 0, 0] = math.nan
    logits = net(x)
    assert logits[0].isnan().all()
    labels[0] = int(logits[0].argmax())  # "correct"
    loss = gaze(logits, labels)
    assert loss.isfinite()
    assert gaze.means.isfinite().all()
    assert int(gaze.watched.blank) == 1


def test_a_batch_without_a_correct_sample_is_zero_with_a_gradient() -> None:
    net = network()
    gaze = watching(net)
    x, _ = batch(net)
    logits = net(x)
    loss = gaze(logits, (logits.argmax(1) + 1) % K)
    assert float(loss.detach()) == 0
    assert (int(gaze.watched.used), int(gaze.watched.skipped), int(gaze.watched.blank)) == (0, 0, 0)
    assert all(not g.any() for g in gradients(loss, net))
    gaze.close()


# --- in a training loop -----------------------------------------------------------------------------------------------


def test_a_positive_weight_draws_maps_together_and_a_negative_one_apart() -> None:
    found = {}
    for sign in (1.0, 0.0, -1.0):
        net = network()
        gaze = watching(net, aim="batch")
        x, labels = batch(net, count=24)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(8):
            optimiser.zero_grad()
            logits = net(x)
            loss = cross_entropy(logits, labels) + 5 * sign * gaze(logits, labels)
            loss.backward()
            optimiser.step()
        found[sign] = float(gaze(net(x), labels).detach())
    assert found[1.0] < 0.9 * found[0.0]
    assert found[-1.0] > 1.1 * found[0.0]


@pytest.mark.parametrize("mode", ["closed_form", "autograd", "detached"])
@pytest.mark.parametrize("view", ["train", "eval"])
def test_only_what_the_loop_does_changes_the_network(mode: Mode, view: str) -> None:
    """No `.grad`, no state of the optimiser, no buffer, no random number; two lines in any loop."""
    net = network(drop=0.5)
    gaze = watching(net, mode=mode, view=view)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(2):
        x, labels = batch(net, seed=step)
        logits = net(x)
        loss = cross_entropy(logits, labels)
        before = copy.deepcopy((optimiser.state_dict(), net.state_dict(), [m.training for m in net.modules()]))
        grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        random = torch.random.get_rng_state()
        loss = loss + 3.0 * gaze(logits, labels)
        assert torch.equal(random, torch.random.get_rng_state())
        after = (optimiser.state_dict(), net.state_dict(), [m.training for m in net.modules()])
        torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
        assert after[2] == before[2]
        for weight, gradient in zip(net.parameters(), grads, strict=True):
            assert (weight.grad is None) == (gradient is None)
            assert gradient is None or torch.equal(weight.grad, gradient)  # type: ignore[arg-type]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_a_copy_of_the_network_does_not_write_into_the_loss() -> None:
    net = network()
    gaze = watching(net)
    averaged = AveragedModel(net)
    x, labels = batch(net)
    logits = net(x)
    averaged.update_parameters(net)
    averaged(x.flip(0))
    found = gaze(logits, labels)
    averaged(x)
    with pytest.raises(KonkyoError, match="run the network on images"):
        gaze(logits, labels)
    alone = watching(network())
    torch.testing.assert_close(alone(alone.maps.network(x), labels), found)
    gaze.close()
    assert hooks(net) == 0


@pytest.mark.parametrize("deep", [False, True])
def test_bf16_autocast(deep: bool) -> None:
    net = network(double=False, deep=deep)
    x, labels = batch(net, double=False)
    exact, gaze = watching(net), watching(net)
    expected = exact(net(x), labels)
    exact.close()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
        found = gaze(logits, labels)
    assert (logits.dtype, found.dtype, gaze.means.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=0.1)
    assert all(g.isfinite().all() for g in gradients(found, net))
    gaze.close()
    inside, outside = watching(net), watching(net)
    logits = net(x)
    mine = outside(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(inside(logits, labels), mine, rtol=1e-6, atol=0)
    torch.testing.assert_close(inside.means, outside.means, rtol=0, atol=1e-6)  # sums are not in 16 bits


def test_torch_compile() -> None:
    torch._dynamo.reset()
    net = network(double=False)
    plain = watching(copy.deepcopy(net))
    compiled = torch.compile(net, backend="aot_eager")
    gaze = watching(compiled)
    for step in range(2):
        x, labels = batch(net, seed=step, double=False)
        expected = gradients(plain(plain.maps.network(x), labels), plain.maps.network)
        loss = gaze(compiled(x), labels)
        for mine, theirs in zip(gradients(loss, net), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gaze.means, plain.means, rtol=1e-4, atol=1e-5)


def test_labels_of_other_integer_types() -> None:
    net = network()
    x, labels = batch(net)
    values = []
    for kind in (torch.int64, torch.int32, torch.uint8):
        gaze = watching(net)
        values.append(gaze(net(x), labels.to(kind)))
        gaze.close()
    assert values[0] == values[1] == values[2]


def test_what_cannot_be_is_said() -> None:
    net = network()
    with pytest.raises(KonkyoError, match="unknown distance for training 'top_iou'"):
        ConsistencyLoss(net, SHAPE, distance="top_iou")
    with pytest.raises(KonkyoError, match="unknown aim 'mean'"):
        ConsistencyLoss(net, SHAPE, aim="mean")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="unknown mode 'fast'"):
        ConsistencyLoss(net, SHAPE, mode="fast")  # type: ignore[arg-type]
    with pytest.raises(KonkyoError, match="closed_form needs"):
        ConsistencyLoss(network(deep=True), SHAPE, mode="closed_form")
    for options in ({"ema": 1.0}, {"ema": -0.1}, {"least": 0}):
        with pytest.raises(KonkyoError, match="0 <= ema < 1 and least >= 1"):
            ConsistencyLoss(net, SHAPE, **options)  # type: ignore[arg-type]
    assert hooks(net) == 0
    gaze = watching(net)
    x, labels = batch(net)
    with pytest.raises(KonkyoError, match="run the network on images"):
        gaze(torch.zeros(len(x), K), labels)
    with torch.no_grad():
        logits = net(x)
    with pytest.raises(KonkyoError, match="last forward was without gradients"):
        gaze(logits, labels)
    logits = net(x)
    with pytest.raises(KonkyoError, match=r"labels are class indices \(N,\) or .*; got \(18, 2\) torch.float64"):
        gaze(logits, torch.zeros(18, 2).double())
    for wrong in (K, -1):
        with pytest.raises(KonkyoError, match=f"labels from 0 to 2 were expected, or -100; got .*{wrong}"):
            gaze(logits, torch.where(labels == 0, wrong, labels))
    with pytest.raises(KonkyoError, match="a label of each of 18 images"):
        gaze(logits, labels[:4])


# --- several processes ------------------------------------------------------------------------------------------------

PARTS = ("even", "one side", "deep")


def _whole(part: str, step: int) -> tuple[Tensor, Tensor]:
    """18 samples; of "one side" the second half are all taken for something else."""
    net = network(norm=False, deep=part == "deep")
    x, labels = batch(net, seed=step)
    if part == "one side":
        labels[9:] = (copy.deepcopy(net)(x[9:]).argmax(1) + 1) % K
    return x, labels


def _train(part: str, gaze: ConsistencyLoss, run: nn.Module, net: nn.Module, rows: slice) -> dict[str, list[Tensor]]:
    """Two steps; the gradients and buffers of each."""
    found: dict[str, list[Tensor]] = {"gradients": [], "counts": [], "loss": []}
    for step in range(2):
        x, labels = _whole(part, step)
        net.zero_grad()
        logits = run(x[rows])
        loss = gaze(logits, labels[rows])
        (cross_entropy(logits, labels[rows]) + 20 * loss).backward()
        found["gradients"] += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        found["counts"].append(torch.stack([gaze.watched.used, gaze.watched.skipped, gaze.watched.blank]))
        found["loss"].append(loss.detach())
    return found | {"buffers": list(gaze.buffers())}


def _process(rank: int, folder: str) -> None:
    """One of two processes with half of every batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for part in PARTS:
        net = network(norm=False, deep=part == "deep")
        parallel = nn.parallel.DistributedDataParallel(net)
        found[part] = _train(part, watching(parallel), parallel, net, slice(9 * rank, 9 * rank + 9))
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch"])  # imported once for both
    torch.multiprocessing.start_processes(_process, (str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for part in PARTS:
        net = network(norm=False, deep=part == "deep")
        expected = _train(part, watching(net), net, net, slice(None))
        assert int(expected["counts"][0][0]) >= 6
        assert float(expected["loss"][0]) > 0.01
        for key in ("gradients", "counts", "buffers"):
            for one, other, all_of_it in zip(first[part][key], second[part][key], expected[key], strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0)
                torch.testing.assert_close(one, all_of_it, rtol=1e-9, atol=1e-12)
        for one, other, all_of_it in zip(first[part]["loss"], second[part]["loss"], expected["loss"], strict=True):
            torch.testing.assert_close((one + other) / 2, all_of_it, rtol=1e-9, atol=1e-12)
        if part == "one side":
            assert not any(value.any() for value in second[part]["loss"])


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_the_schedule_is_equation_18() -> None:
    weight = LambdaSchedule(500)
    expected = {1: 0, 2: 0, 3: 62.5, 4: 125, 5: 187.5, 6: 250, 7: 312.5, 8: 375, 9: 437.5, 10: 500, 11: 500, 50: 500}
    assert {epoch: weight(epoch) for epoch in expected} == expected
    assert [LambdaSchedule(-100, 0, 4)(e) for e in (0, 1, 2, 3, 4, 5)] == [0, -25, -50, -75, -100, -100]
    assert LambdaSchedule(8.0)(2.5) == 0.5
    assert [LambdaSchedule(3.0, 5, 5)(e) for e in (1, 4.9, 5, 6)] == [0, 0, 3, 3]
    assert [LambdaSchedule(0.0)(e) for e in (1, 5, 20)] == [0, 0, 0]
    for wrong in ((1.0, 11, 10), (math.inf, 2, 10), (math.nan, 2, 10)):
        with pytest.raises(KonkyoError, match="start <= end and a finite weight"):
            LambdaSchedule(*wrong)

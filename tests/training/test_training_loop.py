"""The training loop: what it computes, that it goes on where it stopped, and that two processes do what one does."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from helpers.bits import same
from konkyo import KonkyoError
from konkyo.studies.gaze.study import GazeObjective
from konkyo.training.batches import Batches
from konkyo.training.checkpoint import CHECKPOINT
from konkyo.training.devices import fabric_of
from konkyo.training.loop import EPOCHS, Fitted, fit, read_epochs, write_epochs
from konkyo.training.losses.consistency import ConsistencyLoss, LambdaSchedule
from konkyo.training.recipe import Numbers, Recipe

FABRIC = fabric_of(accelerator="cpu")
SHAPE = (1, 12, 10)


def network(seed: int = 0) -> nn.Sequential:
    """With batch norm and dropout, which a training that goes on must not be seen in."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)),
        )


class Noisy:
    """Images that are augmented with random numbers; tells which were asked for, and stops where it is told to."""

    def __init__(self, count: int = 18, stop: int | None = None) -> None:
        generator = torch.Generator().manual_seed(7)
        self.images, self.stop, self.asked = torch.randn(count, *SHAPE, generator=generator), stop, list[int]()
        self.seen = list[Tensor]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        image = self.images[index] + (2 * (index % 2) - 1) + 0.5 * torch.randn(SHAPE)
        self.seen.append(image)
        return image, index % 2


class Entropy(nn.Module):
    """Cross-entropy alone."""

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
        found = functional.cross_entropy(logits, labels)
        return {"loss": found, "ce": found}


class Stops:
    """Stands for what `fit` calls, and is interrupted at a call."""

    def __init__(self, at: int | None, does: Callable[..., Any] = lambda *_: None) -> None:
        self.at, self.does, self.calls = at, does, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.does(*args)


def plain_judge(found: nn.Module, epoch: int) -> Numbers:
    """A loss that falls to the second epoch and then rises, so that a plateau is met in the eighth."""
    assert not found.training
    return {"loss": abs(epoch - 2.0), "mean": float(next(found.parameters()).detach().mean())}


def trained(
    folder: Path,
    recipe: Recipe,
    *,
    data: Noisy | None = None,
    stop: Mapping[str, int] | None = None,
    objective: Callable[[nn.Module], nn.Module] | None = None,
    groups: Callable[[nn.Sequential], list[dict[str, Any]]] | None = None,
    judge: Callable[[nn.Module, int], Numbers] = plain_judge,
) -> Fitted:
    """The usual network, trained with the gaze loss; interrupted at the calls that `stop` says."""
    stop = stop or {}
    net = network()
    if objective is None:
        gaze = ConsistencyLoss(net, SHAPE, layer="2")
        made: nn.Module = GazeObjective(gaze, LambdaSchedule(3.0, 1, 3))
    else:
        made = objective(net)

    def keep(found: nn.Module) -> None:
        folder.mkdir(exist_ok=True)
        save_file(found.state_dict(), folder / "weights.safetensors")

    return fit(
        net,
        made,
        data or Noisy(stop=stop.get("data")),
        recipe,
        folder,
        judge=Stops(stop.get("judge"), judge),
        keep=Stops(stop.get("keep"), keep),
        fabric=FABRIC,
        groups=None if groups is None else groups(net),
        progress=Stops(stop.get("progress")),
    )


def kept(folder: Path) -> tuple[Any, bytes, bytes]:
    """All that a training leaves, weights and the schedule's state and the csv's bytes."""
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    return checkpoint, (folder / EPOCHS).read_bytes(), (folder / "weights.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of several threads are not always the same."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


# --- what is computed -------------------------------------------------------------------------------------------------


def test_the_recipe_is_the_studys() -> None:
    recipe = Recipe()
    optimiser, schedule = recipe.optimizer([{"params": list(network().parameters())}])
    assert type(optimiser) is torch.optim.Adam
    (group,) = optimiser.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 1e-8, 0)
    assert isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert (schedule.factor, schedule.patience, schedule.mode) == (0.1, 5, "min")
    assert recipe.batch == 32


def test_a_training_is_the_literal_loop(tmp_path: Path) -> None:
    """Adam on batches in the order in which they were asked for, written out; without anything random."""
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    ours = nn.Sequential(*layers).double()
    theirs = nn.Sequential(*[type(m)(*a) for m, a in zip(layers, [(1, 3, 3), (), (1,), (), (3, 2)], strict=True)])
    theirs.double().load_state_dict(ours.state_dict())
    asked = list[int]()
    images = torch.randn(10, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    class Fixed(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return images[index], index % 2

    fitted = fit(
        ours,
        Entropy(),
        Fixed(range(10)),
        Recipe(epochs=2, batch=4, learning_rate=1e-2, schedule="constant"),
        tmp_path,
        judge=lambda _n, _e: {},
        keep=lambda _n: None,
        fabric=FABRIC,
    )
    optimiser, means = torch.optim.Adam(theirs.parameters(), lr=1e-2), []
    for epoch in range(2):
        order = asked[epoch * 10 : epoch * 10 + 10]
        assert sorted(order) == list(range(10))
        losses = []
        for batch in (order[:4], order[4:8], order[8:]):
            entropy = functional.cross_entropy(theirs(images[batch]), torch.tensor([i % 2 for i in batch]))
            optimiser.zero_grad()
            entropy.backward()
            optimiser.step()
            losses += [entropy.item()] * len(batch)
        means.append(sum(losses) / 10)
    assert [row["train_ce"] for row in fitted.epochs] == pytest.approx(means, rel=1e-6)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    assert asked[:10] != asked[10:]


def test_the_numbers_of_every_epoch(tmp_path: Path) -> None:
    fitted = trained(tmp_path, Recipe(epochs=4, batch=6, learning_rate=1e-2))
    assert [row["epoch"] for row in fitted.epochs] == [1, 2, 3, 4]
    assert [row["train_weight"] for row in fitted.epochs] == [0, 1.5, 3, 3]
    for row in fitted.epochs:
        assert row["train_loss"] == pytest.approx(row["train_ce"] + row["train_weight"] * row["train_gaze"], rel=1e-4)
        assert 0 <= row["train_used"] + row["train_blank"] <= row["train_accuracy"] + 1e-6
        assert row["valid_loss"] == abs(row["epoch"] - 2)
    assert read_epochs(tmp_path / EPOCHS) == list(fitted.epochs)
    assert not fitted.network.training


def test_progress_is_told_after_every_epoch(tmp_path: Path) -> None:
    told = list[tuple[int, int]]()
    net = network()
    fit(
        net,
        Entropy(),
        Noisy(),
        Recipe(epochs=3),
        tmp_path,
        judge=lambda _n, _e: {},
        keep=lambda _n: None,
        fabric=FABRIC,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1] * 10),
        ("steps", [0.1] * 3 + [0.01] * 3 + [0.001] * 3 + [0.0001]),
        ("cosine", [0.05 * (1 + math.cos(math.pi * t / 10)) for t in range(10)]),
        ("plateau", [0.1] * 8 + [0.01] * 2),  # the best is the second; 3 to 8 are six without a better one
    ],
)
def test_rates_of_the_epochs(schedule: Any, expected: list[float], tmp_path: Path) -> None:
    recipe = Recipe(epochs=10, learning_rate=0.1, optimiser="sgd", schedule=schedule)
    fitted = trained(tmp_path, recipe, objective=lambda _: Entropy())
    assert [row["rate"] for row in fitted.epochs] == pytest.approx(expected)


def test_few_epochs_begin_with_the_whole_rate(tmp_path: Path) -> None:
    fitted = trained(tmp_path, Recipe(epochs=1, learning_rate=0.1, optimiser="sgd", schedule="steps"))
    assert [row["rate"] for row in fitted.epochs] == [0.1]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    """A network of NaNs is no result."""

    class Diverges(Entropy):
        def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
            terms = super().forward(logits, labels, epoch)
            return terms | {"loss": terms["loss"] * (math.nan if epoch == 3 else 1)}

    with pytest.raises(KonkyoError, match=r"the loss is nan in epoch 3: lower the rate \(0\.0001\)"):
        trained(tmp_path, Recipe(epochs=4), objective=lambda _: Diverges())
    assert len(read_epochs(tmp_path / EPOCHS)) == 2


def test_without_a_judged_loss_the_plateau_is_that_of_training(tmp_path: Path) -> None:
    class Rising(Entropy):
        def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
            return {"loss": logits.mean() * 0 + epoch}

    fitted = trained(
        tmp_path, Recipe(epochs=8, learning_rate=0.1), objective=lambda _: Rising(), judge=lambda _n, _e: {}
    )
    assert [row["rate"] for row in fitted.epochs] == pytest.approx([0.1] * 7 + [0.01])


def test_groups_have_rates_of_their_own(tmp_path: Path) -> None:
    fitted = trained(
        tmp_path,
        Recipe(epochs=1, learning_rate=1e-3, optimiser="sgd", schedule="constant"),
        objective=lambda _: Entropy(),
        groups=lambda net: [{"params": net[0].parameters(), "lr": 0.5}, {"params": net[-1].parameters()}],
    )
    assert fitted.epochs[0]["rate"] == 0.5
    fresh = network()
    changed = [
        float((a - b).detach().abs().max())
        for a, b in zip(fitted.network.parameters(), fresh.parameters(), strict=True)
    ]
    assert changed[0] > 1e-3
    assert changed[2] == changed[3] == 0  # batch norm's, of no group
    assert 0 < changed[4] < 1e-2


def test_trainings_of_a_seed_see_the_same_images(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=5, learning_rate=1e-2)
    one, other, third = Noisy(), Noisy(), Noisy()
    trained(tmp_path / "gaze", recipe, data=one)
    trained(tmp_path / "entropy", recipe, data=other, objective=lambda _: Entropy())
    assert one.asked == other.asked
    assert all(torch.equal(a, b) for a, b in zip(one.seen, other.seen, strict=True))
    trained(tmp_path / "seed", Recipe(epochs=2, batch=5, seed=1), data=third, objective=lambda _: Entropy())
    assert third.asked[:18] != one.asked[:18]
    assert sorted(one.asked[:18]) == sorted(one.asked[18:]) == list(range(18))


@pytest.mark.parametrize("stop", [None, {"judge": 2}, {"data": 25}], ids=str)
def test_the_callers_random_state_is_left_alone(tmp_path: Path, stop: dict[str, int] | None) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    if stop is None:
        trained(tmp_path, Recipe(epochs=2))
    else:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, Recipe(epochs=2), stop=stop)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"weight_decay": -1e-4},
        {"momentum": 1.5},
        {"seed": -1},
        {"workers": -1},
        {"optimiser": "adamax"},
        {"schedule": "linear"},
    ],
    ids=str,
)
def test_recipes_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(KonkyoError, match=str(next(iter(wrong.values()))).replace(".", r"\.")):
        Recipe(**wrong)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop",
    [{"progress": 2}, {"judge": 3}, {"keep": 1}, {"keep": 2}, {"keep": 4}, {"data": 1}, {"data": 46}, {"data": 71}],
    ids=str,
)
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, stop: dict[str, int]) -> None:
    recipe = Recipe(epochs=4, batch=5, learning_rate=1e-2)
    whole = trained(tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", recipe, stop=stop)
    torch.manual_seed(99)  # whatever the caller did meanwhile
    parts = trained(tmp_path / "parts", recipe)
    assert same(kept(tmp_path / "parts"), kept(tmp_path / "whole"))
    assert whole.epochs == parts.epochs
    assert same(whole.network.state_dict(), parts.network.state_dict())
    state = torch.load(tmp_path / "whole" / CHECKPOINT, weights_only=True)
    assert state["objective"]["gaze.seen"].any()  # the running maps were there to be lost
    assert state["network"]["1.running_mean"].abs().max() > 0


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", ["plateau", "cosine", "steps", "constant"])
def test_every_schedule_and_optimiser_goes_on(tmp_path: Path, optimiser: Any, schedule: Any) -> None:
    recipe = Recipe(epochs=10, batch=9, learning_rate=1e-2, weight_decay=1e-3, optimiser=optimiser, schedule=schedule)
    whole = trained(tmp_path / "whole", recipe)
    for at in (3, 4):  # after the third epoch, and then after the seventh
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parts", recipe, stop={"progress": at})
    trained(tmp_path / "parts", recipe)
    assert same(kept(tmp_path / "parts"), kept(tmp_path / "whole"))
    assert len({row["rate"] for row in whole.epochs}) > 1 or schedule == "constant"


def test_ctrl_c_leaves_the_whole_epochs(tmp_path: Path) -> None:
    recipe = Recipe(epochs=4, batch=5, learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", recipe, stop={"data": 2 * 18 + 7})
    trained(tmp_path / "two", Recipe(epochs=2, batch=5, learning_rate=1e-2))
    assert len(read_epochs(tmp_path / "stopped" / EPOCHS)) == 2
    assert (tmp_path / "stopped" / EPOCHS).read_bytes() == (tmp_path / "two" / EPOCHS).read_bytes()
    assert same(
        load_file(tmp_path / "stopped" / "weights.safetensors"), load_file(tmp_path / "two/weights.safetensors")
    )


def test_a_finished_training_is_only_read(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, learning_rate=1e-2)
    first = trained(tmp_path, recipe)
    times = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    data = Noisy()
    again = trained(tmp_path, recipe, data=data)
    assert data.asked == []
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == times
    assert again.epochs == first.epochs
    assert same(again.network.state_dict(), first.network.state_dict())
    assert not again.network.training


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_more_epochs_go_on_from_fewer(tmp_path: Path, schedule: Any) -> None:
    trained(tmp_path / "parts", Recipe(epochs=2, learning_rate=1e-2, schedule=schedule))
    trained(tmp_path / "parts", Recipe(epochs=4, learning_rate=1e-2, schedule=schedule))
    trained(tmp_path / "whole", Recipe(epochs=4, learning_rate=1e-2, schedule=schedule))
    assert same(kept(tmp_path / "parts"), kept(tmp_path / "whole"))
    with pytest.raises(KonkyoError, match="4 epochs, more than 3"):
        trained(tmp_path / "parts", Recipe(epochs=3, learning_rate=1e-2, schedule=schedule))


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_more_epochs_are_refused_where_rates_depend_on_them(tmp_path: Path, schedule: Any) -> None:
    trained(tmp_path, Recipe(epochs=2, schedule=schedule))
    with pytest.raises(KonkyoError, match="differ in epochs"):
        trained(tmp_path, Recipe(epochs=4, schedule=schedule))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"batch": 6}, "batch"),
        ({"seed": 1}, "seed"),
        ({"optimiser": "sgd"}, "optimiser"),
        ({"schedule": "constant", "weight_decay": 0.1}, "weight_decay, schedule"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    trained(tmp_path, Recipe(epochs=1, batch=9))
    before = kept(tmp_path)
    each = r" \(.* there, .* now\)"
    words = ", ".join(f"{name}{each}" for name in named.split(", "))
    with pytest.raises(KonkyoError, match=f"with other settings: choose another folder. They differ in {words}"):
        trained(tmp_path, Recipe(**({"epochs": 1, "batch": 9} | changes)))
    assert same(kept(tmp_path), before)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, Recipe(epochs=1), objective=lambda _: Entropy())
    with pytest.raises(KonkyoError, match=r"checkpoint\.pt does not fit this network: .*means"):
        trained(tmp_path, Recipe(epochs=1))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["network"]["0.weight"] = torch.zeros(5, 1, 3, 3)
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(KonkyoError, match="does not fit this network"):
        trained(tmp_path, Recipe(epochs=1), objective=lambda _: Entropy())


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    trained(tmp_path, Recipe(epochs=1))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    torch.save(state | {"more": Code(tmp_path / "ran")}, tmp_path / CHECKPOINT)
    with pytest.raises(KonkyoError, match=r"checkpoint\.pt is no checkpoint of a training.*remove it to begin anew"):
        trained(tmp_path, Recipe(epochs=1))
    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    with pytest.raises(KonkyoError, match="is no checkpoint of a training"):
        trained(tmp_path, Recipe(epochs=1))
    assert not (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    trained(tmp_path, Recipe(epochs=1))
    whole = (tmp_path / CHECKPOINT).read_bytes()
    damaged = [b"", b"no checkpoint", whole[:100], whole[: len(whole) // 2], whole[:-30], whole[50:]]
    middle = len(whole) // 2
    damaged.append(whole[:middle] + bytes(64) + whole[middle + 64 :])
    weights = whole.index(torch.load(tmp_path / CHECKPOINT, weights_only=True)["network"]["0.weight"].numpy().tobytes())
    damaged.append(whole[:weights] + bytes([whole[weights] ^ 1]) + whole[weights + 1 :])  # one bit
    for content in damaged:
        (tmp_path / CHECKPOINT).write_bytes(content)
        with pytest.raises(KonkyoError, match="checkpoint"):
            trained(tmp_path, Recipe(epochs=1))


PARTS = ("recipe", "rows", "network", "objective", "optimiser", "schedule")
AS_GOOD_AS_NOTHING = (("schedule", {}), ("schedule", []), ("rows", []), ("rows", {}))


@pytest.mark.parametrize(
    ("part", "value"),
    [(p, v) for p in PARTS for v in (None, 3, [], {}, "absent") if (p, v) not in AS_GOOD_AS_NOTHING],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_told(tmp_path: Path, part: str, value: Any) -> None:
    trained(tmp_path, Recipe(epochs=1))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    if value == "absent":
        del state[part]
    else:
        state[part] = value
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(KonkyoError, match=r"checkpoint\.pt"):
        trained(tmp_path, Recipe(epochs=1))
    torch.save([state], tmp_path / CHECKPOINT)
    with pytest.raises(KonkyoError, match=r"checkpoint\.pt"):
        trained(tmp_path, Recipe(epochs=1))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(epochs=3, batch=9, learning_rate=1e-2)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", recipe, stop={"progress": 1})
    before = (tmp_path / "parts" / CHECKPOINT).read_bytes()
    with monkeypatch.context() as patch:

        def half(_state: Any, path: Path) -> None:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")

        patch.setattr(torch, "save", half)
        with pytest.raises(KonkyoError, match=r"checkpoint\.pt cannot be written: No space left"):
            trained(tmp_path / "parts", recipe)
    assert (tmp_path / "parts" / CHECKPOINT).read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [CHECKPOINT, EPOCHS, "weights.safetensors"]
    trained(tmp_path / "parts", recipe)
    trained(tmp_path / "whole", recipe)
    assert same(kept(tmp_path / "parts"), kept(tmp_path / "whole"))


def test_processes_that_read_pictures_go_on_too(tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch=9, learning_rate=1e-2, workers=1)
    trained(tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", recipe, stop={"progress": 1})
    trained(tmp_path / "parts", recipe)
    assert same(kept(tmp_path / "parts"), kept(tmp_path / "whole"))


# --- epochs.csv -------------------------------------------------------------------------------------------------------


def test_epochs_come_back_as_they_were(tmp_path: Path) -> None:
    rows: list[Numbers] = [
        {"epoch": 1.0, "rate": 1e-4, "train_loss": 1 / 3, "valid_L": math.nan},
        {"epoch": 2.0, "rate": 1e-05, "train_loss": math.inf, "valid_L": 5e-324, "valid_new": -0.0},
    ]
    write_epochs(tmp_path / EPOCHS, rows)
    assert same(read_epochs(tmp_path / EPOCHS), rows)
    text = (tmp_path / EPOCHS).read_text()
    assert text.splitlines() == [
        "epoch,rate,train_loss,valid_L,valid_new",
        "1,0.0001,0.3333333333333333,nan,",
        "2,1e-05,inf,5e-324,-0.0",
    ]
    write_epochs(tmp_path / EPOCHS, [])
    assert read_epochs(tmp_path / EPOCHS) == []


@pytest.mark.parametrize("content", [b"epoch,rate\n1,x\n", b"epoch\n1,2\n", b"epoch\n\xff\xfe\n", None], ids=str)
def test_epochs_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / EPOCHS).write_bytes(content)
    with pytest.raises(KonkyoError, match=r"epochs\.csv cannot be read as the epochs of a training"):
        read_epochs(tmp_path / EPOCHS)


# --- several processes ------------------------------------------------------------------------------------------------


def process(world: int, rank: int) -> Any:
    return SimpleNamespace(world_size=world, global_rank=rank, to_device=lambda tensor: tensor)


@pytest.mark.parametrize(("count", "batch", "world"), [(24, 6, 2), (22, 8, 2), (23, 8, 4), (9, 8, 2)])
def test_processes_share_the_batches_of_one(count: int, batch: int, world: int) -> None:
    recipe = Recipe(batch=batch, seed=3)

    def indices(rank: int, of: int) -> list[list[int]]:
        data = Noisy(count)
        shares, at = [], 0
        for images, _ in ((b.images, b.labels) for b in Batches(data, recipe, process(of, rank)).of(2)):
            shares.append(data.asked[at : at + len(images)])
            at += len(images)
        return shares

    alone = indices(0, 1)
    shared = [indices(rank, world) for rank in range(world)]
    assert sorted(i for b in alone for i in b) == list(range(count))
    assert len({tuple(map(len, s)) for s in shared}) == 1  # none waits for another
    for step, parts in enumerate(zip(*shared, strict=True)):
        together = [i for part in parts for i in part]
        assert len(together) == len(set(together)) == len(alone[step]) - len(alone[step]) % world
        assert set(together) <= set(alone[step])


def test_a_batch_that_processes_cannot_share() -> None:
    def attempt(recipe: Recipe, count: int) -> None:
        keep: Callable[[nn.Module], None] = lambda _: None
        fit(
            network(),
            Entropy(),
            Noisy(count),
            recipe,
            Path(),
            judge=lambda _n, _e: {},
            keep=keep,
            fabric=process(3, 0),
        )

    with pytest.raises(KonkyoError, match="a batch of 32 cannot be shared by 3 processes; choose a multiple"):
        attempt(Recipe(), 18)
    with pytest.raises(KonkyoError, match="2 images for 3 processes"):
        attempt(Recipe(batch=30), 2)


@pytest.mark.parametrize("wrong", [{"accelerator": "abacus"}, {"precision": "13"}, {"strategy": "slow"}], ids=str)
def test_devices_that_are_not_there(wrong: dict[str, str]) -> None:
    with pytest.raises(KonkyoError, match="cannot be used"):
        fabric_of(**({"accelerator": "cpu"} | wrong))  # type: ignore[arg-type]


STUDY = """
import json, sys
from pathlib import Path
import torch
from konkyo.training.devices import fabric_of
from konkyo.studies.gaze.study import GazeStudy, train_gaze
from konkyo.training.recipe import Recipe

def study(seeds=(0,)):
    return GazeStudy("lesions:80", (1,), (3.0,), seeds, 32, start=0, end=1, augment=False, recipe=Recipe(2, 16, 1e-2))

def stop(done, total, what):
    if done == 1:
        raise KeyboardInterrupt

if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric, out = fabric_of(2, accelerator="cpu"), Path(sys.argv[1])
    train_gaze(study(), out / "whole", fabric=fabric)
    try:
        train_gaze(study(), out / "parts", fabric=fabric, progress=stop)
    except KeyboardInterrupt:
        pass
    else:
        raise SystemExit("not interrupted")
    train_gaze(study(), out / "parts", fabric=fabric)
    if not fabric.is_global_zero:
        (out / "second").write_text(str(fabric.world_size))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of a study: at once ("whole"), and interrupted ("parts")."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "study.py").write_text(STUDY)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "study.py", str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


RUN = Path("level-1", "lambda_3", "seed_0")


def test_two_processes_train_as_one_does(two: Path, tmp_path: Path) -> None:
    from konkyo.studies.gaze.study import train_gaze

    assert (two / "second").read_text() == "2"
    space: dict[str, Any] = {"__name__": "one"}
    exec(STUDY, space)
    train_gaze(space["study"](), tmp_path, fabric=FABRIC)
    own, theirs = (read_epochs(folder / RUN / EPOCHS) for folder in (tmp_path, two / "whole"))
    assert len(own) == len(theirs) == 2
    for one, other in zip(own, theirs, strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=2e-3, abs=1e-5, nan_ok=True), name
    assert own[0]["train_gaze"] > 0
    assert own[0]["train_used"] > 0
    one, other = (load_file(folder / RUN / "weights.safetensors") for folder in (tmp_path, two / "whole"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_two_processes_go_on(two: Path) -> None:
    files = [p.relative_to(two / "whole") for p in (two / "whole").rglob("*") if p.is_file()]
    assert sorted(files) == sorted(p.relative_to(two / "parts") for p in (two / "parts").rglob("*") if p.is_file())
    assert {RUN / CHECKPOINT, RUN / EPOCHS, RUN / "weights.safetensors", RUN / "test/maps.safetensors"} <= set(files)
    for path in files:
        if path.name == CHECKPOINT:
            one, other = (torch.load(two / part / path, weights_only=True) for part in ("whole", "parts"))
            assert same(one, other)
        else:
            assert (two / "whole" / path).read_bytes() == (two / "parts" / path).read_bytes(), path
    assert json.loads((two / "parts/study.json").read_text())["seeds"] == [0]

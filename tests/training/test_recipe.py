"""What a recipe's options do to a training: each against the same written out, and all of them when it goes on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
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
from konkyo.errors import Diverged
from konkyo.models.networks.attention_branch import AttentionBranchOutput, attention_branch_loss
from konkyo.models.networks.recam import ReCAMOutput, recam_loss
from konkyo.models.networks.vib import VIBLoss, VIBOutput
from konkyo.studies.vib.study import StepLoss
from konkyo.training.batches import Batches
from konkyo.training.checkpoint import CHECKPOINT
from konkyo.training.devices import fabric_of
from konkyo.training.loop import EPOCHS, Fitted, fit, read_epochs
from konkyo.training.recipe import Numbers, Recipe
from konkyo.training.sampling import balanced
from konkyo.utils.tensors import cross_entropy

ALONE: Any = SimpleNamespace(world_size=1, global_rank=0, to_device=lambda tensor: tensor)


class Drawn:
    """Ten features with noise of the random state, and labels of three classes, the first the most frequent."""

    def __init__(self, count: int = 22) -> None:
        self.features = torch.randn(count, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        self.labels = [0 if i % 2 else 1 + i % 3 // 2 for i in range(count)]
        self.asked = list[int]()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.asked.append(index)
        return self.features[index] + 0.1 * torch.randn(10, dtype=torch.float64), self.labels[index]


class Entropy(nn.Module):
    """Cross-entropy, with weights of classes or without."""

    def __init__(self, weights: Tensor | None = None) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, logits: Tensor, labels: Tensor, _epoch: int) -> dict[str, Tensor]:
        return {"loss": cross_entropy(logits, labels, self.weights)}


def network(*middle: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()


def trained(
    folder: Path,
    recipe: Recipe,
    judge: Callable[[nn.Module, int], Numbers] = lambda _network, epoch: {"loss": abs(epoch - 2.5)},
    *,
    net: nn.Module | None = None,
    objective: nn.Module | None = None,
    stop: int | None = None,
    data: Any = None,
) -> Fitted:
    """Trains, and is interrupted before the epoch `stop` is kept."""

    def judged(found: nn.Module, epoch: int) -> Numbers:
        if epoch == stop:
            raise KeyboardInterrupt
        return judge(found, epoch)

    def keep(found: nn.Module) -> None:
        folder.mkdir(exist_ok=True)
        save_file(found.state_dict(), folder / "weights.safetensors")

    return fit(
        network() if net is None else net,
        objective or Entropy(),
        data or Drawn(),
        recipe,
        folder,
        judge=judged,
        keep=keep,
        fabric=fabric_of(accelerator="cpu"),
    )


def kept(folder: Path, like: nn.Module) -> dict[str, Tensor]:
    """The weights that were written, in the network's order."""
    found = load_file(folder / "weights.safetensors")
    return {name: found[name] for name in like.state_dict()}


def weights_of(fitted: Fitted) -> list[Tensor]:
    return [parameter.detach() for parameter in fitted.network.parameters()]


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_accumulated_batches_are_the_large_batch(tmp_path: Path, optimiser: Any) -> None:
    """22 images: 12 and 10 a step; in threes of 4 the second step has 4, 4 and 2."""
    rest: dict[str, Any] = {"learning_rate": 0.05, "optimiser": optimiser, "weight_decay": 0.1, "schedule": "constant"}
    large = trained(tmp_path / "large", Recipe(3, 12, clip=0.2, **rest))
    small = trained(tmp_path / "small", Recipe(3, 4, accumulate=3, clip=0.2, **rest))
    for one, other in zip(weights_of(large), weights_of(small), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert [row["train_loss"] for row in small.epochs] == pytest.approx([row["train_loss"] for row in large.epochs])
    apart = trained(tmp_path / "apart", Recipe(3, 4, clip=0.2, **rest))
    assert not torch.allclose(weights_of(apart)[0], weights_of(large)[0], rtol=1e-3)


def test_accumulated_batches_with_class_weights_are_the_large_batch(tmp_path: Path) -> None:
    recipe = Recipe(2, 22, 0.05, "sgd", schedule="constant", class_weights="balanced")
    weights = recipe.weights_of(Drawn().labels, 3)
    large = trained(tmp_path / "large", recipe, objective=Entropy(weights))
    small = Recipe(2, 8, 0.05, "sgd", schedule="constant", class_weights="balanced", accumulate=3)
    for one, other in zip(
        weights_of(large), weights_of(trained(tmp_path / "small", small, objective=Entropy(weights))), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_every_option_of_a_step_written_out(tmp_path: Path) -> None:
    """SGD on whole epochs of one batch: the rate of the warm-up, the clipped gradient, the mean of the weights."""
    recipe = Recipe(4, 22, 0.5, "sgd", momentum=0.0, schedule="constant", warmup=2, clip=0.05, ema=0.15)

    class Still(Drawn):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self.features[index], self.labels[index]

    data = Still()
    fitted = trained(tmp_path, recipe, data=data)
    mine = network()
    parameters = list(mine.parameters())
    mean = [parameter.detach().clone() for parameter in parameters]
    norms = list[float]()
    for step, rate in enumerate((0.25, 0.5, 0.5, 0.5)):
        loss = functional.cross_entropy(mine(data.features), torch.tensor(data.labels))
        gradients = torch.autograd.grad(loss, parameters)
        norms.append(math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients)))
        decay = min(0.15, (1 + step) / (10 + step))
        for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            parameter.data -= rate * gradient * min(1.0, 0.05 / (norms[-1] + 1e-6))
            mean[place] = decay * mean[place] + (1 - decay) * parameter.data
    assert min(norms) > 0.05
    assert [row["rate"] for row in fitted.epochs] == [0.25, 0.5, 0.5, 0.5]
    for one, other in zip(weights_of(fitted), mean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    raw = torch.load(tmp_path / CHECKPOINT, weights_only=True)["network"]
    for one, parameter in zip(raw.values(), parameters, strict=True):
        torch.testing.assert_close(one, parameter.detach(), rtol=1e-9, atol=1e-11)
    assert same(kept(tmp_path, fitted.network), dict(fitted.network.state_dict()))


def test_a_warm_up_rises_from_step_to_step() -> None:
    recipe = Recipe(warmup=2)
    parts = [recipe.warmed(epoch, step, 5) for epoch in (1, 2, 3) for step in range(5)]
    assert parts == pytest.approx([(i + 1) / 10 for i in range(10)] + [1.0] * 5)


def test_the_mean_weights_are_what_is_judged(tmp_path: Path) -> None:
    seen = list[dict[str, Tensor]]()

    def judge(found: nn.Module, _epoch: int) -> Numbers:
        seen.append({name: value.clone() for name, value in found.state_dict().items()})
        return {"loss": 0.0}

    net = network(nn.BatchNorm1d(6))
    fitted = trained(tmp_path, Recipe(3, 8, 0.1, "sgd", ema=0.9), judge, net=net)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert same(seen[-1], state["average"])
    assert same(dict(fitted.network.state_dict()), state["average"])
    assert not torch.equal(state["network"]["0.weight"], state["average"]["0.weight"])
    assert int(state["average"]["1.num_batches_tracked"]) == 9


# --- classes ----------------------------------------------------------------------------------------------------------


def test_balanced_class_weights() -> None:
    labels = [0] * 6 + [1] * 3 + [2]
    weights = Recipe(class_weights="balanced").weights_of(labels, 3)
    assert weights is not None
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert Recipe().weights_of(labels, 3) is None
    logits, classes = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(labels)
    by_hand = sum(
        float(weights[label]) * (float(row.exp().sum().log()) - float(row[label]))
        for row, label in zip(logits, labels, strict=True)
    )
    assert float(cross_entropy(logits, classes, weights)) == pytest.approx(by_hand / 10)
    # Over the whole data it is PyTorch's weighted mean: the weights' own mean is 1.
    torch.testing.assert_close(
        cross_entropy(logits, classes, weights), functional.cross_entropy(logits, classes, weights)
    )
    with pytest.raises(KonkyoError, match=r"each of the 4 classes; got \[6, 3, 1, 0\]"):
        Recipe(class_weights="balanced").weights_of(labels, 4)


def test_class_weights_reach_the_losses_of_every_network() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 6, 3, generator=generator)
    labels, weights = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0.5, 1.0, 2.5])
    once, twice = (
        sum(float(weights[y] * functional.cross_entropy(row, y)) for row, y in zip(rows, labels, strict=True)) / 6
        for rows in (logits, other)
    )
    coded = VIBOutput(torch.stack([logits, other]), torch.ones(6, 4), torch.ones(6, 4), torch.ones(6))
    assert float(VIBLoss(0.0)(coded, labels, weights=weights)["ce"]) == pytest.approx((once + twice) / 2)
    branches = attention_branch_loss(AttentionBranchOutput(logits, other, torch.ones(6, 2, 2)), labels, weights=weights)
    assert float(branches["loss"]) == pytest.approx(once + twice)
    maps = torch.randn(6, 3, 2, 2, generator=generator)
    recam = recam_loss(ReCAMOutput(logits, maps, maps), labels, weights=weights)
    assert float(recam["classification"]) == pytest.approx(once)
    studied = StepLoss(VIBLoss(0.0), weights)(coded, labels, 1)["loss"]
    assert float(studied) == pytest.approx((once + twice) / 2)


def test_balanced_batches_have_several_images_of_a_class() -> None:
    """397 classes of 3 to 9 images, batches of 32."""
    labels = [label for label in range(397) for _ in range(3 + label % 7)]
    batches = balanced(labels, [4] * 8, -(-len(labels) // 32), torch.Generator().manual_seed(0))
    counts = [0] * 397
    for batch in batches:
        assert len(set(batch)) == len(batch)
        of = [labels[index] for index in batch]
        assert len(set(of)) == 8
        for label in set(of):
            counts[label] += 1
            assert of.count(label) == min(4, labels.count(label))
    assert max(counts) - min(counts) <= 1  # classes come in turn
    seen = [index for batch in batches for index in batch if labels[index] == 6]  # of 9 images
    assert len(set(seen[:9])) == min(9, len(seen))


def test_balanced_batches_of_few_classes_are_full() -> None:
    labels = [0] * 50 + [1] * 5 + [2] * 20
    for batch in balanced(labels, [6, 5, 5], 5, torch.Generator().manual_seed(0)):
        of = [labels[index] for index in batch]
        assert [of.count(label) for label in (0, 1, 2)] in ([6, 5, 5], [5, 5, 6], [5, 5, 5])
        assert len(set(batch)) == len(batch)


def test_balanced_batches_are_of_the_seed_and_the_epoch_and_shared(tmp_path: Path) -> None:
    def indices(seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[tuple[int, int, int]]]:
        fabric: Any = SimpleNamespace(world_size=world, global_rank=rank)
        return Batches(Drawn(), Recipe(batch=8, seed=seed, sampling="balanced"), fabric).shares(epoch)

    assert indices(0, 1) == indices(0, 1)
    assert [[i for _, i, _ in b] for b in indices(0, 1)] != [[i for _, i, _ in b] for b in indices(0, 2)]
    assert indices(0, 1) != indices(1, 1)
    for whole, one, other in zip(indices(0, 1), indices(0, 1, 0, 2), indices(0, 1, 1, 2), strict=True):
        assert sorted(one + other) == sorted(whole[: len(whole) - len(whole) % 2])
    with pytest.raises(KonkyoError, match="balanced sampling needs data with labels"):
        trained(tmp_path, Recipe(sampling="balanced"), data=[(torch.zeros(10), 0)] * 4)


def test_an_image_that_comes_again_is_drawn_anew() -> None:
    data = Drawn(6)
    recipe = Recipe(batch=6, sampling="balanced", per_class=1)  # classes of 3, 2 and 1 images, 2 of each wanted
    data.labels = [0, 0, 0, 0, 0, 1]
    found = [batch for epoch in (1, 2) for batch in Batches(data, recipe, ALONE).of(epoch)]
    assert len(found) == 2
    batches = Batches(data, Recipe(batch=2, sampling="balanced", per_class=1), ALONE)
    images = [image for batch in batches.of(1) for image, label in zip(*batch[:2], strict=True) if label == 1]
    assert len(images) == 3
    assert len({float(image[0]) for image in images}) == 3


# --- best, and enough -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("watch", "best"), [("loss", 2), ("accuracy", 4), ("+L", 1), ("-L", 3), ("-blank", 1)], ids=str
)
def test_the_best_epochs_weights_are_kept(tmp_path: Path, watch: str, best: int) -> None:
    seen = dict[int, dict[str, Tensor]]()

    def judge(found: nn.Module, epoch: int) -> Numbers:
        seen[epoch] = {name: value.clone() for name, value in found.state_dict().items()}
        numbers = {"loss": abs(epoch - 2.0), "accuracy": 0.1 * epoch, "L": (9.0, 5.0, 1.0, 1.0)[epoch - 1]}
        return numbers | {"blank": 0.0 if epoch > 1 else -0.0}

    fitted = trained(tmp_path, Recipe(4, 8, 0.1, "sgd", keep="best", watch=watch), judge)
    assert same(seen[best], dict(fitted.network.state_dict()))
    assert same(seen[best], kept(tmp_path, fitted.network))
    again = trained(tmp_path, Recipe(4, 8, 0.1, "sgd", keep="best", watch=watch), judge)
    assert same(seen[best], dict(again.network.state_dict()))


def test_numbers_that_are_none_are_never_best() -> None:
    def rows(*values: float) -> list[Numbers]:
        return [{"valid_loss": value} for value in values]

    nan = math.nan
    assert [Recipe().best(rows(*v)) for v in ((), (nan,), (nan, 3.0), (2.0, nan, 1.0), (1.0, 1.0))] == [
        *(None, 0, 1, 2, 0)
    ]
    with pytest.raises(KonkyoError, match=r"unknown judged number 'kappa'.* On offer: loss"):
        Recipe(watch="kappa").best(rows(1.0))


def test_patience_ends_a_training(tmp_path: Path) -> None:
    """The loss falls to epochs 2 and 3, which are alike: the second of them is no better."""
    recipe = Recipe(9, 8, 0.1, "sgd", patience=3)
    fitted = trained(tmp_path, recipe)
    assert [row["epoch"] for row in fitted.epochs] == [1, 2, 3, 4, 5]
    data = Drawn()
    again = trained(tmp_path, recipe, data=data)
    assert data.asked == []
    assert again.epochs == fitted.epochs


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_with_everything_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    """The best epoch, 3, lies before, at and after the interruptions."""
    recipe = Recipe(
        *(7, 4, 0.05, "sgd"),
        schedule="plateau",
        warmup=3,
        accumulate=2,
        clip=0.3,
        ema=0.9,
        sampling="balanced",
        keep="best",
        patience=5,
    )

    def judge(_network: nn.Module, epoch: int) -> Numbers:
        return {"loss": abs(epoch - 3.0)}

    def net() -> nn.Module:
        return network(nn.BatchNorm1d(6), nn.Dropout(0.3))

    whole = trained(tmp_path / "whole", recipe, judge, net=net())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", recipe, judge, net=net(), stop=stop)
    torch.manual_seed(99)
    parts = trained(tmp_path / "parts", recipe, judge, net=net())
    assert same(dict(whole.network.state_dict()), dict(parts.network.state_dict()))
    one, other = (torch.load(tmp_path / name / CHECKPOINT, weights_only=True) for name in ("whole", "parts"))
    assert same(one, other)
    assert len(one["rows"]) == 7
    assert not torch.equal(one["best"]["0.weight"], one["average"]["0.weight"])
    for name in (EPOCHS, "weights.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_checkpoint_without_the_newer_fields_goes_on(tmp_path: Path) -> None:
    trained(tmp_path / "old", Recipe(2, 8))
    path = tmp_path / "old" / CHECKPOINT
    state = torch.load(path, weights_only=True)
    names = ["epochs", "batch", "learning_rate", "optimiser", "momentum", "weight_decay", "schedule", "seed", "workers"]
    state["recipe"] = {name: state["recipe"][name] for name in names}
    for name in ("average", "best", "precision"):
        del state[name]
    torch.save(state, path)
    parts = trained(tmp_path / "old", Recipe(3, 8))
    assert same(weights_of(parts), weights_of(trained(tmp_path / "new", Recipe(3, 8))))
    with pytest.raises(KonkyoError, match=r"differ in ema \(0\.0 there, 0\.9 now\)"):
        trained(tmp_path / "old", Recipe(3, 8, ema=0.9))


@pytest.mark.parametrize("schedule", ["cosine", "steps", "poly"])
def test_a_longer_schedule_names_the_way_out(tmp_path: Path, schedule: Any) -> None:
    trained(tmp_path, Recipe(2, 8, schedule=schedule))
    message = r"differ in epochs \(2 there, 4 now\).*can be added with plateau or constant"
    with pytest.raises(KonkyoError, match=message):
        trained(tmp_path, Recipe(4, 8, schedule=schedule))


def test_a_warm_up_goes_on_with_more_epochs(tmp_path: Path) -> None:
    trained(tmp_path / "parts", Recipe(1, 8, 0.1, warmup=3))
    parts = trained(tmp_path / "parts", Recipe(4, 8, 0.1, warmup=3))
    assert same(weights_of(parts), weights_of(trained(tmp_path / "whole", Recipe(4, 8, 0.1, warmup=3))))


def test_a_loss_that_is_no_number_is_an_error_of_its_own(tmp_path: Path) -> None:
    class Explodes(Entropy):
        def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> dict[str, Tensor]:
            return {"loss": super().forward(logits, labels, epoch)["loss"] * (math.inf if epoch == 2 else 1)}

    with pytest.raises(Diverged, match="in epoch 2: lower the rate"):
        trained(tmp_path, Recipe(3, 8, clip=1.0, ema=0.9), objective=Explodes())
    assert len(read_epochs(tmp_path / EPOCHS)) == 1


# --- processes that read ----------------------------------------------------------------------------------------------


class Opened(torch.utils.data.Dataset[Any]):
    """Tells as the label how often this process has been asked for the image."""

    def __init__(self) -> None:
        self.times = [0] * 8

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.times[index] += 1
        return torch.randn(3) + index, self.times[index]


def test_processes_that_read_stay_and_read_the_same() -> None:
    found = dict[int, list[list[Tensor]]]()
    for workers in (0, 1):
        batches = Batches(Opened(), Recipe(batch=3, workers=workers), ALONE)
        found[workers] = [[t for b in batches.of(epoch) for t in (b.images, b.labels)] for epoch in (1, 2, 3)]
        batches.close()
    assert same(found[0], found[1])  # images, and that the one process has seen each once an epoch
    assert torch.cat(found[1][2][1::2]).tolist() == [3] * 8
    assert not torch.equal(found[1][0][0], found[1][1][0])


# --- several processes ------------------------------------------------------------------------------------------------

TWO = """
import json, sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from konkyo import KonkyoError
from konkyo.studies.base import classification_scores
from konkyo.training.devices import fabric_of, over_batches
from konkyo.training.recipe import Recipe
sys.path[:0] = [sys.argv[2], sys.argv[3]]
from test_recipe import Drawn, Entropy, fit, network

def measured(fabric, out):
    generator = torch.Generator().manual_seed(2)
    data = [(torch.randn(10, dtype=torch.float64, generator=generator), i % 3) for i in range(50)]
    batches, net = DataLoader(data, 8), network().eval()
    judge = lambda net, _: classification_scores(net, batches, fabric.device, fabric)
    found = {"scores": judge(net, 0), "sizes": over_batches(lambda b: float(b[0].sum()), batches, fabric)}
    recipe = Recipe(2, 4, 0.1, "sgd", accumulate=2, clip=0.2, ema=0.5, sampling="balanced", keep="best")
    fitted = fit(network(), Entropy(), Drawn(), recipe, out, judge=judge, keep=lambda _: None, fabric=fabric)
    found["epochs"], found["weights"] = fitted.epochs, [p.tolist() for p in fitted.network.parameters()]
    def fails(batch):
        if fabric.global_rank == 1 and batch[1][0] == 2:
            raise ValueError("a batch of one process")
    try:
        over_batches(fails, batches, fabric)
    except KonkyoError as error:
        found["error"] = str(error)
    return found

if __name__ == "__main__":
    torch.set_num_threads(1)
    fabric, out = fabric_of(2, accelerator="cpu"), Path(sys.argv[1])
    (out / f"{fabric.global_rank}.json").write_text(json.dumps(measured(fabric, out / "run")))
"""


def test_two_processes_measure_the_numbers_of_one(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    here = Path(__file__).parent
    command = [sys.executable, "-W", "ignore", "two.py", str(tmp_path), str(here), str(here.parent)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    space: dict[str, Any] = {"__name__": "one"}
    before, sys.argv = sys.argv, command[3:]
    path = list(sys.path)
    try:
        exec(TWO, space)
    finally:
        sys.argv, sys.path[:] = before, path
    alone = json.loads(json.dumps(space["measured"](fabric_of(accelerator="cpu"), tmp_path / "alone")))
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["scores"] == alone["scores"]  # every bit of them
        assert found["sizes"] == alone["sizes"]
        assert found["error"] == "process 1 stopped: ValueError: a batch of one process"
        for one, other in zip(found["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=1e-7)
        for one, other in zip(found["epochs"], alone["epochs"], strict=True):
            assert one == pytest.approx(other, rel=1e-6)
    assert "error" not in alone


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"warmup": -1}, "warmup: 0 or more .*got -1"),
        ({"accumulate": 0}, "accumulate: 1 or more .*got 0"),
        ({"clip": 0.0}, r"clip: a number above 0.*got 0\.0"),
        ({"clip": math.nan}, "clip: .*got nan"),
        ({"ema": 1.0}, r"ema: from 0 to less than 1 .*got 1\.0"),
        ({"learning_rate": math.nan}, "learning rate: a number above 0 .*got nan"),
        ({"weight_decay": -1.0}, r"weight decay: 0 or more .*got -1\.0"),
        ({"momentum": 1.0}, "momentum: from 0"),
        ({"per_class": 0}, "per class: 1 or more .*got 0"),
        ({"patience": 0}, "patience: .*got 0"),
        ({"class_weights": "some"}, "unknown class weights 'some'.*balanced"),
        ({"sampling": "sorted"}, "unknown sampling 'sorted'.*balanced"),
        ({"keep": "first"}, "unknown keep 'first'.*best"),
        ({"watch": "L"}, r"less is better.*'L'"),
        ({"track": "paper"}, "unknown tracker 'paper'.*mlflow"),
        ({"sampling": "balanced", "class_weights": "balanced"}, "twice"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(KonkyoError, match=told):
        Recipe(**wrong)

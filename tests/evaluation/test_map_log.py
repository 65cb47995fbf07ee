"""Maps of the same images in every epoch, in a loop of one's own and in Lightning's."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import konkyo
from konkyo.training.trackers import TensorBoard, WandB


class Net(nn.Module):
    """A small classifier with batch statistics, which training mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((-2, -1)))


class Numbers:
    """Takes numbers alone."""

    def __init__(self) -> None:
        self.numbers: list[tuple[int, dict[str, float]]] = []

    def log(self, numbers: Mapping[str, float], step: int, /) -> None:
        self.numbers.append((step, dict(numbers)))

    def close(self) -> None:
        pass


class Pictures(Numbers):
    """Takes pictures, too."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[int, dict[str, Image.Image]]] = []

    def log_pictures(self, pictures: Mapping[str, Image.Image], step: int, /) -> None:
        self.pictures.append((step, dict(pictures)))


def images() -> Tensor:
    return torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_numbers_and_pictures_are_those_of_the_explanation() -> None:
    net, tracker = Net(), Pictures()
    result = konkyo.log_maps(tracker, net, images(), step=7, target=1)
    expected = konkyo.explain(net, images(), target=1)
    assert torch.equal(result.maps, expected.maps)
    ((step, numbers),) = tracker.numbers
    assert step == 7
    ok = sum(d.kind == "ok" for d in expected.diagnosis) / 3
    assert numbers == pytest.approx({"maps/score": expected.scores.mean().item(), "maps/ok": ok})
    ((step, pictures),) = tracker.pictures
    assert step == 7
    assert len(pictures) == 3
    for row, (name, picture) in enumerate(pictures.items()):
        assert name.startswith("maps/")
        assert np.array_equal(np.asarray(picture), np.asarray(expected.overlay(row, brightness="full")))


def test_a_tracker_of_numbers_gets_numbers_and_rows_of_one_image_are_told_apart() -> None:
    numbers, pictures = Numbers(), Pictures()
    konkyo.log_maps(numbers, Net(), images(), step=0, name="gaze")
    assert set(numbers.numbers[0][1]) == {"gaze/score", "gaze/ok"}
    konkyo.log_maps(pictures, Net(), images()[:1], step=0, target=konkyo.TopK(2))
    first, second = pictures.pictures[0][1]
    assert second == f"{first} (2)"


def test_a_loop_goes_on_as_if_nothing_had_been_logged() -> None:
    """Weights, batch statistics, gradients, modes and random numbers are the same bits as without the maps."""

    def trained(tracker: Any) -> tuple[Net, list[Tensor]]:
        torch.manual_seed(0)
        net = Net()
        optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        draws = []
        for step in range(3):
            x = torch.rand(4, 3, 12, 16)
            loss = nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 0, 1]))
            optimiser.zero_grad()
            loss.backward()
            if tracker is not None:
                net.head.weight.requires_grad_(step != 1)  # frozen or not
                net.head.weight.requires_grad_(True)
                before = copy.deepcopy([p.grad for p in net.parameters()])
                with torch.inference_mode(step == 2):
                    konkyo.log_maps(tracker, net, images(), step=step)
                assert net.training
                assert net.body[1].training
                for p, grad in zip(net.parameters(), before, strict=True):
                    assert p.grad is not None
                    assert grad is not None
                    assert torch.equal(p.grad, grad)
            optimiser.step()
            draws.append(torch.rand(2))
        return net, draws

    plain, draws = trained(None)
    tracker = Pictures()
    logged, others = trained(tracker)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, logged.state_dict()[name]), name
    assert all(map(torch.equal, draws, others))
    assert [step for step, _ in tracker.pictures] == [0, 1, 2]
    first, *_, last = (np.asarray(next(iter(p.values()))) for _, p in tracker.pictures)
    assert not np.array_equal(first, last)


def test_libraries_get_pictures_in_their_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, wandb, writers = list[Any](), ModuleType("wandb"), ModuleType("torch.utils.tensorboard")

    class Run:
        id = "r"

        def log(self, values: dict[str, Any], step: int) -> None:
            calls.append((step, values))

    class Writer:
        def __init__(self, _folder: str) -> None:
            pass

        def add_text(self, *_: Any) -> None:
            pass

        add_scalar = add_text

        def add_image(self, name: str, pixels: Any, step: int, dataformats: str) -> None:
            calls.append((step, name, pixels.shape, pixels.dtype, dataformats))

        def flush(self) -> None:
            pass

    wandb.init = lambda **_: Run()  # type: ignore[attr-defined]
    wandb.Image = lambda picture: ("image", picture.size)  # type: ignore[attr-defined]
    writers.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writers)
    picture = Image.new("RGB", (5, 4))
    WandB(tmp_path, {}).log_pictures({"maps/a": picture}, 3)
    TensorBoard(tmp_path, {}).log_pictures({"maps/a": picture}, 4)
    assert calls == [(3, {"maps/a": ("image", (5, 4))}), (4, "maps/a", (4, 5, 3), np.dtype("uint8"), "HWC")]


LIGHTNING = """
import sys, warnings
import lightning, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import konkyo

warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from evaluation.test_map_log import Net, Pictures, images

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def validation_step(self, batch, _):
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def trained(*callbacks):
    torch.manual_seed(0)
    module = Module()
    data = DataLoader(TensorDataset(torch.rand(8, 3, 12, 16), torch.arange(8) % 2), batch_size=4)
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks))
    trainer.fit(module, data, data)
    return module

tracker = Pictures()
logged = trained(konkyo.MapLogger(images(), tracker=tracker, network=lambda m: m.net, every=2, target=0))
plain = trained()
assert all(torch.equal(v, logged.state_dict()[n]) for n, v in plain.state_dict().items())
assert logged.training == plain.training
assert [step for step, _ in tracker.pictures] == [0, 2], tracker.pictures
assert all(len(p) == 3 for _, p in tracker.pictures)
assert set(tracker.numbers[0][1]) == {"maps/score", "maps/ok"}
print("well")
"""


def test_lightning_calls_it_at_the_end_of_validations() -> None:
    """In a process of its own: Lightning warns on import and changes what warnings are shown."""
    pytest.importorskip("lightning")
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", LIGHTNING, tests], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("well\n"), done.stdout + done.stderr

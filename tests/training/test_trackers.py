"""Where a training's numbers go: what each library is asked for, and that a training that goes on keeps its run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from konkyo import KonkyoError
from konkyo.training.devices import fabric_of
from konkyo.training.loop import Fitted, fit
from konkyo.training.recipe import Recipe
from konkyo.training.trackers import tracker_of

ROWS = [{"rate": 0.5, "train_loss": 1.25, "valid_L": math.nan}, {"rate": 0.25, "train_loss": 0.5, "valid_L": 0.125}]


class Entropy(nn.Module):
    def forward(self, logits: Tensor, labels: Tensor, _epoch: int) -> dict[str, Tensor]:
        return {"loss": functional.cross_entropy(logits, labels)}


def trained(folder: Path, recipe: Recipe, tracker: Any = None) -> Fitted:
    return fit(
        nn.Linear(3, 2),
        Entropy(),
        [(torch.ones(3) * i, i % 2) for i in range(4)],  # type: ignore[arg-type]
        recipe,
        folder,
        judge=lambda _n, epoch: {"loss": 1.0 / epoch},
        keep=lambda _n: None,
        fabric=fabric_of(accelerator="cpu"),
        tracker=tracker,
    )


def used(name: str, folder: Path) -> None:
    tracker = tracker_of(name, folder, {"epochs": 2, "optimiser": "adam"})
    for epoch, row in enumerate(ROWS, 1):
        tracker.log(row, epoch)
    tracker.close()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the library; returns what it was asked for."""
    calls, module = list[Any](), ModuleType("wandb")

    def init(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(
            id=options["id"] or "abc",
            log=lambda numbers, step: calls.append((step, numbers)),
            finish=lambda: calls.append("end"),
        )

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the library; returns what it was asked for."""
    calls, module = list[Any](), ModuleType("mlflow")

    def start_run(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id=options.get("run_id") or "r1"))

    module.start_run = start_run  # type: ignore[attr-defined]
    module.log_params = calls.append  # type: ignore[attr-defined]
    module.log_metrics = lambda numbers, step: calls.append((step, numbers))  # type: ignore[attr-defined]
    module.end_run = lambda: calls.append("end")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return calls


def test_wandb(tmp_path: Path, wandb: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    folder = tmp_path / "gaze" / "lambda_3" / "seed_0"
    used("wandb", folder)
    begun = wandb[0]
    assert (begun["project"], begun["id"], begun["resume"], begun["dir"]) == ("konkyo", None, "allow", str(folder))
    assert begun["name"].endswith("gaze/lambda_3/seed_0")
    assert begun["config"] == {"epochs": 2, "optimiser": "adam"}
    assert wandb[2:] == [(2, {"rate": 0.25, "train/loss": 0.5, "valid/L": 0.125}), "end"]
    used("wandb", folder)
    assert wandb[4]["id"] == "abc"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    used("wandb", tmp_path / "other")
    assert (wandb[8]["project"], wandb[8]["id"]) == ("mine", None)


def test_mlflow(tmp_path: Path, mlflow: list[Any]) -> None:
    used("mlflow", tmp_path / "run")
    assert mlflow[0]["run_name"].endswith("/run")
    assert mlflow[1:] == [
        {"epochs": 2, "optimiser": "adam"},
        (1, {"rate": 0.5, "train/loss": 1.25}),
        (2, {"rate": 0.25, "train/loss": 0.5, "valid/L": 0.125}),
        "end",
    ]
    used("mlflow", tmp_path / "run")
    assert mlflow[5:7] == [{"run_id": "r1"}, (1, {"rate": 0.5, "train/loss": 1.25})]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    used("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.25), (2, 0.5)]
    assert set(events.Tags()["scalars"]) == {"rate", "train/loss", "valid/L"}


def test_tensorboard_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, module = list[Any](), ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            calls.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def add_text(self, *_: Any) -> None: ...
        def flush(self) -> None: ...
        def close(self) -> None:
            calls.append("end")

    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    used("tensorboard", tmp_path)
    assert calls[0] == str(tmp_path / "tensorboard")
    assert calls[2] == ("train/loss", 1.25, 1)
    assert calls[-1] == "end"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_library_that_is_not_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(KonkyoError, match=f"^{name} is not installed .*: pip install {name}"):
        trained(tmp_path / "run", Recipe(1, 4, track=name))
    assert not (tmp_path / "run").exists()


def test_a_training_logs_its_epochs(tmp_path: Path, mlflow: list[Any]) -> None:
    recipe = Recipe(2, 4, track="mlflow")
    fitted = trained(tmp_path, recipe)
    assert [step for step, _ in mlflow[2:4]] == [1, 2]
    assert mlflow[3][1] == {
        "rate": fitted.epochs[1]["rate"],
        "train/loss": fitted.epochs[1]["train_loss"],
        "valid/loss": 0.5,
    }
    assert mlflow[4:] == ["end"]
    trained(tmp_path, recipe)  # nothing is left to do
    assert len(mlflow) == 5
    trained(tmp_path, Recipe(3, 4, track="mlflow"))
    assert mlflow[5] == {"run_id": "r1"}
    assert [step for step, _ in mlflow[6:-1]] == [3]


def test_a_tracker_of_ones_own(tmp_path: Path) -> None:
    seen = list[Any]()
    own = SimpleNamespace(log=lambda numbers, step: seen.append((step, sorted(numbers))), close=lambda: None)
    trained(tmp_path, Recipe(2, 4), own)
    assert seen == [(1, ["rate", "train_loss", "valid_loss"]), (2, ["rate", "train_loss", "valid_loss"])]

"""The recipes for a plain loop, Lightning and the Trainer of transformers run, evaluate every epoch, and go on."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.paths import EXAMPLES

SMALL = ["--data", "lesions:40", "--size", "32"]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    return import_module(request.param)


@pytest.mark.parametrize("recipe", ["gaze_loop"], indirect=True)
def test_a_plain_loop(recipe: ModuleType, tmp_path: Path) -> None:
    whole = recipe.main([*SMALL, "--epochs", "3", "--out", str(tmp_path / "whole")])
    assert [line["epoch"] for line in whole] == [1, 2, 3]
    assert all(line["gaze"] >= 0 for line in whole)
    first = recipe.main([*SMALL, "--epochs", "2", "--out", str(tmp_path / "parts")])
    rest = recipe.main([*SMALL, "--epochs", "3", "--out", str(tmp_path / "parts")])
    assert first + rest == whole
    saved = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert saved["gaze"]["seen"].any()


@pytest.mark.filterwarnings("ignore")
def test_lightning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    recipe = import_module("gaze_lightning")
    begun = recipe.main([*SMALL, "--epochs", "2", "--out", str(tmp_path)])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(saved["gaze.means"], begun.gaze.means.cpu())
    assert saved["gaze.seen"].any()
    gone_on = recipe.main([*SMALL, "--epochs", "3", "--out", str(tmp_path)])
    assert gone_on.trainer.current_epoch == 3
    assert gone_on.trainer.global_step == begun.trainer.global_step * 3 // 2
    metrics = gone_on.trainer.callback_metrics
    assert float(metrics["gaze"]) >= 0
    assert 0 <= float(metrics["accuracy"]) <= 1


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    recipe = import_module("gaze_trainer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun = recipe.main([*SMALL, "--epochs", "2", "--out", str(tmp_path)])
    evaluated = [line for line in begun.state.log_history if "eval_loss" in line]
    assert len(evaluated) == 2
    seen = begun.gaze.state_dict()
    assert seen["seen"].any()
    begun.model.requires_grad_(False)
    weights = {name: value.clone() for name, value in begun.model.state_dict().items()}
    networks, loaded = [], []
    resume = recipe.GazeTrainer._load_from_checkpoint

    def resumed(self: object, folder: str, model: torch.nn.Module | None = None) -> None:
        resume(self, folder, model)
        networks.append({name: value.clone() for name, value in self.model.state_dict().items()})  # type: ignore[attr-defined]

    monkeypatch.setattr(recipe.GazeTrainer, "_load_from_checkpoint", resumed)
    load = recipe.ConsistencyLoss.load_state_dict

    def noted(self: torch.nn.Module, state: dict[str, torch.Tensor]) -> object:
        loaded.append({name: value.clone() for name, value in state.items()})
        return load(self, state)

    monkeypatch.setattr(recipe.ConsistencyLoss, "load_state_dict", noted)
    gone_on = recipe.main([*SMALL, "--epochs", "3", "--out", str(tmp_path)])
    assert gone_on.state.global_step == begun.state.global_step * 3 // 2
    assert all(torch.equal(value, weights[name]) for name, value in networks[0].items())
    assert torch.equal(loaded[0]["means"], seen["means"].cpu())
    assert len([line for line in gone_on.state.log_history if "eval_loss" in line]) == 3

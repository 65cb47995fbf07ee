"""Trained networks in folders: weights as safetensors, and a manifest from which the network is built again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from konkyo.errors import KonkyoError, unknown
from konkyo.models import Model, Preprocess
from konkyo.models.base import adapter
from konkyo.models.checkpoints import read_weights
from konkyo.models.networks.architectures import ARCHITECTURES
from konkyo.utils.files import plain, read_json, replacing, write_text
from konkyo.version import __version__

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"


@dataclass(frozen=True)
class Plan:
    """How a network is built and fed: all that its weights do not say."""

    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    trained: Mapping[str, Any] = field(default_factory=dict)
    """On what and how, for whoever reads the manifest."""

    def build(self) -> nn.Module:
        """Returns the network with weights drawn from the global random state. KonkyoError: an unknown architecture."""
        if self.architecture not in ARCHITECTURES:
            raise unknown("architecture", self.architecture, ARCHITECTURES)
        try:
            return ARCHITECTURES[self.architecture](**self.arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise KonkyoError(f"architecture {self.architecture!r}: {error}") from error


def initialised(plan: Plan, seed: int, *, pretrained: bool = False) -> nn.Module:
    """Returns the network with the weights that a seed draws, or with its backbone's own where `pretrained`.

    The global random state stays as it is.
    """
    if pretrained:
        plan = replace(plan, arguments={**plan.arguments, "weights": "default"})
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return plan.build()


def save_trained(folder: Path, network: nn.Module, plan: Plan) -> None:
    """Writes the network's weights and the manifest, each whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
    manifest = {"konkyo": __version__, "torch": torch.__version__, **asdict(plan)}
    write_text(folder / MANIFEST, json.dumps(plain(manifest), indent=1) + "\n")


def read_plan(folder: str | Path) -> Plan:
    """Returns what the manifest in a folder says. KonkyoError: no manifest, or one that says something else."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        inside = sorted(manifest.parent.as_posix() for manifest in Path(folder).glob(f"*/**/{MANIFEST}"))
        near = f"; there is one in {', '.join(inside[:3])}{' ...' if inside[3:] else ''}" if inside else ""
        raise KonkyoError(f"{folder} holds no trained network: {MANIFEST} was expected{near}")
    try:
        manifest = read_json(path)
        pairs: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in manifest["preprocess"].items()}
        preprocess = Preprocess(**pairs)
        name, arguments, classes = str(manifest["architecture"]), dict(manifest["arguments"]), manifest["classes"]
        if not isinstance(classes, list) or not all(isinstance(label, str) for label in classes):
            raise ValueError(f"classes are a list of names; got {classes!r}")
        if arguments.get("classes", len(classes)) != len(classes):
            raise ValueError(f"{arguments['classes']} classes have {len(classes)} names")
        _require_bounded(arguments)
        return Plan(name, arguments, tuple(classes), preprocess, manifest.get("trained", {}))
    except (KonkyoError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise KonkyoError(f"{path} is no manifest of a trained network: {error}") from error


_MOST = {"classes": 1_000_000, "channels": 1024, "samples": 10_000, "number": 100}
"""Arguments that decide how much memory a network takes, or how long it runs: from 1 to these."""


def _require_bounded(arguments: Mapping[str, Any]) -> None:
    """Checks the numbers of a manifest before anything is made of them. ValueError: one that is out of bounds."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            _require_bounded(value)
        elif name in _MOST:
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST[name]:
                raise ValueError(f"{name} is a whole number from 1 to {_MOST[name]}; got {str(value)[:40]}")
        elif isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= 1e6):
            raise ValueError(f"{name} is a number of at most a million; got {str(value)[:40]}")
        elif not isinstance(value, (str, int, float, type(None))):
            raise ValueError(f"{name} is a number or a name; got {type(value).__name__}")


@adapter("trained")
def load(name: str, weights: str | Path | None) -> Model:
    """Returns the network of `trained/FOLDER`, as training left it.

    `weights`: "default" (the folder's), None (random) or a file.
    """
    folder = Path(name).expanduser()
    plan = read_plan(folder)
    if ".py:" in str(plan.arguments.get("backbone", "")):  # a manifest is data, and must not choose what code runs
        raise KonkyoError(
            f"the backbone in {folder / MANIFEST} is a function in a file, {plan.arguments['backbone']!r}, which is "
            f"not run from here: build the network yourself, konkyo.models.trained.read_plan({str(folder)!r}).build(), "
            f"and load {WEIGHTS} into it"
        )
    module = plan.build()
    if weights is not None:
        path = folder / WEIGHTS if weights == "default" else Path(weights)
        try:
            module.load_state_dict(read_weights(path))
        except RuntimeError as error:
            raise KonkyoError(f"{path} does not fit its manifest: {' '.join(str(error).split())[:300]}") from error
    return Model(module.eval(), plan.preprocess, plan.classes, f"trained/{name}")

"""Weights with a file beside them that says how they came about, for the scripts that train."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from konkyo.utils.files import replacing


def write(
    out: Path,
    model: nn.Module,
    name: str,
    *,
    seed: int,
    libraries: tuple[str, ...] = ("torch",),
    training_data: Mapping[str, object],
    results: Mapping[str, object],
) -> None:
    """Writes the model's weights to `out` (safetensors) and the provenance to the .json beside it, and prints that.

    `name` is where the model is built, `libraries` those whose versions matter.
    """
    with replacing(out) as new:
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, new)
    provenance = {
        "model": name,
        "command": shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        **{library: version(library) for library in libraries},
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "training_data": dict(training_data),
        **results,
    }
    text = json.dumps(provenance, indent=2) + "\n"
    out.with_suffix(".json").write_text(text)
    print(text)

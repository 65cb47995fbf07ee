"""The tables of the founding papers in their form, on any model and data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.data.samples import Data, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError, silenced
from konkyo.evaluation.evaluate import RIGHT, evaluate
from konkyo.evaluation.result import Evaluation, Table, markdown
from konkyo.explanation.explain import explain
from konkyo.models import Model, as_model
from konkyo.targets.detections import Detections
from konkyo.tasks import ClassificationTask, DetectionTask
from konkyo.tasks.base import Matching
from konkyo.utils.files import plain, replacing, write_text
from konkyo.utils.progress import Progress

TABLE_OF_CLASSIFIERS = ("deletion", "insertion", "ebpg@mask", "pointing_game@evidence")
TABLE_OF_DETECTORS = DetectionTask.columns
NODES = (2, 4, 8, 16, 32, 64)
PATHS = ("ig_odam", "adaptive_ig_odam")
REFERENCE_NODES = 257
"""Of the integral that others are held against."""


@dataclass(frozen=True, eq=False)
class Convergence:
    """How far paths of few nodes are from the integral: a row per method and number of nodes."""

    nodes: tuple[int, ...]
    errors: dict[str, Tensor]
    """method -> (nodes, R): |map - reference|_1 / |reference|_1 of the signed maps."""

    def table(self) -> Table:
        """Returns a row per number of nodes: the median, and on how many instances adaptive nodes are nearer."""
        uniform, adaptive = (self.errors[name] for name in PATHS)
        rows = []
        for k, count in enumerate(self.nodes):
            further = adaptive[k] - uniform[k]
            differ = further[further.isfinite() & (further != 0)]
            nearer = f"{int((differ < 0).sum())} of {len(differ)}" if len(differ) else "all alike"
            medians = [f"{float(errors[k].nanmedian()):.4f}" for errors in self.errors.values()]
            rows.append([str(count), *medians, nearer])
        return ["nodes", *self.errors, "adaptive nearer"], rows


def tables(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples,
    *,
    limit: int | None = None,
    matching: Matching = RIGHT,
    seed: int = 0,
    steps: int = 100,
    also: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Tables 1 and 2 of the paper on IG-ODAM for a detector; for a classifier the seven CAMs and RISE.

    Detectors: deletion and insertion (`steps` steps, random values, the object's box as budget), VEA on masks and EBPG
    in boxes of the six methods. Classifiers: deletion, insertion, EBPG on masks, and how often the map is highest on
    the part that alone decides the class. `also` names methods beside those. The rest is as in `evaluate`.
    """
    adapted = as_model(model)
    methods, columns = adapted.task.methods, adapted.task.columns
    if isinstance(adapted.task, ClassificationTask):
        methods, columns = (*methods, "rise"), TABLE_OF_CLASSIFIERS
    methods = tuple(dict.fromkeys((*methods, *also)))
    shorter = [_of_steps(name, steps) for name in columns]
    return evaluate(
        adapted,
        data,
        methods,
        shorter,
        limit=limit,
        matching=matching,
        seed=seed,
        out=out,
        progress=progress,
        **options,
    )


def _of_steps(name: str, steps: int) -> str:
    if steps == 100 or not name.startswith(("deletion", "insertion")):
        return name
    return f"{name[:-1]},steps={steps})" if name.endswith(")") else f"{name}(steps={steps})"


def convergence(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples,
    *,
    nodes: Sequence[int] = NODES,
    limit: int | None = None,
    matching: Matching = RIGHT,
    seed: int = 0,
    progress: Progress | None = None,
) -> Convergence:
    """Returns how fast uniform and adaptive nodes approach the integral of IG-ODAM, at equal numbers of them.

    The reference is the trapezoid rule on 257 uniform nodes. Adaptive paths begin with half of their nodes, 2 to
    9. KonkyoError: no detector, or nothing is detected.
    """
    adapted = as_model(model)
    if not isinstance(adapted.task, DetectionTask):
        raise KonkyoError(f"paths are compared on a detector's instances; {adapted.name} is no detector")
    chosen, target = samples(data, limit=limit, seed=seed), Detections(threshold=matching.threshold)
    errors: dict[str, list[list[Tensor]]] = {name: [[] for _ in nodes] for name in PATHS}
    for index, sample in enumerate(chosen):

        def maps(name: str, count: int, picture: Any = sample.image, **more: Any) -> Tensor:
            with silenced():  # blank maps have no error: NaN
                return (
                    explain(adapted, picture, method=name, target=target, nodes=count, **more)
                    .signed.flatten(1)
                    .double()
                )

        reference = maps("ig_odam", REFERENCE_NODES)
        for name in PATHS:
            for k, count in enumerate(nodes):
                initial = {"initial": _initial(count)} if name == "adaptive_ig_odam" else {}
                off, whole = (maps(name, count, **initial) - reference).abs().sum(1), reference.abs().sum(1)
                errors[name][k].append(torch.where(whole > 0, off / whole, torch.nan).cpu())
        if progress is not None:
            progress(index + 1, len(chosen))
    rows = {name: torch.stack([torch.cat(values) for values in of]) for name, of in errors.items()}
    if not rows[PATHS[0]].numel():
        raise KonkyoError(f"nothing detected with a score above {matching.threshold:g}")
    return Convergence(tuple(nodes), rows)


def sweep(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples,
    *,
    nodes: Sequence[int] = NODES,
    limit: int | None = None,
    matching: Matching = RIGHT,
    seed: int = 0,
    steps: int = 100,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[int, Evaluation]:
    """The columns of the detectors' table for uniform and adaptive nodes, at equal numbers of them: {nodes: table}.

    Adaptive paths begin as in `convergence`; the rest is as in `tables`. `out`: a folder, with one for every number.
    """
    columns = [_of_steps(name, steps) for name in TABLE_OF_DETECTORS]
    return {
        count: evaluate(
            model,
            data,
            PATHS,
            columns,
            limit=limit,
            matching=matching,
            seed=seed,
            out=None if out is None else Path(out) / f"{count}-nodes",
            progress=progress,
            nodes=count,
            initial=_initial(count),
        )
        for count in nodes
    }


def sweep_table(evaluations: Mapping[int, Evaluation]) -> Table:
    """Returns a row per number of nodes: what uniform and adaptive nodes give, and p of their difference."""
    columns = next(iter(evaluations.values())).columns
    rows = []
    for count, table in evaluations.items():
        cells = []
        for c in columns:
            uniform, adaptive = (table.cell(name, c.name) for name in PATHS)
            p = [cell.p for cell in (uniform, adaptive) if not math.isnan(cell.p)]
            cells.append(f"{uniform.value:.3f}, {adaptive.value:.3f}" + (f" (p {p[0]:.2f})" if p else ""))
        rows.append([str(count), *cells])
    return ["nodes", *(f"{c.name}: uniform, adaptive" for c in columns)], rows


def _initial(nodes: int) -> int:
    """Returns how many nodes an adaptive path begins with: half of them, 2 to 9."""
    return min(9, max(2, nodes // 2))


def save(result: Convergence, folder: str | Path) -> Path:
    """Writes convergence.md, .json and .png into a folder. -> the folder"""
    from konkyo.draw.curves import convergence_figure

    folder = Path(folder)
    errors = {name: of.tolist() for name, of in result.errors.items()}
    medians = {name: of.nanmedian(1).values.tolist() for name, of in result.errors.items()}
    write_text(folder / "convergence.md", markdown(result.table()))
    write_text(folder / "convergence.json", json.dumps(plain({"nodes": result.nodes, "errors": errors})))
    with replacing(folder / "convergence.png") as temporary:
        convergence_figure(result.nodes, medians).save(temporary, format="png")
    return folder

"""The tables of the founding papers in their form, on any model and data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from konkyo.data.samples import Data, Samples, samples
from konkyo.data.sets.scenes import Scenes
from konkyo.errors import KonkyoError, silenced
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.plan import RIGHT, digest
from konkyo.evaluation.result import Evaluation, Table, markdown
from konkyo.explanation.explain import explain
from konkyo.explanation.result import Explanation
from konkyo.models import Model, as_model
from konkyo.targets.detections import Detections
from konkyo.tasks import ClassificationTask, DetectionTask
from konkyo.tasks.base import Matching
from konkyo.utils.files import plain, replacing, write_text
from konkyo.utils.ledger import Ledger, read_ledger
from konkyo.utils.progress import Progress
from konkyo.utils.tensors import overlap

TABLE_OF_CLASSIFIERS = ("deletion", "insertion", "ebpg@mask", "pointing_game@evidence")
TABLE_OF_DETECTORS = DetectionTask.columns
NODES = (2, 4, 8, 16, 32, 64)
PATHS = ("ig_odam", "adaptive_ig_odam")
REFERENCE_NODES = 257
"""Of the integral that others are held against."""
RECORD = "paths.jsonl"
"""What `convergence` keeps of every sample."""
JUMP = 0.5
"""A box jumps where its IoU with that of the node before is lower; where only one of the two is there it does not."""


@dataclass(frozen=True, eq=False)
class Convergence:
    """How far paths of few nodes are from the integral: a row per method and number of nodes."""

    nodes: tuple[int, ...]
    errors: dict[str, Tensor]
    """method -> (nodes, R): |map - reference|_1 / |reference|_1 of the signed maps."""
    images: tuple[str, ...] = ()
    """(R,) the name of every instance's image."""
    tracked: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(R,) 1 where the matching box never jumps on the reference's path (`JUMP`), else 0."""

    @classmethod
    def read(cls, folder: str | Path) -> Convergence:
        """Reads what `convergence` has kept in a folder so far. KonkyoError: there is no record of it."""
        settings, parts = read_ledger(Path(folder) / RECORD)
        return _gathered(parts, settings["nodes"])

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
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Convergence:
    """Returns how fast uniform and adaptive nodes approach the integral of IG-ODAM, at equal numbers of them.

    The reference is the trapezoid rule on 257 uniform nodes. Adaptive paths begin with half of their nodes, 2 to 9.
    `out`: a folder where every sample's errors are kept as soon as they are known, and where an interrupted run goes
    on. KonkyoError: no detector, or nothing is detected.
    """
    adapted = as_model(model)
    if not isinstance(adapted.task, DetectionTask):
        raise KonkyoError(f"paths are compared on a detector's instances; {adapted.name} is no detector")
    chosen = samples(data, limit=limit, seed=seed)
    settings = {
        "model": adapted.name,
        "weights": digest(adapted.module),
        "preprocess": repr(adapted.preprocess),
        "data": chosen.source or type(data).__name__,
        "samples": len(chosen),
        "matching": str(matching),
        "seed": seed,
        "nodes": list(nodes),
        "reference": REFERENCE_NODES,
    }
    with Ledger(None if out is None else Path(out) / RECORD, settings, free=("samples",)) as ledger:
        for index, name in enumerate(chosen.names):
            if name not in ledger.entries:
                ledger.add(name, _path_errors(adapted, chosen[index].image, nodes, matching.threshold))
            if progress is not None:
                progress(index + 1, len(chosen))
        parts = ledger.entries
    result = _gathered({name: parts[name] for name in chosen.names}, nodes)
    if not result.images:
        raise KonkyoError(f"nothing detected with a score above {matching.threshold:g}")
    return result


def _gathered(parts: Mapping[str, Any], nodes: Sequence[int]) -> Convergence:
    """Returns what was recorded of the samples as one result."""
    images = tuple(name for name, part in parts.items() for _ in part["tracked"])
    tracked = torch.tensor([value for part in parts.values() for value in part["tracked"]], dtype=torch.float64)
    empty = torch.zeros(len(nodes), 0, dtype=torch.float64)
    of_parts = {name: [_of_nodes(part["errors"][name]) for part in parts.values()] for name in PATHS}
    return Convergence(
        tuple(nodes), {name: torch.cat([empty, *of], 1) for name, of in of_parts.items()}, images, tracked
    )


def _of_nodes(errors: Sequence[Sequence[float | None]]) -> Tensor:
    """Returns the errors of one sample as a tensor (nodes, R); what JSON has no number for is NaN."""
    known = [[math.nan if error is None else error for error in of] for of in errors]
    return torch.tensor(known, dtype=torch.float64).view(len(known), len(known[0]))


def _path_errors(model: Model, picture: Any, nodes: Sequence[int], threshold: float) -> dict[str, Any]:
    """Returns the errors of both kinds of paths (nodes, R) of one picture, and whether its instances are tracked."""
    target = Detections(threshold=threshold)

    def explained(name: str, count: int, **more: Any) -> Explanation:
        with silenced():  # blank maps have no error: NaN
            return explain(model, picture, method=name, target=target, nodes=count, **more)

    reference = explained("ig_odam", REFERENCE_NODES)
    integral = reference.signed.flatten(1).double()
    whole, errors = integral.abs().sum(1), dict[str, list[Any]]()
    for name in PATHS:
        errors[name] = []
        for count in nodes:
            initial = {"initial": initial_nodes(count)} if name == "adaptive_ig_odam" else {}
            off = (explained(name, count, **initial).signed.flatten(1).double() - integral).abs().sum(1)
            errors[name].append(plain(torch.where(whole > 0, off / whole, torch.nan).tolist()))
    boxes = torch.zeros(0, 1, 4) if reference.path is None else reference.path.boxes.double().cpu()
    overlaps = [overlap(path[:-1], path[1:]) for path in boxes]  # NaN where one of the two is not there
    return {"errors": errors, "tracked": [float(not (ious < JUMP).any()) for ious in overlaps]}


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
            initial=initial_nodes(count),
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


def initial_nodes(nodes: int) -> int:
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

"""The tables of the paper on IG-ODAM again, on more data, and a verdict on each of its claims.

    python benchmarks/paper_ig_odam.py run FOLDER --model konkyo/scenes-detr --data scenes:200
    python benchmarks/paper_ig_odam.py run FOLDER2 --model deimv2.py:femto --resize 416 --data coco:DIR
    python benchmarks/paper_ig_odam.py report scenes=FOLDER photographs=FOLDER2 --out report.md

`run` measures the parts in order, or those named with `--part`; each has a folder of its own in FOLDER with a line per
image, and goes on where it was interrupted. Two processes may measure different parts. `--limit 2` takes two images of
each part, as a test; a run of more images may follow in the same folder. `report` takes what is there.

table      Grad-CAM, Grad-CAM++, Eigen-CAM, ODAM, IG-ODAM and Adaptive IG-ODAM of 32 nodes
rivals     methods that came after the paper, where this version of konkyo has them
nodes-M    IG-ODAM and Adaptive IG-ODAM of M nodes; adaptive paths begin with half of them, 2 to 9
d_rise     D-RISE of 2,000 masks (`--masks`), on the first images of the others
noise      how far the maps of ODAM, IG-ODAM and Adaptive IG-ODAM move with small noise, on the first images
integral   how far uniform and adaptive nodes are from the integral (257 nodes), on the first images
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import konkyo
from konkyo.errors import KonkyoError, silenced
from konkyo.evaluation.evaluate import evaluate
from konkyo.evaluation.result import Evaluation, markdown
from konkyo.methods.base import methods
from konkyo.models import Model, Preprocess
from konkyo.studies import claims
from konkyo.studies.ig_odam import NODES, PATHS, Convergence, convergence, initial_nodes
from konkyo.tasks.base import Matching
from konkyo.utils.files import write_text

TABLE = ("grad_cam", "grad_cam_pp", "eigen_cam", "odam", "ig_odam", "adaptive_ig_odam")
RIVALS = ("ss_grad_cam", "ss_grad_cam_pp", "detr_attention")
USUAL_NODES = 32
COLUMNS = ("deletion(protocol=seed,steps={})", "insertion(protocol=seed,steps={})", "vea@mask", "ebpg@box", "odi@mask")
FEW_COLUMNS = ("compactness",)
MATCHING = Matching(threshold=0.3, iou=0.7)


@dataclass(frozen=True)
class Part:
    """A part of the measurement: methods by columns on so many images, with the methods' options."""

    name: str
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    limit: int | None
    options: dict[str, int]


def parts(steps: int, subset: int, masks: int) -> dict[str, Part]:
    """Returns all parts by name; `steps` of deletion and insertion, `subset`: images of the costly parts, `masks`: of
    D-RISE."""
    columns = (*(name.format(steps) for name in COLUMNS), *FEW_COLUMNS)
    rivals = tuple(name for name in RIVALS if name in methods())
    noise = ("max_sensitivity(samples=3)",)
    of_nodes = [
        Part(f"nodes-{n}", PATHS, columns, None, {"nodes": n, "initial": initial_nodes(n)})
        for n in NODES
        if n != USUAL_NODES
    ]
    usual = {"nodes": USUAL_NODES, "initial": initial_nodes(USUAL_NODES)}
    every = [
        Part("table", TABLE, columns, None, usual),
        Part("rivals", rivals, columns, None, {}),
        *of_nodes,
        Part("d_rise", ("d_rise",), columns, subset, {"masks": masks}),
        Part("noise", ("odam", *PATHS), noise, subset, usual),
        Part("integral", (), (), subset, {}),
    ]
    return {part.name: part for part in every}


def model_of(name: str, resize: int | None) -> Model:
    """Returns the model; one that does not say how pictures are prepared gets them resized, from 0 to 1."""
    model = konkyo.load(name)
    if model.preprocess is None or resize is not None:
        size = None if resize is None else (resize, resize)
        prepare = Preprocess(**{**model.task.preprocessing, "resize": size})
        model = replace(model, preprocess=prepare)
    return model


def measure(part: Part, model: Model, data: str, limit: int | None, folder: Path) -> None:
    """Measures one part, or goes on with it, and prints what it took."""
    if not part.methods and part.name != "integral":
        print(f"{part.name}: this version of konkyo has none of them", flush=True)
        return
    most = min((n for n in (limit, part.limit) if n is not None), default=None)
    wall, cpu, done = time.perf_counter(), time.process_time(), list[int]()

    def told(count: int, total: int) -> None:
        done[:] = [count, total]
        minutes = (time.process_time() - cpu) / 60
        print(f"\r{part.name}: {count} of {total} images, {minutes:.1f} core-minutes", end="", flush=True)

    with silenced():  # blank maps are counted in the table
        if part.name == "integral":
            convergence(model, data, nodes=NODES, limit=most, matching=MATCHING, out=folder / part.name, progress=told)
        else:
            evaluate(
                model,
                data,
                part.methods,
                part.columns,
                limit=most,
                matching=MATCHING,
                out=folder / part.name,
                progress=told,
                **part.options,
            )
    print(f"\n  {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU", flush=True)


@dataclass(frozen=True, eq=False)
class Measured:
    """What a folder of `run` holds."""

    evaluations: dict[str, Evaluation]
    paths: Convergence | None

    @classmethod
    def of(cls, folder: Path) -> Measured:
        """Reads a folder. KonkyoError: no part in it is complete."""
        found = {path.parent.name: Evaluation.load(path.parent) for path in sorted(folder.glob("*/evaluation.json"))}
        integral = folder / "integral"
        paths = Convergence.read(integral) if (integral / "paths.jsonl").is_file() else None
        if not found and paths is None:
            raise KonkyoError(f"{folder} holds no part of a measurement that is complete")
        return cls(found, paths)

    def values(self, nodes: int) -> claims.Values:
        """Returns the values of all methods, with so many nodes on the paths."""
        of_nodes = [] if nodes == USUAL_NODES else [f"nodes-{nodes}"]
        names = [*of_nodes, "table", "rivals", "d_rise", "noise"]
        if of_nodes and of_nodes[0] not in self.evaluations:
            return {}
        values = dict(claims.values_of(*(self.evaluations[name] for name in names if name in self.evaluations)))
        return values | (claims.path_values(self.paths, nodes) if self.paths is not None else {})

    def rivals(self) -> list[str]:
        """Returns the methods that the paper did not compare with."""
        of_rivals = self.evaluations["rivals"].methods if "rivals" in self.evaluations else ()
        return ["eigen_cam", *of_rivals]


def judged(measured: Measured, nodes: int) -> list[claims.Judgement]:
    """Returns the verdicts on all claims, with so many nodes on the paths."""
    values, conclusion = measured.values(nodes), claims.beyond(measured.rivals())
    every = claims.CLAIMS if conclusion is None else (*claims.CLAIMS, conclusion)
    return [claims.judge(claim, values) for claim in every]


def report(folders: dict[str, Path]) -> str:
    """Returns the report in Markdown."""
    measured = {name: Measured.of(folder) for name, folder in folders.items()}
    usual = {name: judged(of, USUAL_NODES) for name, of in measured.items()}
    lines = ["# The claims of the paper on IG-ODAM", "", claims.RULES, "", f"Paths have {USUAL_NODES} nodes.", ""]
    lines += [markdown(claims.verdict_table(usual))]
    lines += ["## At other numbers of nodes", "", "Claims that have to do with nodes; -: not measured.", ""]
    lines += [markdown(_by_nodes(measured))]
    for name, of in measured.items():
        lines += [f"## {name}", "", markdown(claims.comparison_table(usual[name]))]
        for part, evaluation in of.evaluations.items():
            lines += [f"### {name}: {part}", "", evaluation.markdown()]
        if of.paths is not None:
            instances = f"{len(of.paths.images)} instances of {len(set(of.paths.images))} images"
            lines += [f"### {name}: distance from the integral", "", instances, "", markdown(of.paths.table())]
    return "\n".join(lines)


def _by_nodes(measured: dict[str, Measured]) -> tuple[list[str], list[list[str]]]:
    """Returns a row per claim about nodes and detector: the verdict at every number of nodes."""
    about = {claim.name for claim in claims.CLAIMS if any(c.better in PATHS for c in claim.comparisons)}
    rows = []
    for name, of in measured.items():
        at = {n: {j.claim.name: j for j in judged(of, n)} if of.values(n) else {} for n in NODES}
        for claim in claims.CLAIMS:
            if claim.name in about and claim.name not in ("tracking", "noise"):
                cells = [at[n][claim.name].verdict if claim.name in at[n] else "-" for n in NODES]
                rows.append([claim.name, name, *cells])
    return ["claim", "detector", *map(str, NODES)], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, or go on measuring")
    run.add_argument("folder", type=Path)
    run.add_argument("--model", default="konkyo/scenes-detr", help="as of `konkyo explain`")
    run.add_argument("--data", default="scenes:200", help="as of `konkyo evaluate`")
    run.add_argument("--resize", type=int, help="pictures become so many pixels high and wide")
    run.add_argument("--part", action="append", help="a part; repeatable. All by default")
    run.add_argument("--limit", type=int, help="so many images of each part")
    run.add_argument("--subset", type=int, default=40, help="images of d_rise, noise and integral")
    run.add_argument("--steps", type=int, default=100, help="of deletion and insertion")
    run.add_argument("--masks", type=int, default=2000, help="of D-RISE")
    made = commands.add_parser("report", help="judge the claims")
    made.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    made.add_argument("--out", type=Path, default=Path("report.md"))
    chosen = parser.parse_args(arguments)
    if chosen.command == "report":
        folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in chosen.folders)}
        write_text(chosen.out, report(folders))
        print(f"written to {chosen.out}")
        return
    every = parts(chosen.steps, chosen.subset, chosen.masks)
    unknown = [name for name in chosen.part or () if name not in every]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(every)}")
    model = model_of(chosen.model, chosen.resize)
    for name in chosen.part or every:
        measure(every[name], model, chosen.data, chosen.limit, chosen.folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

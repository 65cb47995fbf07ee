"""The commands that measure explanations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from konkyo.apps.cli.options import (
    Crop,
    Device,
    Images,
    Json,
    Labels,
    Mean,
    ModelName,
    Options,
    PrecisionName,
    Resize,
    Seed,
    Std,
    Weights,
    err,
    files_of,
    out,
    print_table,
    request_of,
    setup_of,
)
from konkyo.errors import KonkyoError
from konkyo.utils.files import plain, write_text

if TYPE_CHECKING:
    from konkyo.evaluation.result import Evaluation

Data = Annotated[
    str,
    typer.Option("--data", "-d", help="scenes:COUNT[,objects=1], lesions:COUNT, coco:DIR, voc:DIR, folder:DIR, ..."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Measure so many samples, drawn by the seed; all.")]
Folder = Annotated[
    Path, typer.Option("--out", help="Folder for tables, curves and values; an interrupted run goes on from there.")
]


def evaluate(
    model: Annotated[
        str, typer.Option("--model", "-m", help="As of `konkyo explain`; 'none': only --maps of other tools.")
    ] = "konkyo/scenes-classifier",
    data: Data = "scenes:100",
    method: Annotated[
        str, typer.Option("--method", help="Several, as in grad_cam,layer_cam, or 'all'; default: the usual ones.")
    ] = "",
    metrics: Annotated[
        str,
        typer.Option("--metrics", help="As in ebpg@box,deletion(protocol=seed); `konkyo metrics` lists them."),
    ] = "",
    maps: Annotated[
        list[Path] | None,
        typer.Option("--maps", help="Folder of maps that another tool made (NAME.npz, .npy or .png); repeatable."),
    ] = None,
    explained: Annotated[
        str, typer.Option("--explained", help="Classifiers: the model's decision, or the sample's label.")
    ] = "decision",
    score: Annotated[float, typer.Option("--score", help="Detectors: what is detected with a higher score.")] = 0.3,
    iou: Annotated[
        float, typer.Option("--iou", help="Detectors: least overlap with a thing of the class; 0: all detections.")
    ] = 0.5,
    unique: Annotated[
        bool, typer.Option("--unique", help="Detectors: only where every method's map has one highest place.")
    ] = False,
    limit: Limit = None,
    to: Folder = Path("konkyo-evaluation"),
    weights: Weights = "default",
    labels: Labels = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    option: Options = None,
    seed: Seed = 0,
    device: Device = None,
    precision: PrecisionName = None,
    as_json: Json = False,
) -> None:
    """Measure explanations on data with truth: a table of methods and metrics, with 95 % intervals and paired tests."""
    from konkyo.evaluation.evaluate import Maps
    from konkyo.evaluation.evaluate import evaluate as run
    from konkyo.tasks.base import Matching

    setup = None if model == "none" else setup_of(model, weights, labels, (resize, crop, mean, std), device)
    names: list[Any] = []
    options: dict[str, Any] = {}
    if setup is not None and (method or not maps):
        names, request = request_of(method or ",".join(setup.model.task.methods), None, None, option)
        options = request["options"]
    if explained not in ("decision", "label"):
        raise KonkyoError(f"--explained is decision or label; got {explained!r}")
    with told("evaluating") as progress:
        found = run(
            None if setup is None else setup.model,
            data,
            [*names, *(Maps(folder) for folder in maps or ())],
            split(metrics) or None,
            explained=explained,  # type: ignore[arg-type] # checked above
            matching=Matching(score, iou, unique),
            limit=limit,
            seed=seed,
            precision=precision,  # type: ignore[arg-type] # checked by the Pass
            out=to,
            progress=progress,
            **options,
        )
    if as_json:
        print(json.dumps(found.description(), indent=1))  # noqa: T201 - standard output is what was asked for
        return
    show(found)
    out.print(f"table, curves and every value in {escape(str(to))}", highlight=False, soft_wrap=True)


def sanity(
    images: Images,
    model: ModelName = "konkyo/scenes-classifier",
    method: Annotated[str, typer.Option("--method", help="Several, as in grad_cam,layer_cam, or 'all'.")] = "grad_cam",
    order: Annotated[str, typer.Option(help="cascading or independent randomisation.")] = "cascading",
    steps: Annotated[int, typer.Option(min=1, help="In how many parts the weights are drawn anew.")] = 10,
    weights: Weights = "default",
    labels: Labels = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    option: Options = None,
    seed: Seed = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Test whether maps depend on what the network has learnt, and on the class that is asked for."""
    from konkyo.data.images import open_image
    from konkyo.evaluation.sanity import random_class, randomisation

    setup = setup_of(model, weights, labels, (resize, crop, mean, std), device)
    names, request = request_of(method, None, None, option)
    pictures = [open_image(file) for file in files_of(images)]
    task = setup.model.task
    if task.instances and len(pictures) > 1:
        raise KonkyoError(f"a {task.noun} is tested on one picture at a time: each has {task.instances} of its own")
    if order not in ("cascading", "independent"):
        raise KonkyoError(f"--order is cascading or independent; got {order!r}")
    verdicts: dict[str, dict[str, Any]] = {}
    with told("drawing weights anew") as progress:
        for done, name in enumerate(names):
            settings = {"seed": seed, **request["options"]}
            tests = [randomisation(setup.model, pictures, name, order=order, steps=steps, **settings)]  # type: ignore[arg-type]
            if not task.instances and setup.model.classes:
                tests.append(random_class(setup.model, pictures, name, **settings))
            verdicts[name] = {
                test.test: {
                    "passed": test.passed,
                    "verdict": test.verdict,
                    "similarity": dict(zip(test.steps, test.similarity.nanmean(1).tolist(), strict=True)),
                }
                for test in tests
            }
            progress(done + 1, len(names))
    if as_json:
        print(json.dumps(plain(verdicts), indent=1))  # noqa: T201 - standard output is what was asked for
        return
    rows = [
        (name, test, "passed" if found["passed"] else "failed", found["verdict"])
        for name, tests in verdicts.items()
        for test, found in tests.items()
    ]
    print_table(["method", "test", "", "what it says"], rows)


benchmark = typer.Typer(help="Reproduce the form of published comparisons.", no_args_is_help=True)


@benchmark.callback()
def _benchmark() -> None:
    """Reproduce the form of published comparisons on a model and data of one's own."""


@benchmark.command()
def paper(
    model: ModelName = "konkyo/scenes-detr",
    data: Data = "scenes:50",
    score: Annotated[float, typer.Option("--score", help="Detectors: what is detected with a higher score.")] = 0.3,
    iou: Annotated[float, typer.Option("--iou", help="Detectors: least overlap with a thing of the class.")] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Of deletion and insertion.")] = 100,
    paths: Annotated[
        int, typer.Option(min=0, help="Detectors: compare uniform and adaptive nodes on so many samples.")
    ] = 10,
    limit: Limit = None,
    to: Folder = Path("konkyo-paper"),
    weights: Weights = "default",
    labels: Labels = None,
    resize: Resize = None,
    crop: Crop = None,
    mean: Mean = None,
    std: Std = None,
    option: Options = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """The tables of the paper on IG-ODAM for a detector; for a classifier the seven CAMs and RISE."""
    from konkyo.evaluation.result import markdown
    from konkyo.studies.ig_odam import convergence, save, sweep, sweep_table, tables
    from konkyo.tasks import DetectionTask
    from konkyo.tasks.base import Matching

    setup = setup_of(model, weights, labels, (resize, crop, mean, std), device)
    _, request = request_of("grad_cam", None, None, option)
    matching = Matching(score, iou)
    with told("explaining and measuring") as progress:
        found = tables(
            setup.model,
            data,
            limit=limit,
            matching=matching,
            seed=seed,
            steps=steps,
            out=to,
            progress=progress,
            **request["options"],
        )
    show(found)
    if isinstance(setup.model.task, DetectionTask) and paths:
        with told("uniform and adaptive nodes") as progress:
            near = convergence(setup.model, data, limit=paths, matching=matching, seed=seed, progress=progress)
        save(near, to)
        out.print("median distance from the integral (257 nodes), as a share of it:", highlight=False)
        print_table(*near.table())
        with told("metrics over nodes") as progress:
            swept = sweep(
                setup.model, data, limit=paths, matching=matching, seed=seed, steps=steps, out=to, progress=progress
            )
        write_text(to / "nodes.md", markdown(sweep_table(swept)))
        print_table(*sweep_table(swept))
    out.print(f"tables, curves and every value in {escape(str(to))}", highlight=False, soft_wrap=True)


def show(found: Evaluation) -> None:
    """Prints the table, and what was left out."""
    head, rows = found.table()
    print_table(
        [cell.strip() for cell in head],
        [[cell.replace("\\*", "*").replace("**", "") for cell in row] for row in rows],
    )
    out.print("* differs from the best of its column: p < 0.05, paired by image, Holm", highlight=False)
    for line in found.remarks():
        out.print(escape(line), highlight=False, soft_wrap=True)


def split(text: str) -> list[str]:
    """Names separated by commas, which may have options in parentheses."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", text) if name.strip()]


class Told(Protocol):
    """Whom to tell how far the work is."""

    def __call__(self, done: int, total: int | None, what: str | None = None) -> None:
        """So much is done, and this is under way."""


@contextmanager
def told(what: str, kept: str = "what was measured is kept", *, shown: bool = True) -> Iterator[Told]:
    """A bar on the terminal, and whom to tell how far the work is; `kept`: what an interruption leaves."""
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task(what, total=None)

        def tell(done: int, total: int | None, what: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=what)

        try:
            yield tell
        except KeyboardInterrupt:
            if shown:
                err.print(f"interrupted: {kept}, and the same command goes on from there")
            raise

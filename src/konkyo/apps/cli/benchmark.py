"""The command that makes the tables of published comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Data,
    Folder,
    Limit,
    MatchingOptions,
    MethodOptions,
    ModelName,
    ModelOptions,
    request_of,
    setup_of,
)
from konkyo.apps.cli.terminal import print_evaluation, print_line, print_table, progress_bar
from konkyo.utils.files import write_text

benchmark = typer.Typer(help="Reproduce the form of published comparisons.", no_args_is_help=True)


@benchmark.callback()
def _benchmark() -> None:
    """Reproduce the form of published comparisons on a model and data of one's own."""


@benchmark.command()
@with_groups
def paper(
    model: ModelName = "konkyo/scenes-detr",
    data: Data = "scenes:50",
    matching_options: MatchingOptions = MatchingOptions(),
    steps: Annotated[int, typer.Option(min=1, help="Of deletion and insertion.")] = 100,
    paths: Annotated[
        int, typer.Option(min=0, help="Detectors: compare uniform and adaptive nodes on so many samples.")
    ] = 10,
    also: Annotated[
        str, typer.Option(help="Methods beside those of the paper, separated by commas: detr_attention,ss_grad_cam.")
    ] = "",
    limit: Limit = None,
    to: Folder = Path("konkyo-paper"),
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
) -> None:
    """The tables of the paper on IG-ODAM for a detector; for a classifier the seven CAMs and RISE."""
    from konkyo.evaluation.result import markdown
    from konkyo.studies.ig_odam import convergence, save, sweep, sweep_table, tables
    from konkyo.tasks import DetectionTask
    from konkyo.tasks.base import Matching

    setup = setup_of(model, model_options)
    _, request = request_of("grad_cam", method_options)
    matching, seed = Matching(matching_options.score, matching_options.iou), method_options.seed
    with progress_bar("explaining and measuring") as progress:
        evaluation = tables(
            setup.model,
            data,
            limit=limit,
            matching=matching,
            seed=seed,
            steps=steps,
            also=[name.strip() for name in also.split(",") if name.strip()],
            out=to,
            progress=progress,
            **request["options"],
        )
    print_evaluation(evaluation)
    if isinstance(setup.model.task, DetectionTask) and paths:
        with progress_bar("uniform and adaptive nodes") as progress:
            near = convergence(
                setup.model, data, limit=paths, matching=matching, seed=method_options.seed, progress=progress
            )
        save(near, to)
        print_line("median distance from the integral (257 nodes), as a share of it:")
        print_table(*near.table())
        with progress_bar("metrics over nodes") as progress:
            swept = sweep(
                setup.model,
                data,
                limit=paths,
                matching=matching,
                seed=seed,
                steps=steps,
                out=to,
                progress=progress,
            )
        write_text(to / "nodes.md", markdown(sweep_table(swept)))
        print_table(*sweep_table(swept))
    print_line(f"tables, curves and every value in {to}")

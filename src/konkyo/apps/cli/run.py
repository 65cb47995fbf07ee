"""The command that explains and measures all images of a data set, into a folder of shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from konkyo.apps.cli.groups import with_groups
from konkyo.apps.cli.options import (
    Json,
    Layers,
    Limit,
    MethodOptions,
    Metrics,
    ModelName,
    ModelOptions,
    PrecisionName,
    TargetOptions,
    layer_of,
    names_in,
    request_of,
    setup_of,
    target_of,
)
from konkyo.apps.cli.sources import require_one_source
from konkyo.apps.cli.terminal import print_json, print_line, progress_bar
from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from konkyo.runs.run import State


@with_groups
def run(
    images: Annotated[
        list[str] | None, typer.Argument(help="Image files, folders (searched through), or quoted globs; or --data.")
    ] = None,
    model: ModelName = "konkyo/scenes-classifier",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="folder:DIR, coco:DIR, scenes:COUNT, ..., tar:PATTERN, parquet:PATTERN, s3://BUCKET/...",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="One or several, as in grad_cam,layer_cam; grad_cam, of detectors odam.")
    ] = "",
    metrics: Metrics = "",
    target_options: TargetOptions = TargetOptions(),
    limit: Limit = None,
    layer: Layers = None,
    precision: PrecisionName = None,
    to: Annotated[
        Path, typer.Option("--out", help="Folder for the shards; the same command goes on where it ended.")
    ] = Path("konkyo-run"),
    batch: Annotated[
        str, typer.Option("--batch", help="Images in one forward, or auto: as memory allows; with --metrics 1.")
    ] = "auto",
    shard: Annotated[
        int | None, typer.Option("--shard", min=1, help="Images in one file; 256, or fewer where several read few.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that read images; default: half of the CPUs.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray for several GPUs or machines.")] = "local",
    actors: Annotated[int, typer.Option("--actors", min=1, help="Ray: so many models explain side by side.")] = 1,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray: the cluster, as in auto or ray://HOST:10001; this machine.")
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Make shards again in which images could not be used.")
    ] = False,
    model_options: ModelOptions = ModelOptions(),
    method_options: MethodOptions = MethodOptions(),
    as_json: Json = False,
) -> None:
    """Explain and measure all images of a data set into shards of Parquet; `konkyo query` and `report` read them."""
    from konkyo.runs.run import run as explain_all

    require_one_source(images, data)
    setup = setup_of(model, model_options)
    names, request = request_of(method or setup.model.task.method, method_options, target_of(setup, target_options))
    with progress_bar("explaining", f"shards that were finished are kept in {to}") as bar:

        def tell(state: State) -> None:
            bar(state.images, state.total, _in_words(state))

        records = explain_all(
            setup.model,
            data if data is not None else list(images or ()),
            to,
            methods=names,
            metrics=names_in(metrics),
            target=request["target"],
            layer=layer_of(layer),
            limit=limit,
            seed=method_options.seed,
            precision=precision,  # type: ignore[arg-type] # checked by the Pass
            batch=_batch(batch),
            shard=shard,
            workers=workers,
            engine=engine,  # type: ignore[arg-type] # checked by run
            actors=actors,
            address=address,
            retry_errors=retry_errors,
            progress=tell,
            **request["options"],
        )
    if as_json:
        print_json(records.description())
    else:
        for line in records.summary():
            print_line(line)
    if records.errors == records.images:
        raise typer.Exit(1)
    if records.errors or records.refused:
        raise typer.Exit(3)


def _in_words(state: State) -> str:
    failures = f", {state.errors} unreadable" if state.errors else ""
    failures += f", {state.refused} refused" if state.refused else ""
    return f"{state.rate:.1f} images/s{failures}"


def _batch(text: str) -> Any:
    """Returns a number of images, or "auto". KonkyoError: something else."""
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise KonkyoError(f"--batch is a number of images, 1 or more, or auto; got {text!r}")
    return int(text)

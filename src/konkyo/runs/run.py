"""run(): every image of a data set explained and measured, into a folder that a later run adds to."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn

from konkyo.data.pieces import Cut, Piece, Pieces, pieces_of
from konkyo.data.samples import Data, Samples
from konkyo.data.sets.scenes import Scenes
from konkyo.engine.capture import measured_outputs
from konkyo.engine.forward import Precision
from konkyo.engine.session import untouched
from konkyo.errors import KonkyoError, KonkyoWarning, NotApplicable, silenced, unknown
from konkyo.evaluation.columns import column
from konkyo.evaluation.plan import RIGHT
from konkyo.explanation.explain import Which, explanations
from konkyo.explanation.reading import Group, prepared_of, read_groups
from konkyo.explanation.run import Where
from konkyo.models import Model, as_model
from konkyo.runs.job import Job, methods_of
from konkyo.runs.local import run_locally, suppress_dead_workers
from konkyo.runs.manifest import MANIFEST, begin, manifest_of
from konkyo.runs.records import Records
from konkyo.runs.shards import FOLDER, Receipt, clean, whole_shards
from konkyo.tasks.base import Matching
from konkyo.utils.ledger import held

Engine = Literal["local", "ray"]
CPU_BATCH, GPU_BATCH = 16, 256
"""The largest batches that "auto" takes: on a CPU larger ones are no faster."""
FIRST = 8
"""So many images are tried for one that tells whether the methods have a place."""


@dataclass(frozen=True)
class State:
    """The state is how far a run is."""

    images: int
    """Done, those of earlier runs among them."""
    total: int | None
    """None where archives do not say how many they hold."""
    shards: int
    total_shards: int
    errors: int
    """Images that could not be used."""
    refused: int
    """Rows of methods that have no place in the model."""
    rate: float
    """Images per second of this run."""
    left: float | None
    """Seconds; None where that is not known."""


class RunProgress(Protocol):
    """It is called with the state after each shard."""

    def __call__(self, state: State, /) -> object:
        """Takes note."""


def run(
    model: Model | nn.Module,
    data: str | Path | Data | Scenes | Samples | Sequence[str | Path],
    out: str | Path,
    *,
    methods: Sequence[Which] = (),
    metrics: Sequence[str] = (),
    target: Any = None,
    layer: Where = None,
    limit: int | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    batch: int | Literal["auto"] = "auto",
    shard: int | None = None,
    matching: Matching = RIGHT,
    workers: int | None = None,
    engine: Engine = "local",
    actors: int = 1,
    address: str | None = None,
    retry_errors: bool = False,
    progress: RunProgress | None = None,
    **options: Any,
) -> Records:
    """Explains every image of `data`, measures the maps, and keeps all of it in the folder `out`. -> its records

    `data`: as `konkyo.data.samples` takes it, files, folders and patterns, or archives ("tar:photos-{000..099}.tar",
    "parquet:s3://bucket/*.parquet"). `methods`, `target`, `layer`, `seed`, `precision`, `options`: as of `compare`; the
    default method is the task's. `metrics`: columns of `konkyo.evaluate` for every map, one image at a time. `limit`:
    so many images, drawn by the seed. `matching`: which of a detector's boxes a thing of the truth belongs to.

    `batch`: images in one forward; "auto" finds it from the free memory. `shard`: so many images become one file; None:
    256, or fewer where each of those that read would get less than two files, and as before where a run goes on.
    `workers`: processes that read; None: half of the CPUs. `engine`: "local", or "ray" with so many `actors` on the
    cluster at `address` (None: this machine), each with a model of its own; the shards are the same.

    A shard is there only when it is whole. The same call goes on where another one ended, also by a signal; shards
    that are damaged are made again. An image that cannot be read becomes a row with its error; `retry_errors` makes
    the shards that have such rows again, as after a store was away. KonkyoError: the folder holds a run with other
    settings or another process writes into it, a method or metric is not known, or a part of the data cannot be opened
    (the others are done first).
    NotApplicable: a method has no place in the model.
    """
    folder, adapted = _local(out), as_model(model)
    if engine not in get_args(Engine):
        raise unknown("engine", engine, get_args(Engine))
    chosen = methods_of(methods or [adapted.task.method])
    readers = max(1, (os.cpu_count() or 2) // 2) if workers is None else workers
    cut = _cut(folder, shard, readers if engine == "local" else actors * (1 if workers is None else max(1, workers)))
    pieces = pieces_of(data, size=cut.size, limit=limit, seed=seed, readers=cut.readers)
    columns = tuple(column(name) for name in metrics)
    job = Job(adapted, chosen, columns, target, layer, options, seed, precision, 1, matching)
    with held(folder / MANIFEST):
        clean(folder)
        done, broken = whole_shards(folder)
        anew = not (done or broken)
        _require_own(folder, shards=not anew)
        for sentence in broken:
            warnings.warn(f"{sentence}: it is made again", KonkyoWarning, stacklevel=2)
        if retry_errors:
            done = {number: receipt for number, receipt in done.items() if not receipt.errors}
        left = [piece for piece in pieces.parts if piece.number not in done]
        first = first_images(adapted, left, readers) if anew else []
        require_place(job, first)
        job = replace(job, batch=_batch(job, batch, None if anew else manifest_of(folder), first))
        begin(folder, job.settings(pieces, cut.size_of(pieces.images)), anew=anew, mended=retry_errors)
        _follow(
            pieces,
            done,
            _engine(engine, job, left, folder, readers if engine == "local" else workers, actors, address),
            progress,
        )
    return Records.open(folder)


def _require_own(folder: Path, *, shards: bool) -> None:
    """KonkyoError: shards or other files are there without a manifest."""
    if (folder / MANIFEST).is_file():
        return
    if shards:
        raise KonkyoError(
            f"{folder} holds shards and no {MANIFEST}, so nobody can tell what they are of; choose another folder, "
            f"or remove {folder / FOLDER}"
        )
    others = [path.name for path in folder.iterdir() if path.name not in (MANIFEST, FOLDER) and path.name[0] != "."]
    if others:
        raise KonkyoError(f"{folder} holds other files ({', '.join(others[:3])}, ...); choose a folder of its own")


def _cut(folder: Path, shard: int | None, readers: int) -> Cut:
    """Returns how images become shards: as asked, or as the run that is there began, or for so many that read."""
    if shard is None and (folder / MANIFEST).is_file():
        with suppress(KonkyoError, KeyError):  # what is wrong with the manifest is told where it is compared
            return Cut(int(manifest_of(folder)["data"]["shard_size"]))
    return Cut(shard, readers=readers)


def _engine(
    engine: Engine, job: Job, left: Sequence[Piece], folder: Path, workers: int | None, actors: int, address: str | None
) -> Iterator[Receipt]:
    if engine == "local":
        return run_locally(job, left, folder, workers=workers or 0)
    from konkyo.runs.cluster import run_on_ray

    return run_on_ray(job, left, folder, actors=actors, workers=workers, address=address)


def _follow(
    pieces: Pieces, done: Mapping[int, Receipt], receipts: Iterator[Receipt], progress: RunProgress | None
) -> None:
    """Runs the engine to its end, and tells how far it is."""
    start, shards = time.perf_counter(), len(done)
    images, errors, refused = (
        sum(getattr(receipt, name) for receipt in done.values()) for name in ("images", "errors", "refused")
    )
    before = images
    for receipt in receipts:
        shards, images = shards + 1, images + receipt.images
        errors, refused = errors + receipt.errors, refused + receipt.refused
        if progress is None:
            continue
        rate = (images - before) / (time.perf_counter() - start)
        rest = None
        if rate and pieces.images is not None:
            rest = (pieces.images - images) / rate
        elif rate:  # as many images in each of the archives that are left
            rest = (len(pieces) - shards) * images / shards / rate
        progress(State(images, pieces.images, shards, len(pieces), errors, refused, rate, rest))


def first_images(model: Model, pieces: Sequence[Piece], workers: int) -> list[Group]:
    """Returns the first images that can be read, FIRST at most, of the first piece that has some; a group each.

    They are read by a process of its own, if any is: a picture may kill its reader.
    """
    for piece in pieces:
        groups = list[Group]()
        with suppress_dead_workers():
            for group in read_groups(model, [piece], batch=1, workers=min(1, workers)):
                groups += [group] if group.tensor is not None else []
                if len(groups) == FIRST:
                    break
        if groups:
            return groups
    return []


def require_place(job: Job, groups: Sequence[Group]) -> None:
    """Explains the first of the images on which the network does not fail. NotApplicable: a method has no place."""
    for group in groups:
        try:
            with silenced():
                results = explanations(job.model, prepared_of(job.model, group), job.methods, **job.request)
        except NotApplicable:
            raise
        except KonkyoError:  # it becomes a row with its error
            continue
        for result in results.values():
            if isinstance(result, NotApplicable):
                raise result
        return


def _batch(job: Job, batch: int | Literal["auto"], manifest: Mapping[str, Any] | None, groups: Sequence[Group]) -> int:
    """Returns how many images share a forward: as asked, as an earlier run did, or as memory allows."""
    if batch != "auto":
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise KonkyoError(f'batch is a number of images, 1 or more, or "auto"; got {batch!r}')
        return batch
    if manifest is not None:
        return int(manifest.get("batch", 1))
    if job.columns:
        return 1  # every image is measured alone
    return automatic_batch(job.model, groups)


def automatic_batch(model: Model, groups: Sequence[Group]) -> int:
    """Returns the batch that fits into half of the free memory, a power of two; on a CPU at most CPU_BATCH.

    One image is run forward, and the outputs of all modules are counted twice: once for their gradients.
    """
    for group in groups:
        images = prepared_of(model, group).images
        session = untouched(model.module, 0)
        try:
            with session, session, torch.no_grad(), measured_outputs(model.module, frozenset()) as outputs:
                model(images)
        except KonkyoError:
            continue
        image_bytes = 2 * max(1, outputs.total)
        most = GPU_BATCH if images.device.type == "cuda" else CPU_BATCH
        fitting = max(1, _free_bytes(images.device) // 2 // image_bytes)
        return 1 << min(most.bit_length() - 1, fitting.bit_length() - 1)
    return 1


def _local(out: str | Path) -> Path:
    """Returns the folder. KonkyoError: an address, where a rename is no rename."""
    if re.match(r"[a-z][a-z0-9+.-]+://", str(out)):
        raise KonkyoError(f"out is a folder on a disk, whose files are copied to a store when it is done; got {out}")
    return Path(out)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 2**31

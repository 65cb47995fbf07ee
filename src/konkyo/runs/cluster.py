"""The engine on a cluster: actors of Ray explain, each pieces of its own; the shards are those of one machine."""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from konkyo.data.pieces import Piece
from konkyo.errors import KonkyoError, NotApplicable, install_hint, warn
from konkyo.explanation.reading import Group, read_groups
from konkyo.models import Model
from konkyo.runs.deaths import Logbook
from konkyo.runs.job import Job
from konkyo.runs.local import TRIES, extras_of
from konkyo.runs.manifest import MANIFEST
from konkyo.runs.shards import Receipt
from konkyo.runs.work import UnopenedError, shards_of
from konkyo.utils.words import counted

WINDOW = 10_000
"""So many pieces are given to Ray at once, for it keeps a record of each."""
IN_A_ROW = 8
"""So many pieces that fail one after the other, for each actor, end the run: it is not the pieces that are wrong."""


class UnsharedError(KonkyoError):
    """A node of the cluster does not see the folder of the run."""


FATAL: Mapping[str, type[KonkyoError]] = {"NotApplicable": NotApplicable, "UnsharedError": UnsharedError}
"""These errors end the run, for the next piece would fail as well."""


@dataclass(frozen=True, eq=False)
class Work:
    """The work is what every actor gets, once, from the object store."""

    job: Job
    """Its model lies on the CPU."""
    pieces: Mapping[int, Piece]
    folder: Path
    device: str
    """Where the model is explained, "cpu" or "cuda"."""
    threads: int
    """So many threads compute."""
    directory: Path
    """Where the driver runs: paths may be relative to it."""


@dataclass(frozen=True)
class Pool:
    """The pool says how many actors there are, and what each takes of the cluster."""

    actors: int
    readers: int
    """So many pieces are read while another one is explained."""
    gpus: int
    """Of each actor."""

    @property
    def cpus(self) -> int:
        """Returns the CPUs of each actor: one for the network, one for each piece that is read meanwhile."""
        return 1 + self.readers

    def places(self, nodes: Iterable[Mapping[str, Any]]) -> int:
        """Returns how many actors have room on nodes, as `ray.nodes` lists them, when nothing else runs there."""
        places = 0
        for node in nodes:
            of_node = node.get("Resources", {}) if node.get("Alive") else {}
            room = int(of_node.get("CPU", 0) // self.cpus)
            places += min(room, int(of_node.get("GPU", 0) // self.gpus)) if self.gpus else room
        return places

    def require(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Raises a KonkyoError with the numbers where the actors would wait for ever for a CPU or a GPU."""
        places = self.places(nodes)
        if places >= self.actors:
            return
        resources = f"{counted(self.cpus, 'CPU')} (1 for the network, {self.readers} for reading)"
        resources += f" and {self.gpus} GPU" * (self.gpus > 0)
        alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
        there = ", ".join(f"{r.get('CPU', 0):g} CPUs and {r.get('GPU', 0):g} GPUs" for r in alive[:5])
        ways = [f"actors={places}"] if places else []
        ways += [f"workers={self.readers - 1}"] if self.readers else []
        ways += ["a model on the CPU"] if self.gpus and not any(r.get("GPU") for r in alive) else []
        raise KonkyoError(
            f"{self.actors} actors were asked for, and there is room for {places}: each takes {resources} of one "
            f"node, and the {counted(len(alive), 'node')} of the cluster have {there}"
            f"{', ...' if len(alive) > 5 else ''}. They would wait without an end; give {' or '.join(ways)}, or add "
            "nodes"
        )


def run_on_ray(
    job: Job, pieces: Sequence[Piece], folder: Path, *, actors: int, workers: int | None, address: str | None
) -> Iterator[Receipt]:
    """Yields the receipt of every piece, once its shard is written by one of the actors.

    `workers`: pieces that an actor reads while it explains another one; None: 1. `address`: of the cluster; None: this
    machine. Ray is started unless it runs in this process, and then also ended. A piece that fails, or whose actor or
    node dies, is done again after the others, TRIES times in all, or more while pictures are found that kill their
    reader and become rows with their error. KonkyoError: fewer CPUs or GPUs than the actors need,
    before anything is done; no such cluster; a node that does not see the folder; at the end, pieces that are missing.
    """
    if actors < 1 or (workers is not None and workers < 0):
        raise KonkyoError(f"actors is 1 or more and workers 0 or more; got {actors} and {workers}")
    library, left, reasons = _ray(), {piece.number: piece for piece in pieces}, dict[int, str]()
    device = next(job.model.module.parameters(), torch.zeros(0)).device.type
    pool = Pool(actors, 1 if workers is None else workers, int(device == "cuda"))
    if not left:
        return
    with _running(library, address), _quiet():
        pool.require(library.nodes())
        _warn_if_busy(library, pool)
        threads = max(1, min(torch.get_num_threads(), int(library.cluster_resources().get("CPU", 1)) // actors))
        content = Work(_portable(job), left.copy(), folder.resolve(), device, threads, Path.cwd())
        work = _stored(library, content)
        tries, deaths = 0, 0
        while left and (tries < TRIES or _deaths(folder, left) > deaths):  # it takes two over a picture to give it up
            tries, deaths = tries + 1, _deaths(folder, left)
            size = max(1, min(actors, len(left), pool.places(library.nodes())))
            yield from _round(replace(pool, actors=size), work, left, reasons, tries)
    if left:
        raise KonkyoError(_missing(left, reasons, tries))


def _deaths(folder: Path, left: Iterable[int]) -> int:
    """Returns how many deaths over pictures are known in pieces that are left."""
    return sum(sum(Logbook.of(folder, number).deaths().values()) for number in left)


def _round(pool: Pool, work: Any, left: dict[int, Piece], reasons: dict[int, str], tries: int) -> Iterator[Receipt]:
    """Yields the receipts of the pieces that are left, takes them off, and notes why others failed."""
    numbers, in_a_row = sorted(left), 0
    for start in range(0, len(numbers), WINDOW):
        for number, receipt, kind, reason in _rows(pool, work, numbers[start : start + WINDOW], tries):
            if receipt:
                in_a_row = 0
                left.pop(number, None)
                yield Receipt(**json.loads(receipt))
                continue
            reasons[number] = reason
            in_a_row += kind != UnopenedError.__name__  # that is of the piece, not of the job
            if kind in FATAL:
                raise FATAL[kind](reason)
            if tries == 1 and in_a_row == IN_A_ROW * pool.actors:
                raise KonkyoError(
                    f"{in_a_row} parts of the data failed one after the other, the last one, images "
                    f"{left[number].name}, with: {reason}. What was written is kept"
                )


def _rows(pool: Pool, work: Any, numbers: Sequence[int], tries: int) -> Iterator[tuple[int, str, str, str]]:
    """Yields (piece, receipt as JSON, kind of error, error) as pieces are done; none of one whose actor died."""
    import ray.data

    careful = tries > 1  # an actor has one piece, so that its death tells of this one
    strategy = ray.data.ActorPoolStrategy(
        size=min(pool.actors, len(numbers)),
        max_concurrent_calls_per_actor=1 if careful else 1 + pool.readers,
        max_tasks_in_flight_per_actor=1 if careful else 2 + pool.readers,
        enable_true_multi_threading=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own settings, which it copies
        items = [{"piece": number, "tries": tries} for number in numbers]
        data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Explainer,
            batch_size=1,
            compute=strategy,
            fn_constructor_args=(work,),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus or None,
            ray_remote_args_fn=partial(dict, max_restarts=-1, max_task_retries=0),
        )
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_no_progress_timeout_s = -1  # a piece may take hours
    # Ray retries nothing: what a dead actor was to do fails at once, and does not wait for a place that is gone.
    data.context.max_errored_blocks = max(100, len(numbers) // 10)
    try:
        for block in data.iter_batches(batch_size=None, prefetch_batches=0):
            yield from zip(*(block[name].tolist() for name in ("piece", "receipt", "kind", "reason")), strict=True)
    except (ray.exceptions.RayError, ray.data.exceptions.RayDataUserCodeException) as error:
        raise KonkyoError(
            f"actors of Ray cannot work: {_last_line(error)}. What was written is kept; the same call goes on"
        ) from error


class Explainer:
    """It is what an actor does: with a model of its own it explains pieces, and writes their shards."""

    def __init__(self, work: Any) -> None:
        import ray

        self.work: Work = ray.get(work)
        self.work.job.model.module.to(self.work.device)
        self.turn = threading.Lock()
        if self.work.directory.is_dir():
            os.chdir(self.work.directory)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Returns the receipt of the one piece in the batch, or why there is none."""
        number = int(batch["piece"][0])
        try:
            receipt, kind, reason = json.dumps(asdict(self.receipt_of(number, int(batch["tries"][0])))), "", ""
        except Exception as error:  # whatever it is, the other pieces are done
            receipt, kind, reason = "", type(error).__name__, str(error)
            if not isinstance(error, KonkyoError):
                reason = f"{kind}: {reason}"
        return {"piece": [number], "receipt": [receipt], "kind": [kind], "reason": [reason]}

    def receipt_of(self, number: int, tries: int) -> Receipt:
        """Explains a piece as the engine on one machine does. -> the receipt of its shard"""
        job, piece, folder = self.work.job, self.work.pieces[number], self.work.folder
        torch.set_num_threads(self.work.threads)
        if not (folder / MANIFEST).is_file():
            raise UnsharedError(
                f"the node {os.uname().nodename} does not see {folder / MANIFEST}: out= is a folder on storage that "
                "all nodes of the cluster share, under the same path"
            )
        logbook = Logbook.of(folder, number)
        if tries > 1:  # the actor has this piece alone
            piece = logbook.piece(piece)
        groups = _in_turn(read_groups(job.model, [piece], batch=job.batch, extras=extras_of(job)), self.turn)
        with closing(groups):  # so that the turn goes on, whatever happens
            (receipt,) = shards_of(job, {number: piece.name}, groups, folder, tries)
        logbook.close()
        return receipt


def _in_turn(groups: Iterator[Group], turn: threading.Lock) -> Generator[Group, None, None]:
    """Yields groups; while one of them is explained, other threads can only read."""
    for group in groups:
        with turn:
            yield group


def _ray() -> Any:
    """Returns Ray with its data sets. KonkyoError: it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise KonkyoError(f'engine="ray" needs Ray: {install_hint("ray")}') from error
    return ray


@contextmanager
def _running(library: Any, address: str | None) -> Iterator[None]:
    """Within the context this process is connected to Ray; what was started for it ends with it."""
    if library.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    of_start = {"include_dashboard": False} if address is None else {}
    try:
        try:
            library.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **of_start)
        except (ConnectionError, RuntimeError, ValueError, library.exceptions.RayError) as error:
            where = "on this machine" if address is None else f"at {address}"
            raise KonkyoError(
                f"Ray {where} cannot be reached: {_last_line(error)}. A cluster is started by `ray start --head`, and "
                "all of its processes have the same token"
            ) from error
        yield
    finally:
        library.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context Ray Data does not log; what fails is told by the run."""
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _warn_if_busy(library: Any, pool: Pool) -> None:
    """Warns where others use so much of the cluster that not one actor can begin."""
    free = library.available_resources()
    if free.get("CPU", 0) < pool.cpus or free.get("GPU", 0) < pool.gpus:
        warn(
            f"the cluster is in use: {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs are free, and an "
            f"actor takes {pool.cpus} and {pool.gpus}. The run begins when they are free"
        )


def _portable(job: Job) -> Job:
    """Returns the job with its model on the CPU and nothing found out about it yet; the caller's stays as it is."""
    model: Model = job.model
    on_cpu = all(tensor.device.type == "cpu" for tensor in model.module.state_dict().values())
    return replace(job, model=replace(model, module=model.module if on_cpu else deepcopy(model.module).cpu()))


def _stored(library: Any, work: Work) -> Any:
    """Returns a reference to the work in the object store. KonkyoError: it cannot be sent."""
    try:
        return library.put(work)
    except (TypeError, AttributeError, ValueError) as error:
        raise KonkyoError(
            f"{work.job.model.name} or the data cannot be sent to other processes: {_last_line(error)}; engine="
            '"local" sends nothing'
        ) from error


def _missing(left: Mapping[int, Piece], reasons: Mapping[int, str], tries: int) -> str:
    """Returns what to say of pieces that could not be done."""
    listed = [f"images {left[n].name} ({reasons.get(n, 'its actor died')})" for n in sorted(left)]
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return (
        f"{len(listed)} of the parts of the data failed {tries} times and are missing: {'; '.join(listed[:5])}{more}. "
        "The others are written; the same call tries those that are missing again"
    )


def _last_line(error: BaseException) -> str:
    """Returns the last line of what an error says, which is its cause where Ray passes on a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

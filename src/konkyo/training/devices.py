"""Where a training runs: Lightning Fabric's devices, nodes and precisions; and what its processes have in common."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from konkyo.errors import KonkyoError, install_hint

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fabric_of(
    devices: int = 1, nodes: int = 1, *, accelerator: str = "auto", precision: str = "fp32", strategy: str = "auto"
) -> Fabric:
    """Launches a Fabric and returns it. From the second process on, each runs the same program from its beginning.

    `accelerator`: "auto", "cpu", "cuda", ...; `precision`: "fp32", "bf16" or "fp16" (mixed), or a name of Fabric's.
    KonkyoError: lightning-fabric is not installed, or there are no such devices.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ImportError as error:
        raise KonkyoError(f"training needs lightning-fabric ({error}): {install_hint('train')}") from error
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=_PRECISIONS.get(precision, precision),  # type: ignore[arg-type] # checked there
            strategy="ddp" if strategy == "auto" and devices * nodes > 1 else strategy,
        )
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        raise KonkyoError(
            f"{devices} devices of {nodes} nodes with the precision {precision!r} cannot be used: {error}"
        ) from error
    fabric.launch()
    atexit.register(_leave)
    return fabric


def _leave() -> None:
    """Ends the connection to the other processes: Fabric does so for GPUs alone, and threads of gloo that still run
    when Python ends abort the process now and then."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def processes() -> int:
    """Returns how many processes train together; 1 without torch.distributed."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def over_processes(values: Tensor) -> Tensor:
    """Returns the sum over all processes, without a gradient."""
    values = values.detach()
    if processes() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values


@contextmanager
def first(fabric: Fabric) -> Iterator[bool]:
    """Within the context, whether this is the first process, which alone measures and writes.

    At its end all meet; an error of the first process is everybody's, for the others would wait for it for ever.
    """
    message: str | None = None
    try:
        yield fabric.is_global_zero
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        failure = fabric.broadcast(message) if fabric.world_size > 1 else None
        if failure is not None and not fabric.is_global_zero:
            raise KonkyoError(f"the first process stopped: {failure}")


@contextmanager
def together(fabric: Fabric) -> Iterator[None]:
    """Within the context all processes do the same; an error of one is everybody's at its end."""
    message: str | None = None
    try:
        yield
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        if message is None:
            _no_failure(_of_all(message, fabric))
        else:
            _of_all(message, fabric)


_SHARED: WeakKeyDictionary[DataLoader[Any], DataLoader[Any]] = WeakKeyDictionary()
"""This process's share of the batches of a loader; kept, as are the processes that read for it."""


def over_batches(function: Callable[[Any], T], batches: DataLoader[Any], fabric: Fabric | None) -> list[T]:
    """Returns `function(batch)` of all batches, in order, in every process; each process takes some of the batches.

    The batches are those of one process, so that results on the CPU are the same bits. Without a fabric this process
    takes all. What the function returns is sent: tensors on the CPU. KonkyoError: the function failed in a process.
    """
    if fabric is None or fabric.world_size == 1:
        return [function(batch) for batch in batches]
    if batches not in _SHARED:
        share = [*batches.batch_sampler][fabric.global_rank :: fabric.world_size]  # type: ignore[misc] # it has one
        _SHARED[batches] = DataLoader(
            batches.dataset,
            batch_sampler=share,
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            persistent_workers=batches.persistent_workers,
        )
    results, message = list[T](), None
    try:
        results = [function(batch) for batch in _SHARED[batches]]
    except Exception as error:  # told to all, for they would wait for this process for ever
        message = f"{type(error).__name__}: {error}"
    parts = _of_all((results, message), fabric)
    _no_failure([message for _, message in parts])
    most = max(len(part) for part, _ in parts)
    return [part[step] for step in range(most) for part, _ in parts if step < len(part)]


def aligned(network: nn.Module) -> None:
    """Gives the buffers of the network the values that the first process has: batch norm counts in each for itself."""
    if processes() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def _of_all(value: T, fabric: Fabric) -> list[T]:
    """Returns the value of every process, by rank."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    distributed.all_gather_object(values, value)
    return values


def _no_failure(messages: list[str | None]) -> None:
    """Raises KonkyoError where there is a message."""
    for rank, message in enumerate(messages):
        if message is not None:
            raise KonkyoError(f"process {rank} stopped: {message}")

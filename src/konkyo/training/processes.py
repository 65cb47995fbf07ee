"""What several processes that train together have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, distributed

from konkyo.errors import KonkyoError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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

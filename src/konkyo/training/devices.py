"""Where a training runs: Lightning Fabric, which knows devices, nodes and precisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from konkyo.errors import KonkyoError, install_hint

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        raise KonkyoError(f"{devices} devices of {nodes} nodes cannot be used: {error}") from error
    fabric.launch()
    return fabric

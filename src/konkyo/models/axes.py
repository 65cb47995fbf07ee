"""The axes of networks that a library or a first convolution tells; others are asked for in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from konkyo.data.axes import USUAL, Axes
from konkyo.errors import KonkyoError

_FAMILIES = {
    "transformers": {"VideoMAE": "NTCHW", "Vivit": "NTCHW", "Timesformer": "NTCHW", "VJEPA2": "NTCHW", "AST": "NTF"},
    "torchvision.models.video": {"": "NCTHW"},
}
"""What the input's axes are, by where a class is defined and by how its name begins."""


def known_axes(module: nn.Module) -> Axes | None:
    """Returns the axes of a network whose class is one of a library that is known here; None: another network."""
    for kind in type(module).__mro__:
        for home, families in _FAMILIES.items():
            if kind.__module__ == home or kind.__module__.startswith(f"{home}."):
                for start, text in families.items():
                    if kind.__name__.startswith(start):
                        return Axes(text)
    return None


def likely_axes(module: nn.Module, shape: Sequence[int]) -> Axes:
    """Returns the usual axes of an input of this shape, of a network of which nothing is said.

    Of five axes those of a volume, where the first convolution in three dimensions has as many channels as the second
    axis. KonkyoError: it has another number, or there is none, so that the axes could be several things.
    """
    text = USUAL.get(len(shape))
    if text is None:
        raise KonkyoError(f"an input of {len(shape)} axes, {tuple(shape)}, is none that is known; 3 to 5 are")
    if len(shape) == 5:
        first = next((m for m in module.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))), None)
        if first is None or first.in_channels != shape[1]:
            why = (
                "has no convolution in three dimensions"
                if first is None
                else (f"begins with a convolution of {first.in_channels} channels")
            )
            raise KonkyoError(
                f"an input of five axes, {tuple(shape)}, can be a video or a volume with its channels at the second "
                f"axis or at another, and the network {why}: say what the axes are, as in konkyo.Model(module, "
                'axes="NTCHW") for frames of colours, "NCTHW", or "NCDHW" for a volume'
            )
    return Axes(text)

"""Black boxes: networks of which nothing is known but what they put out for images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from konkyo.errors import KonkyoError, unknown

Form: TypeAlias = Literal["float NCHW", "float NHWC", "uint8 NCHW", "uint8 NHWC"]
"""How a black box takes images: uint8 are pixels from 0 to 255, made of prepared images in [0, 1]."""
Predict: TypeAlias = Callable[[Any], Any]


class BlackBox(nn.Module):
    """A black box calls a function with images and knows nothing else of a network: no layer and no gradient.

    `predict`: an array of images -> scores (N, ...), an array or tensor, or a mapping of names to them. `form`: how it
    takes images. `batch`: how many it takes at once; None: any number. The last images are repeated to fill a batch,
    and what comes of them is dropped. `tensors`: it takes a torch tensor in the place of a NumPy array. KonkyoError: no
    function, or an unknown form.

    Methods that only score changed images explain it (`rise`, `d_rise`, `occlusion`), on the image itself; the metrics
    that delete and insert pixels measure them. So do networks whose weights are int8, on servers, or in other
    frameworks.

    >>> import konkyo, numpy
    >>> def predict(images):
    ...     return numpy.stack([images[:, 0].mean((1, 2)), images[:, 2].mean((1, 2))], axis=1)
    >>> model = konkyo.Model(konkyo.BlackBox(predict, batch=8), classes=("red", "blue"))
    >>> konkyo.explain(model, torch.rand(1, 3, 16, 16), method="occlusion", target="red", window=4, stride=2).maps.shape
    torch.Size([1, 16, 16])
    """

    def __init__(
        self, predict: Predict, *, form: Form = "float NCHW", batch: int | None = None, tensors: bool = False
    ) -> None:
        super().__init__()
        if not callable(predict):
            raise KonkyoError(f"predict is a function of an array of images; got {predict!r}")
        if form not in get_args(Form):
            raise unknown("form of images", form, get_args(Form))
        if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
            raise KonkyoError(f"batch is a number of images, 1 or more, or None; got {batch!r}")
        self.predict, self.form, self.batch, self.tensors = predict, form, batch, tensors

    @property
    def takes_bytes(self) -> bool:
        """Tells whether the function takes pixels from 0 to 255, made of prepared images in [0, 1]."""
        return self.form.startswith("uint8")

    @staticmethod
    def check(mean: Sequence[float], std: Sequence[float]) -> None:
        """Raises KonkyoError where prepared images would be no pixels, of a function that takes bytes."""
        if any(mean) or any(value != 1 for value in std):
            raise KonkyoError(
                f"bytes are made of images in [0, 1], so mean is 0 and std is 1; got {tuple(mean)} and {tuple(std)}"
            )

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Returns what the function puts out for prepared images (N, C, H, W), on their device: (N, ...), or by name.

        KonkyoError: it failed, or gave something else than a number of entries per image.
        """
        size = self.batch or len(images)
        whole = images.detach()
        if surplus := -len(whole) % size:
            whole = torch.cat([whole, whole[-1:].expand(surplus, *whole.shape[1:])])
        parts = [self._part(chunk) for chunk in torch.split(whole, size)]
        if isinstance(parts[0], Mapping):
            return {name: self._joined([part[name] for part in parts], images) for name in parts[0]}
        return self._joined(parts, images)

    def _part(self, images: Tensor) -> Any:
        """Returns what the function gives for one batch. KonkyoError: it failed."""
        taken = images.movedim(1, -1) if self.form.endswith("NHWC") else images
        if self.takes_bytes:
            taken = (taken * 255).round().clamp(0, 255).to(torch.uint8)
        value: Any = taken.contiguous() if self.tensors else _array(taken.contiguous())
        try:
            return self.predict(value)
        except KonkyoError:
            raise
        except Exception as error:
            raise KonkyoError(
                f"predict failed on an array {tuple(value.shape)} of {value.dtype}: {type(error).__name__}: {error}"
            ) from error

    def _joined(self, parts: list[Any], images: Tensor) -> Tensor:
        """Returns the scores of all batches, without those that only fill the last. KonkyoError: no scores."""
        scores = []
        for part in parts:
            values = part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            if not values.ndim or values.is_complex():
                raise KonkyoError(f"predict returns scores (N, ...), an array or tensor; it gave {part!r:.100}")
            scores.append(values if values.is_floating_point() else values.float())
        result = torch.cat(scores)
        expected = math.ceil(len(images) / (self.batch or len(images))) * (self.batch or len(images))
        if len(result) != expected:
            raise KonkyoError(f"predict returns an entry per image, {expected} here; it gave {tuple(result.shape)}")
        return result[: len(images)].to(images.device, torch.float32)


def _array(images: Tensor) -> np.ndarray[Any, Any]:
    """Returns images as an array, in single precision where they are floating."""
    array: np.ndarray[Any, Any] = (images.float() if images.is_floating_point() else images).cpu().numpy()
    return array

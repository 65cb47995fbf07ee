"""This reads the labels of a batch: which classes' maps are meant, and which of them the network decided correctly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from konkyo.errors import KonkyoError
from konkyo.targets.classes import class_logits

IGNORED = -100
"""The label of an image that is left out, as in `torch.nn.functional.cross_entropy`."""


class LabelledRows(NamedTuple):
    """These are the rows of a batch: an image and a class of it."""

    classes: Tensor
    """(R,) int64."""
    images: Tensor | None
    """(R,) int64: the row's image; None: a row per image."""
    correct: Tensor
    """(R,) bool: whether the network decides for the class, and the image is not left out."""


def labelled_rows(logits: Tensor, labels: Tensor, *, multi_label: bool = False) -> LabelledRows:
    """Returns the rows that labels stand for. logits (N, K)

    - Class indices (N,) whole numbers, -100 for an image that is left out: a row per image. Correct: the largest logit.
    - Soft labels (N, K) floating, of label smoothing or mixup: the class with the largest share, as if it had been
      given as an index. An image without any share is left out.
    - `multi_label`, (N, K) of zeros and ones: a row for every class of every image that is above one half. Correct: a
      sigmoid above one half, whatever the other classes are. It waits for the device once, to count them.
    - Of one logit per image (N, 1), zeros and ones (N,) or (N, 1): classes 0 and 1, whose logits are -z and z.

    KonkyoError: other labels.
    """
    one = logits.shape[1] == 1
    if multi_label:
        if labels.shape != logits.shape:
            raise KonkyoError(
                f"with multi_label, zeros and ones for every class were expected, {tuple(logits.shape)}; got "
                f"{tuple(labels.shape)}"
            )
        images, classes = (labels > 0.5).nonzero(as_tuple=True)
        return LabelledRows(classes + 1 if one else classes, images, logits[images, classes] > 0)
    if labels.shape[:1] != logits.shape[:1]:
        raise KonkyoError(f"a label of each of {len(logits)} images was expected; got {tuple(labels.shape)}")
    count = 2 if one else logits.shape[1]
    if one and labels.shape in ((len(logits),), (len(logits), 1)):
        labels = labels.reshape(-1)
        indices = torch.where(labels == IGNORED, IGNORED, labels > 0.5) if labels.is_floating_point() else labels
    elif labels.ndim == 2 and labels.shape == logits.shape and labels.is_floating_point():
        indices = torch.where(labels.amax(1) > 0, labels.argmax(1), IGNORED)
    elif labels.ndim == 1 and not labels.is_floating_point():
        indices = labels
    else:
        several = "; zeros and ones for classes that do not exclude each other: multi_label=True"
        raise KonkyoError(
            f"labels are class indices (N,) or floating shares of the classes {tuple(logits.shape)}; got "
            f"{tuple(labels.shape)} {labels.dtype}{several if labels.shape == logits.shape else ''}"
        )
    indices = indices.long()
    used = indices != IGNORED
    on_host = indices.device.type == "cpu"  # to ask a device would make every step wait
    if on_host and bool(((indices < 0) | (indices >= count))[used].any()):
        raise KonkyoError(
            f"labels from 0 to {count - 1} were expected, or {IGNORED}; got {int(indices.min())} to "
            f"{int(indices.max())}"
        )
    indices = torch.where(used, indices, 0)
    return LabelledRows(indices, None, used & (class_logits(logits).argmax(1) == indices))

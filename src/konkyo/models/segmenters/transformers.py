"""transformers' segmenters: logits per pixel (SegFormer, UperNet), and queries with a class and a mask (MaskFormer)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from konkyo.models.kinds import class_names, kind
from konkyo.tasks.queries import QueryTask, Size
from konkyo.tasks.segmentation import SegmentationTask
from konkyo.utils.tensors import at_least_float32

_ENDS = ("backbone", "pixel_level_module.encoder", "conv_encoder")
"""How the names of modules end that put out the maps of all stages which a head reads."""


class _Queries(NamedTuple):
    """What is different between networks of queries."""

    enlarged: Callable[[Size], Size] | None
    """What `post_process_semantic_segmentation` of the processor enlarges masks to, of images of a size, before it
    takes their sigmoid; None: it leaves them as they are."""


_QUERIES = {
    "MaskFormerForInstanceSegmentation": _Queries(None),
    "Mask2FormerForUniversalSegmentation": _Queries(lambda _: (384, 384)),
    "EomtForUniversalSegmentation": _Queries(lambda size: size),
    "EomtDinov3ForUniversalSegmentation": _Queries(lambda size: size),
    "DetrForSegmentation": _Queries(None),
}


@kind("transformers", "segmenter", auto="AutoModelForSemanticSegmentation")
def describe(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns the task of a network with logits per pixel; None: another module."""
    del processor
    return {"task": SegmentationTask(layer=_layer(module))} if _is_a(module, "ForSemanticSegmentation") else None


@kind("transformers", "segmenter with queries", auto="AutoModelForUniversalSegmentation")
def describe_queries(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns how a network of queries is a segmenter; None: another module, or one that reads a task as text."""
    del processor
    family = next((family for name, family in _QUERIES.items() if _is_a(module, name)), None)
    if family is None:
        return None
    config: Any = module.config
    task = QueryTask(
        probabilities=True, layer=_layer(module), read=queries, number=config.num_labels, enlarged=family.enlarged
    )
    return {"task": task, "call": partial(semantic_map, enlarged=family.enlarged)}


def _layer(module: nn.Module) -> str:
    """Returns the name of the module that puts out all stages of the backbone; "": there is none of its own."""
    names = [name for name, _ in module.named_modules()]
    return next((name for end in _ENDS for name in names if f".{name}".endswith(f".{end}")), "")


def _is_a(module: nn.Module, ending: str) -> bool:
    """Tells whether a module is of a class of transformers with such a name, or of one derived from it."""
    return any(name.endswith(ending) for name in class_names(module, "transformers"))


def semantic_map(module: nn.Module, images: Tensor, enlarged: Callable[[Size], Size] | None = None) -> Tensor:
    """Returns what all queries together say of every class in every cell (N, K, h, w): scores, not logits.

    It is the sum over queries of softmax(classes)[c] times sigmoid(mask), "no object" left out: the argmax of
    MaskFormer (Cheng et al., 2021, section 3.4) and of the library's own post-processing. They do not sum to 1.
    """
    classes, masks = queries(module, images)
    if enlarged is not None:
        height, width = images.shape[2:]
        masks = F.interpolate(masks, size=enlarged((height, width)), mode="bilinear", align_corners=False)
    return torch.einsum("nqc,nqhw->nchw", classes.softmax(-1)[..., :-1], masks.sigmoid())


def queries(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logits of the queries' classes (N, Q, K + 1), the last "no object", and of their masks (N, Q, h, w)."""
    output: Any = module(pixel_values=images)
    named = hasattr(output, "class_queries_logits")  # DETR has names of its own
    classes = output.class_queries_logits if named else output.logits
    masks = output.masks_queries_logits if named else output.pred_masks
    return at_least_float32(classes), at_least_float32(masks)

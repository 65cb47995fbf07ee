"""transformers' object detectors of the DETR family and YOLOS: their queries as candidates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from konkyo.models.detectors import Detector, Kept, best_class, best_pairs, boxes_in_pixels
from konkyo.models.kinds import class_names, kind
from konkyo.targets.candidates import pack
from konkyo.utils.tensors import at_least_float32


class _Family(NamedTuple):
    """What is different between the detectors of transformers."""

    model_type: str
    """That of the config."""
    keep: Callable[..., list[Kept]]
    """As `post_process_object_detection` of the image processor that belongs to it; with `best_class` the head is a
    softmax whose last column is "no object", else one sigmoid per class."""
    layer: str = "model.backbone"
    """How the name of the module ends that puts out what the detector uses of its backbone; the last such module."""
    last_map: bool = False
    """Whether only the last of the backbone's maps is used."""


_best_100 = partial(best_pairs, most=100)

_FAMILIES = {
    "DetrForObjectDetection": _Family("detr", best_class, last_map=True),
    "TableTransformerForObjectDetection": _Family("table-transformer", best_class, "backbone.conv_encoder", True),
    # Its heads read the detection tokens alone: after the last block no patch has a gradient, so before its attention.
    "YolosForObjectDetection": _Family("yolos", best_class, "layernorm_before"),
    "ConditionalDetrForObjectDetection": _Family("conditional_detr", _best_100, last_map=True),
    "DabDetrForObjectDetection": _Family("dab-detr", _best_100, "backbone.conv_encoder", True),
    "DeformableDetrForObjectDetection": _Family("deformable_detr", _best_100),
    "LwDetrForObjectDetection": _Family("lw_detr", _best_100),
    "RfDetrForObjectDetection": _Family("rf_detr", best_pairs),
    "RTDetrForObjectDetection": _Family("rt_detr", best_pairs),
    "RTDetrV2ForObjectDetection": _Family("rt_detr_v2", best_pairs),
    "DFineForObjectDetection": _Family("d_fine", best_pairs),
    "Deimv2ForObjectDetection": _Family("deimv2", best_pairs, "model.conv_encoder"),
}


@kind("transformers", "object detector", auto="AutoModelForObjectDetection")
def describe(module: nn.Module, processor: Any) -> dict[str, Any] | None:
    """Returns how a detector is one; None: another module."""
    del processor
    adapter = detector(module)
    return None if adapter is None else {"detector": adapter}


def detector(module: nn.Module) -> Detector | None:
    """Adapts an object detector of transformers, or one derived from it; None: another module.

    Candidates are the queries, and are proposed in eval mode.
    """
    names = class_names(module, "transformers")
    family = next((_FAMILIES[name] for name in names if name in _FAMILIES), None)
    if family is None:
        return None
    classes: int = module.config.num_labels  # type: ignore[assignment, union-attr]
    propose = partial(_propose, softmax=family.keep is best_class)
    config: Any = module.config
    patch = config.patch_size if family.model_type == "yolos" else None
    return Detector(classes, propose, partial(family.keep, classes=classes), _layer(module, family), patch)


def _propose(module: nn.Module, images: Tensor, *, softmax: bool) -> Tensor:
    """Returns (N, Q, 4 + K) of the Q queries, in fp32 at least."""
    output = module(pixel_values=images)
    logits = at_least_float32(output.logits)
    probabilities = logits.softmax(-1)[..., :-1] if softmax else logits.sigmoid()
    return pack(boxes_in_pixels(output.pred_boxes, images), probabilities)


def _layer(module: nn.Module, family: _Family) -> str:
    """Returns the name of the default layer.

    timm's backbones put out maps of all their stages by default, also for a detector that uses the last alone: then the
    layer is that stage.
    """
    modules = dict(module.named_modules())
    end: str = next(name for name in reversed(modules) if f".{name}".endswith(f".{family.layer}"))
    if not family.last_map:
        return end
    bodies = [name for name, part in modules.items() if name.startswith(f"{end}.") and isinstance(part, nn.ModuleDict)]
    stages: list[str] = [name for name in modules if bodies and name.rpartition(".")[0] == bodies[0]]
    return stages[-1] if stages else end

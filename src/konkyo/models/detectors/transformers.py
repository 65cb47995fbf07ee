"""transformers' object detectors of the DETR family and YOLOS: their queries as candidates, and loading them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from konkyo.candidates import pack
from konkyo.errors import KonkyoError
from konkyo.models.checkpoints import read_weights
from konkyo.models.detectors import Detector, Kept, best_class, best_pairs
from konkyo.models.preprocess import Preprocess
from konkyo.models.transformers import _classes, _from_numbers, import_transformers


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


def detector(module: nn.Module) -> Detector | None:
    """How an object detector of transformers, or one derived from it, is a detector; None: another module.

    Candidates are the queries, and are proposed in eval mode.
    """
    kinds = (kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("transformers."))
    family = next((_FAMILIES[kind] for kind in kinds if kind in _FAMILIES), None)
    if family is None:
        return None
    classes: int = module.config.num_labels  # type: ignore[assignment, union-attr]
    propose = partial(_propose, softmax=family.keep is best_class)
    config: Any = module.config
    patch = config.patch_size if family.model_type == "yolos" else None
    return Detector(classes, propose, partial(family.keep, classes=classes), _layer(module, family), patch)


def _propose(module: nn.Module, images: Tensor, *, softmax: bool) -> Tensor:
    """(N, Q, 4 + K) of the Q queries, in fp32 at least."""
    output = module(pixel_values=images)
    logits, boxes = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (output.logits, output.pred_boxes))
    height, width = images.shape[2:]
    centres, sides = boxes.split(2, -1)
    corners = torch.cat([centres - sides / 2, centres + sides / 2], -1)
    return pack(
        corners * boxes.new_tensor([width, height, width, height]),
        logits.softmax(-1)[..., :-1] if softmax else logits.sigmoid(),
    )


def _layer(module: nn.Module, family: _Family) -> str:
    """The name of the default layer.

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


# --- loading ---------------------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """A detector from the hub or a folder."""

    module: nn.Module
    """In eval mode."""
    preprocess: Preprocess | None
    classes: tuple[str, ...]
    """Names; empty where there are none."""
    detector: Detector


def is_detector(config: Any) -> bool:
    """Whether a config of transformers is one of an object detector that is known here.

    By the class that the weights are of; where it names none, by the model's type.
    """
    if config.architectures:
        return any(name in _FAMILIES for name in config.architectures)
    return config.model_type in {family.model_type for family in _FAMILIES.values()}


def from_folder_or_hub(name: str, weights: str | Path | None) -> Loaded:
    """The object detector with this id on the hub, or in this folder (as `save_pretrained` writes it, no network).

    `weights`: "default" (its own), None (random, built from its config) or a file. Code that comes with a model is
    never run. KonkyoError, in one line: transformers is not installed, an unknown id, no network, a model of another
    kind, or weights that do not fit or are not complete.
    """
    transformers = import_transformers()
    settings = {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
    auto, usual = transformers.AutoModelForObjectDetection, True
    try:
        config = transformers.AutoConfig.from_pretrained(name, **settings)
        if not is_detector(config):
            kind = ", ".join(config.architectures or [config.model_type])
            raise KonkyoError(f"hf/{name} is no known object detector but {kind}; known are {', '.join(_FAMILIES)}")

        def build(classes: int | None) -> Any:
            own = deepcopy(config)
            if classes is not None:
                own.num_labels = classes
            return auto.from_config(own, trust_remote_code=False)

        if weights is None:
            module = build(None)
        elif weights == "default":
            module, report = auto.from_pretrained(name, weights_only=True, output_loading_info=True, **settings)
            _require_trained(name, module, report["missing_keys"])
        else:
            module, usual = _with_weights(name, build, read_weights(weights))
    except KonkyoError:
        raise
    except Exception as error:  # hub, network, config and weights fail in their own ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KonkyoError(
            f"hf/{name} cannot be loaded as an object detector: {reason} Give a model's id on the hub, or a folder "
            "with its config.json and weights"
        ) from error
    found = detector(module)
    assert found is not None
    named = usual and set(config.id2label) == set(range(config.num_labels))
    return Loaded(module.eval(), _preprocess(transformers, name, settings), _classes(config) if named else (), found)


def _with_weights(name: str, build: Callable[[int | None], Any], state: dict[str, Tensor]) -> tuple[Any, bool]:
    """(the network with these weights, whether its classes are the usual ones). KonkyoError: they do not fit."""
    usual, network = True, build(None)
    for _ in range(2):
        # transformers itself, as names in its files differ from those of its modules.
        module, report = type(network).from_pretrained(
            None, config=network.config, state_dict=dict(state), ignore_mismatched_sizes=True, output_loading_info=True
        )
        misfits, labels = report["mismatched_keys"], network.config.num_labels
        counts = {
            new[0] - own[0] + labels
            for _, new, own in misfits
            if own[:1] in ((labels,), (labels + 1,)) and new[1:] == own[1:]  # one more: "no object", or a padding
        }
        if not usual or len(counts) != 1:
            break
        usual, network = False, build(counts.pop())
    if misfits:
        key, new, own = min(misfits)
        raise KonkyoError(f"the weights do not fit hf/{name}: {key} is {tuple(new)} for {tuple(own)}")
    _require_trained(name, module, report["missing_keys"])
    return module, usual


def _require_trained(name: str, module: nn.Module, missing: set[str]) -> None:
    """KonkyoError where weights or statistics are missing: transformers starts them at random or at 0 and 1."""
    own = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    absent = sorted(missing & own)
    if absent:
        named = ", ".join(absent[:3])
        raise KonkyoError(f"hf/{name} is no trained detector: it lacks {len(absent)} weights ({named} ...)")


def _preprocess(transformers: Any, name: str, settings: Mapping[str, bool]) -> Preprocess | None:
    """The model's own preprocessing; None where it has none, or one that a `Preprocess` cannot follow.

    What was read from the processor's settings is held against the processor on pictures of noise: one whose long side
    is too long, one whose is not, and none of whose sides come to whole patches.
    """
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((71, 94), (131, 37))]
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil", **settings)
        found = _from_settings(processor)
        for picture in pictures:
            expected = processor(picture, return_tensors="pt")["pixel_values"][0]
            prepared = found(picture)
            if prepared.shape != expected.shape:
                return None
            if float((prepared - expected).abs().mean()) >= 1 / 255 / min(found.std):
                return None
    except Exception:  # no processor, one of another kind, or a setting that is not known here
        return None
    return found


def _from_settings(processor: Any) -> Preprocess:
    """What an image processor's settings say. KonkyoError, KeyError: something that they cannot say."""
    numbers = processor.to_dict()
    size = numbers["size"]
    if not numbers.get("do_resize") or set(size) != {"shortest_edge", "longest_edge"}:
        return _from_numbers(numbers)
    limits: dict[str, Any] = {"longest": size["longest_edge"]}
    if type(processor).__name__.startswith("Yolos"):
        limits["multiple"] = 16  # fixed in the processor's code, whatever the patches
    return replace(_from_numbers({**numbers, "size": {"shortest_edge": size["shortest_edge"]}}), **limits)
